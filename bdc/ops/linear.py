"""A linear layer with experts beside it, base and product together, which a GPU computes in one launch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_dynamo_compiling
from torch.nn import functional

from bdc.ops import checks, dispatch, operators
from bdc.ops.autocasting import autocasts
from bdc.ops.extension import unwatched
from bdc.ops.slices import add_product, check_experts, product


def rankwise_lora_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    lora_a: Tensor,
    lora_b: Tensor,
    rank_weights: Tensor,
    token_to_row: Tensor | None = None,
    scaling: float = 1.0,
    ends: Sequence[int] | None = None,
) -> Tensor:
    """``x W^T + bias``, and :func:`bdc.ops.rankwise_lora` added to it.

    On a GPU, in 16 bits and for up to 64 tokens, it is one launch (docs/op-measured.md), in which the base is rounded with the
    product: a token's base can differ by a rounding from that of ``torch.nn.functional.linear``, which is what is called otherwise.

    Args:
        x: [T, d_in], as in :func:`bdc.ops.rankwise_lora`.
        weight: W, [d_out, d_in]; ``bias``: [d_out] or None; both in the dtype of x.
        lora_a: [R, d_in]; ``lora_b``: [d_out, R]; ``rank_weights``: [N, R]; of several outputs those of
            :func:`bdc.ops.rankwise_lora_slices`, whose columns end before ``ends``.
        token_to_row, scaling: as in :func:`bdc.ops.rankwise_lora`.

    Returns:
        [T, d_out]; the base alone where the row is -1. Differentiable, once, as its two parts are.

    Raises:
        InputError: shapes, dtypes, devices, ends or rows do not fit.
    """
    ends = None if ends is None else checks.as_ends(ends)
    try:
        checks.check_matrices(x=x, lora_b=lora_b)
        tensors = (x, weight, bias, lora_a, lora_b, rank_weights)
        compiling = is_dynamo_compiling()
        wants_gradient = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
        casts = autocasts(x)
        if not (wants_gradient or casts):
            if compiling and x.device.type == "cuda":
                traced: Tensor = torch.ops.bdc.rankwise_lora_linear(
                    x, weight, bias, lora_a, lora_b, rank_weights, token_to_row, ends, scaling
                )
                return traced
            if not compiling and unwatched(*tensors, token_to_row):
                columns = (len(lora_b),) if ends is None else ends
                found = dispatch.linear(x, weight, bias, lora_a, lora_b, rank_weights, token_to_row, scaling, columns)
                if found is not None:
                    return found
        # What torch would broadcast is no layer.
        checks.check_base(x, weight, bias, lora_b.shape[0], same_dtype=not casts)
        y = functional.linear(x, weight, bias)
        if wants_gradient or not (compiling or unwatched(y, x, lora_a, lora_b, rank_weights, token_to_row)):
            return y + product(x, lora_a, lora_b, rank_weights, token_to_row, scaling, ends)
        return add_product(y, x, lora_a, lora_b, rank_weights, token_to_row, scaling, ends)
    except checks.MISUSE:
        named = {"x": x, "weight": weight, "lora_a": lora_a, "lora_b": lora_b, "rank_weights": rank_weights}
        checks.check_kinds(scaling, token_to_row, **named, **({} if bias is None else {"bias": bias}))
        raise


def _linear_op(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    lora_a: Tensor,
    lora_b: Tensor,
    g: Tensor,
    rows: Tensor | None,
    ends: Any,
    scaling: float,
) -> Tensor:
    with torch.no_grad():
        return rankwise_lora_linear(x, weight, bias, lora_a, lora_b, g, rows, scaling, ends)


def _fake_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    lora_a: Tensor,
    lora_b: Tensor,
    g: Tensor,
    rows: Tensor | None,
    ends: Any,
    scaling: float,
) -> Tensor:
    checks.check_matrices(x=x, lora_b=lora_b)
    checks.check_base(x, weight, bias, lora_b.shape[0])
    y = functional.linear(x, weight, bias)
    check_experts(x, lora_a, lora_b, g, checks.as_ends([lora_b.shape[0]] if ends is None else ends))
    return y


operators.register_without_gradient(
    "rankwise_lora_linear",
    "Tensor x, Tensor weight, Tensor? bias, Tensor lora_a, Tensor lora_b, Tensor rank_weights, Tensor? token_to_row, int[]? ends",
    _linear_op,
    _fake_linear,
)
