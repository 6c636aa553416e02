"""The product with and without a gradient, and its operators of torch.

Eager code calls the kernels directly, since torch's dispatcher would cost more than a small product.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bdc.ops import checks, operators
from bdc.ops.dispatch import add_product, backward, forward_with_h
from bdc.ops.extension import try_add


def product(x: Tensor, lora_a: Tensor, lora_b: Tensor, g: Tensor, rows: Tensor | None, scaling: float) -> Tensor:
    """The product without a gradient; checks everything."""
    if x.ndim == 2 and lora_b.ndim == 2:
        y = x.new_empty(x.shape[0], lora_b.shape[0])
        if try_add(y, x, lora_a, lora_b, g, rows, scaling, None, True):
            return y
    return checked(x, lora_a, lora_b, g, rows, scaling)


def checked(x: Tensor, lora_a: Tensor, lora_b: Tensor, g: Tensor, rows: Tensor | None, scaling: float) -> Tensor:
    """:func:`product` where try_add was asked already."""
    checks.check_product(x, lora_a, lora_b, g, rows, scaling)
    return add_product(x.new_zeros(len(x), len(lora_b)), x, lora_a, lora_b, g, rows, scaling)


def product_(
    y: Tensor, x: Tensor, lora_a: Tensor, lora_b: Tensor, g: Tensor, rows: Tensor | None, scaling: float
) -> None:
    """The product added to ``y``, without a gradient; checks everything."""
    if y.ndim == 2 and try_add(y, x, lora_a, lora_b, g, rows, scaling):
        increment_version((y,))
    else:
        checked_(y, x, lora_a, lora_b, g, rows, scaling)


def checked_(
    y: Tensor, x: Tensor, lora_a: Tensor, lora_b: Tensor, g: Tensor, rows: Tensor | None, scaling: float
) -> None:
    """:func:`product_` where try_add was asked already."""
    checks.check_product(x, lora_a, lora_b, g, rows, scaling)
    others = {"lora_a": lora_a, "lora_b": lora_b, "rank_weights": g, "token_to_row": rows}
    checks.check_output(y, x, others, len(x), len(lora_b))
    add_product(y, x, lora_a, lora_b, g, rows, scaling)
    increment_version((y,))


# A tenth of a microsecond cheaper than its wrapper; tensors of inference mode, which have no version, pass.
increment_version = getattr(torch._C, "_increment_version", torch.autograd.graph.increment_version)
"""Tell autograd of a write to each of a tuple of tensors that it did not see: a graph that saved one must not be used."""


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


class Eager(torch.autograd.Function):
    """The product with h saved before the gate."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, lora_a: Tensor, lora_b: Tensor, g: Tensor, rows: Tensor | None, scaling: float
    ) -> Tensor:
        y, h = product_with_h(x, lora_a, lora_b, g, rows, scaling)
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, lora_a, lora_b, g, rows, h)
        ctx.scaling = scaling
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, lora_a, lora_b, g, rows, h = ctx.saved_tensors
        if x is None:
            x = grad.new_empty(1).expand(len(grad), lora_a.shape[1])  # only the gradient of A reads it
        needed = ctx.needs_input_grad[:4]
        found = operators.once(backward, grad, x, lora_a, lora_b, g, rows, h, ctx.scaling, needed)
        return *found, None, None


# autograd.Function.apply without its Python part, which is for torch.func and costs two microseconds.
_apply = super(torch.autograd.Function, Eager).apply


def differentiable(x: Tensor, lora_a: Tensor, lora_b: Tensor, g: Tensor, rows: Tensor | None, scaling: float) -> Tensor:
    """The product of plain tensors outside of every transform and mode, with its gradient."""
    out: Tensor = _apply(x, lora_a, lora_b, g, rows, scaling)
    return out


traced = operators.register(
    "rankwise_lora", "Tensor? token_to_row", product, product_, product_with_h, backward, differentiable
)
"""The same as :func:`differentiable` made of operators, for tracers and torch.func, which costs more."""
