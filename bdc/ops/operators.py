"""A product as operators of torch, ``torch.ops.bdc.*``: what torch.compile and torch.export see."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bdc.errors import InputError
from bdc.ops import checks, matmul
from bdc.ops.extension import unwatched
from bdc.ops.watchers import check_no_tangents, no_forward_mode

_library = torch.library.Library("bdc", "DEF")


def register(
    name: str,
    others: str,
    product: Callable[..., Tensor],
    product_: Callable[..., None],
    product_with_h: Callable[..., tuple[Tensor, Tensor]],
    backward: Callable[..., tuple[Tensor | None, ...]],
    differentiable: Callable[..., Tensor] | None = None,
) -> Callable[..., Tensor]:
    """Define operators of x, lora_a, lora_b, rank_weights, ``others`` as torch's schemas write them, and scaling.

    They are ``name``; ``name_``, which adds to y in place; ``name_with_h``, for training, which also returns h, [T, R], that the
    gradients need; and ``name_backward``, which takes the gradient of the output first, h before scaling, and last which of the
    first four gradients are needed. ``differentiable`` is the product of plain tensors with its gradient, where there is a
    cheaper one than that made of operators.

    Returns:
        The product with its gradient made of operators, in the form that tracers and torch.func can see through.
    """
    register_in_place(name, others, product_)
    arguments = _arguments(others)
    _library.define(f"{name}({arguments}, float scaling) -> Tensor")
    _library.define(f"{name}_with_h({arguments}, float scaling) -> (Tensor, Tensor)")
    _library.define(
        f"{name}_backward(Tensor grad, {arguments}, Tensor h, float scaling, bool[4] needed) "
        "-> (Tensor, Tensor, Tensor, Tensor)"
    )
    operators = torch.ops.bdc
    plain_op, with_h, gradients = (getattr(operators, name + form) for form in ("", "_with_h", "_backward"))

    class Traced(torch.autograd.Function):
        @staticmethod
        def forward(*inputs: Any) -> tuple[Tensor, Tensor]:
            out: tuple[Tensor, Tensor] = with_h(*inputs)
            return out

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
            ctx.mark_non_differentiable(output[1])
            ctx.save_for_backward(*inputs[:-1], output[1])
            ctx.scaling = inputs[-1]

        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
            needed = ctx.needs_input_grad
            found = once(gradients, grads[0], *ctx.saved_tensors, ctx.scaling, list(needed[:4]))
            wanted = (gradient if need else None for gradient, need in zip(found, needed[:4], strict=True))
            return *wanted, *(None,) * (len(needed) - 4)

        @staticmethod
        def jvp(ctx: Any, *tangents: Tensor | None) -> Any:
            raise no_forward_mode()

        @staticmethod
        def vmap(info: Any, in_dims: Any, *inputs: Any) -> Any:
            raise checks.no_vmap()

    def traced(*inputs: Any) -> Tensor:
        out: Tensor = Traced.apply(*inputs)[0]
        return out

    def autograd(x: Tensor, lora_a: Tensor, lora_b: Tensor, g: Tensor, *rest: Any) -> Tensor:
        wants_gradient = torch.is_grad_enabled() and (
            x.requires_grad or lora_a.requires_grad or lora_b.requires_grad or g.requires_grad
        )
        direct = differentiable if wants_gradient else product
        if direct is not None and unwatched(x, lora_a, lora_b, g, *rest[:-1]):
            # Through the dispatcher again would cost more than a small product.
            return direct(x, lora_a, lora_b, g, *rest)
        check_no_tangents(x, lora_a, lora_b, g)
        if wants_gradient:
            return traced(x, lora_a, lora_b, g, *rest)
        with torch._C._AutoDispatchBelowAutograd():
            found: Tensor = plain_op(x, lora_a, lora_b, g, *rest)
            return found

    def gradients_or_empty(grad: Tensor, *rest: Any) -> tuple[Tensor, ...]:
        # An operator returns tensors only: an empty one stands for a gradient that nobody needs.
        return tuple(grad.new_empty(0) if gradient is None else gradient for gradient in backward(grad, *rest))

    _library.impl(name, product, "CompositeExplicitAutograd")
    _library.impl(name, autograd, "Autograd")
    _library.impl(f"{name}_with_h", product_with_h, "CompositeExplicitAutograd")
    _library.impl(f"{name}_backward", gradients_or_empty, "CompositeExplicitAutograd")
    for form, fake in (("", _fake), ("_with_h", _fake_with_h), ("_backward", _fake_backward)):
        torch.library.register_fake(f"bdc::{name}{form}", fake, lib=_library)
    return traced


def register_in_place(
    name: str, others: str, product_: Callable[..., None], check: Callable[..., None] | None = None
) -> None:
    """Define the operator ``name_``, which adds to y and has no gradient; arguments as for :func:`register`.

    ``check`` is what shapes alone tell, called with the operator's arguments after y; by default that of one output.
    """
    _library.define(f"{name}_(Tensor(a!) y, {_arguments(others)}, float scaling) -> ()")
    in_place = getattr(torch.ops.bdc, f"{name}_")
    tensors = others.count("Tensor")  # they come first

    def autograd_(y: Tensor, x: Tensor, lora_a: Tensor, lora_b: Tensor, g: Tensor, *rest: Any) -> None:
        if torch.is_grad_enabled() and (
            y.requires_grad or x.requires_grad or lora_a.requires_grad or lora_b.requires_grad or g.requires_grad
        ):
            raise InputError(f"{name}_ has no gradient: add {name} to y instead, or call it under torch.no_grad()")
        if unwatched(y, x, lora_a, lora_b, g, *rest[:tensors]):
            product_(y, x, lora_a, lora_b, g, *rest)
            return
        check_no_tangents(y, x, lora_a, lora_b, g)
        with torch._C._AutoDispatchBelowAutograd():
            in_place(y, x, lora_a, lora_b, g, *rest)

    def fake_(y: Tensor, *inputs: Any) -> None:
        (check or _check_fakes)(*inputs)

    _library.impl(f"{name}_", product_, "CompositeExplicitAutograd")
    _library.impl(f"{name}_", autograd_, "Autograd")
    torch.library.register_fake(f"bdc::{name}_", fake_, lib=_library)


def register_without_gradient(
    name: str, arguments: str, function: Callable[..., Tensor], fake: Callable[..., Tensor]
) -> None:
    """Define the operator ``name`` of ``arguments``, as torch's schemas write them, and scaling, which returns a new tensor."""
    _library.define(f"{name}({arguments}, float scaling) -> Tensor")

    def autograd(*inputs: Any) -> Tensor:
        if torch.is_grad_enabled() and any(isinstance(t, Tensor) and t.requires_grad for t in inputs):
            raise InputError(f"torch.ops.bdc.{name} has no gradient: call bdc.ops.{name}, which has")
        with torch._C._AutoDispatchBelowAutograd():
            found: Tensor = getattr(torch.ops.bdc, name)(*inputs)
            return found

    _library.impl(name, function, "CompositeExplicitAutograd")
    _library.impl(name, autograd, "Autograd")
    torch.library.register_fake(f"bdc::{name}", fake, lib=_library)


def _arguments(others: str) -> str:
    return f"Tensor x, Tensor lora_a, Tensor lora_b, Tensor rank_weights, {others}"


class _Once(torch.autograd.Function):
    @staticmethod
    def forward(gradients: Callable[..., Any], *inputs: Any) -> Any:
        return gradients(*inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        raise InputError("the rank-wise product has no second derivative")

    @staticmethod
    def vmap(info: Any, in_dims: Any, *inputs: Any) -> Any:
        raise checks.no_vmap()


def once(gradients: Callable[..., Any], *inputs: Any) -> Any:
    """``gradients(*inputs)``; where they could be differentiated themselves, that is refused."""
    return _Once.apply(gradients, *inputs) if torch.is_grad_enabled() else gradients(*inputs)


def _check_fakes(x: Tensor, lora_a: Tensor, lora_b: Tensor, g: Tensor, *_: Any) -> None:
    """What shapes alone tell, but of the number of tokens, which may be anything in a program that is exported."""
    if lora_a.ndim == 3:
        lora_a, lora_b = lora_a[0], lora_b[0]
    checks.check_experts(lora_a, lora_b, x.shape[-1])
    checks.check_weights(g, lora_a.shape[0], x.dtype, x.device)


def _fake(x: Tensor, lora_a: Tensor, lora_b: Tensor, g: Tensor, *_: Any) -> Tensor:
    _check_fakes(x, lora_a, lora_b, g)
    return x.new_empty(x.shape[0], lora_b.shape[-2])


def _fake_with_h(x: Tensor, lora_a: Tensor, lora_b: Tensor, g: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    _check_fakes(x, lora_a, lora_b, g)
    h = x.new_empty(x.shape[0], lora_a.shape[-2], dtype=matmul.wide_dtype(x))
    return x.new_empty(x.shape[0], lora_b.shape[-2]), h


def _fake_backward(
    grad: Tensor, x: Tensor, lora_a: Tensor, lora_b: Tensor, g: Tensor, *rest: Any
) -> tuple[Tensor, ...]:
    return tuple(
        torch.empty_like(t, memory_format=torch.contiguous_format) if need else grad.new_empty(0)
        for t, need in zip((x, lora_a, lora_b, g), rest[-1], strict=True)
    )
