"""The product as operators of torch, ``torch.ops.bdc.*``: what torch.compile and torch.export see.

Eager code calls the kernels directly, since torch's dispatcher would cost more than a small product.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bdc.ops import checks, matmul
from bdc.ops.dispatch import add_product, backward, forward_with_h
from bdc.ops.extension import try_add

_ARGUMENTS = "Tensor x, Tensor lora_a, Tensor lora_b, Tensor rank_weights, Tensor? token_to_row, float scaling"

_library = torch.library.Library("bdc", "DEF")
_library.define(f"rankwise_lora({_ARGUMENTS}) -> Tensor")
_library.define(f"rankwise_lora_(Tensor(a!) y, {_ARGUMENTS}) -> ()")
# For training: also h, [T, R], which the gradients need.
_library.define(f"rankwise_lora_with_h({_ARGUMENTS}) -> (Tensor, Tensor)")
_library.define(
    "rankwise_lora_backward(Tensor grad, Tensor x, Tensor lora_a, Tensor lora_b, Tensor rank_weights, "
    "Tensor? token_to_row, Tensor h, float scaling, bool[4] needed) -> (Tensor, Tensor, Tensor, Tensor)"
)


def product(x: Tensor, lora_a: Tensor, lora_b: Tensor, g: Tensor, rows: Tensor | None, scaling: float) -> Tensor:
    """The product without a gradient; checks everything."""
    if x.ndim == 2 and lora_b.ndim == 2:
        y = x.new_empty(x.shape[0], lora_b.shape[0])
        if try_add(y, x, lora_a, lora_b, g, rows, scaling, None, True):
            return y
    checks.check_product(x, lora_a, lora_b, g, rows, scaling)
    return add_product(x.new_zeros(len(x), len(lora_b)), x, lora_a, lora_b, g, rows, scaling)


def product_(
    y: Tensor, x: Tensor, lora_a: Tensor, lora_b: Tensor, g: Tensor, rows: Tensor | None, scaling: float
) -> None:
    """The product added to ``y``, without a gradient; checks everything."""
    if y.ndim == 2 and try_add(y, x, lora_a, lora_b, g, rows, scaling):
        touch(y)
        return
    checks.check_product(x, lora_a, lora_b, g, rows, scaling)
    others = {"x": x, "lora_a": lora_a, "lora_b": lora_b, "rank_weights": g}
    if rows is not None:
        others["token_to_row"] = rows
    checks.check_output(y, others, len(x), len(lora_b))
    add_product(y, x, lora_a, lora_b, g, rows, scaling)
    touch(y)


# A tenth of a microsecond cheaper than its wrapper; tensors of inference mode, which have no version, pass.
_increment_version = getattr(torch._C, "_increment_version", torch.autograd.graph.increment_version)


def touch(y: Tensor) -> None:
    """Tell autograd of a write that it did not see: a graph that saved ``y`` must not be used."""
    _increment_version((y,))


def product_with_h(
    x: Tensor, lora_a: Tensor, lora_b: Tensor, g: Tensor, rows: Tensor | None, scaling: float
) -> tuple[Tensor, Tensor]:
    """The product and h [T, R] of the tokens that have a row, for the gradients; checks everything."""
    if x.ndim == 2 and lora_b.ndim == 2:
        y = x.new_empty(x.shape[0], lora_b.shape[0])
        h = g.new_empty(x.shape[0], lora_a.shape[0])  # the fast path wants g in float32, as h is
        if try_add(y, x, lora_a, lora_b, g, rows, scaling, h, True):
            return y, h
    checks.check_product(x, lora_a, lora_b, g, rows, scaling)
    return forward_with_h(x, lora_a, lora_b, g, rows, scaling)


def _backward(*arguments: Any) -> tuple[Tensor, ...]:
    # An operator returns tensors only: an empty one stands for a gradient that nobody needs.
    found = backward(*arguments)
    return tuple(arguments[0].new_empty(0) if gradient is None else gradient for gradient in found)


class Eager(torch.autograd.Function):
    """The product with h saved before the gate."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, lora_a: Tensor, lora_b: Tensor, g: Tensor, rows: Tensor | None, scaling: float
    ) -> Tensor:
        y, h = product_with_h(x, lora_a, lora_b, g, rows, scaling)
        ctx.save_for_backward(x, lora_a, lora_b, g, rows, h)
        ctx.scaling = scaling
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, lora_a, lora_b, g, rows, h = ctx.saved_tensors
        found = backward(grad, x, lora_a, lora_b, g, rows, h, ctx.scaling, ctx.needs_input_grad[:4])
        return *found, None, None


# autograd.Function.apply without its Python part, which is for torch.func and costs two microseconds.
_apply = super(torch.autograd.Function, Eager).apply  # type: ignore[misc]


def differentiable(x: Tensor, lora_a: Tensor, lora_b: Tensor, g: Tensor, rows: Tensor | None, scaling: float) -> Tensor:
    """The product of plain tensors outside of every transform and mode, with its gradient."""
    out: Tensor = _apply(x, lora_a, lora_b, g, rows, scaling)
    return out


class Traced(torch.autograd.Function):
    """The same made of operators, in the form that tracers and torch.func can see through, which costs more."""

    @staticmethod
    def forward(
        x: Tensor, lora_a: Tensor, lora_b: Tensor, g: Tensor, rows: Tensor | None, scaling: float
    ) -> tuple[Tensor, Tensor]:
        out: tuple[Tensor, Tensor] = torch.ops.bdc.rankwise_lora_with_h(x, lora_a, lora_b, g, rows, scaling)
        return out

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(*inputs[:5], output[1])
        ctx.scaling = inputs[5]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        needed = ctx.needs_input_grad[:4]
        found = torch.ops.bdc.rankwise_lora_backward(grads[0], *ctx.saved_tensors, ctx.scaling, list(needed))
        return *(gradient if need else None for gradient, need in zip(found, needed, strict=True)), None, None


_PLAIN = (Tensor, torch.nn.Parameter)


def _autograd(x: Tensor, lora_a: Tensor, lora_b: Tensor, g: Tensor, rows: Tensor | None, scaling: float) -> Tensor:
    wants_gradient = torch.is_grad_enabled() and (
        x.requires_grad or lora_a.requires_grad or lora_b.requires_grad or g.requires_grad
    )
    if (
        type(x) in _PLAIN
        and type(g) in _PLAIN
        and not torch._C._len_torch_dispatch_stack()
        and not torch._C._are_functorch_transforms_active()
    ):
        # Through the dispatcher again would cost more than a small product.
        return (differentiable if wants_gradient else product)(x, lora_a, lora_b, g, rows, scaling)
    if wants_gradient:
        out: Tensor = Traced.apply(x, lora_a, lora_b, g, rows, scaling)[0]  # type: ignore[no-untyped-call]
        return out
    with torch._C._AutoDispatchBelowAutograd():
        found: Tensor = torch.ops.bdc.rankwise_lora(x, lora_a, lora_b, g, rows, scaling)
        return found


_library.impl("rankwise_lora", product, "CompositeExplicitAutograd")
_library.impl("rankwise_lora", _autograd, "Autograd")
_library.impl("rankwise_lora_", product_, "CompositeExplicitAutograd")
_library.impl("rankwise_lora_with_h", product_with_h, "CompositeExplicitAutograd")
_library.impl("rankwise_lora_backward", _backward, "CompositeExplicitAutograd")


@torch.library.register_fake("bdc::rankwise_lora", lib=_library)
def _fake(x: Tensor, lora_a: Tensor, lora_b: Tensor, g: Tensor, rows: Tensor | None, scaling: float) -> Tensor:
    return x.new_empty(x.shape[0], lora_b.shape[0])


@torch.library.register_fake("bdc::rankwise_lora_", lib=_library)
def _fake_(y: Tensor, *_: Any) -> None:
    return None


@torch.library.register_fake("bdc::rankwise_lora_with_h", lib=_library)
def _fake_with_h(
    x: Tensor, lora_a: Tensor, lora_b: Tensor, g: Tensor, rows: Tensor | None, scaling: float
) -> tuple[Tensor, Tensor]:
    h = x.new_empty(x.shape[0], lora_a.shape[0], dtype=matmul.wide_dtype(x))
    return x.new_empty(x.shape[0], lora_b.shape[0]), h


@torch.library.register_fake("bdc::rankwise_lora_backward", lib=_library)
def _fake_backward(
    grad: Tensor,
    x: Tensor,
    lora_a: Tensor,
    lora_b: Tensor,
    g: Tensor,
    rows: Tensor | None,
    h: Tensor,
    scaling: float,
    needed: list[bool],
) -> tuple[Tensor, ...]:
    like = (x, lora_a, lora_b, g)
    return tuple(
        torch.empty_like(t, memory_format=torch.contiguous_format) if need else grad.new_empty(0)
        for t, need in zip(like, needed, strict=True)
    )
