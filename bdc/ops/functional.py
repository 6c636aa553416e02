"""The product on tensors, with a gradient where one is wanted."""

from __future__ import annotations

import torch
from torch import Tensor, is_grad_enabled
from torch.compiler import is_dynamo_compiling

from bdc.errors import InputError
from bdc.ops import checks, library
from bdc.ops.autocasting import any_autocast, autocasts, cast
from bdc.ops.extension import try_add, unwatched
from bdc.ops.library import increment_version
from bdc.ops.watchers import PLAIN, check_no_tangents


def rankwise_lora(
    x: Tensor,
    lora_a: Tensor,
    lora_b: Tensor,
    rank_weights: Tensor,
    token_to_row: Tensor | None = None,
    scaling: float = 1.0,
) -> Tensor:
    """``scaling * ((x[t] A^T) * g[row[t]]) B^T`` for every token t.

    Args:
        x: [T, d_in], float32, bfloat16, float16 or float64.
        lora_a: [R, d_in], the A of all experts one below the other, R = experts * rank; dtype of x, or int8.
        lora_b: [d_out, R], the B of all experts side by side; dtype of lora_a.
        rank_weights: g, [N, R], a row per request; float32 or the dtype of x. With experts of int8, times their scales
            (:class:`bdc.ops.Int8Experts`).
        token_to_row: [T] int32 or int64, the row of g of each token, -1 for no adapter. None: row 0 for all if N is 1,
            else row t for token t.
        scaling: s, alpha / rank.

    Returns:
        [T, d_out] in the dtype of x, zero where the row is -1. Differentiable in x, lora_a, lora_b and rank_weights, once.
        Under autocast x, lora_a and lora_b are cast to its dtype, unless x is float64.

    Raises:
        InputError: shapes, dtypes, devices or rows do not fit.
    """
    try:
        if any_autocast() and autocasts(x):  # the first alone, since calls of Python add up
            dtype = torch.get_autocast_dtype(x.device.type)
            x, lora_a, lora_b, rank_weights = cast(dtype, x, lora_a, lora_b, rank_weights)
        if is_dynamo_compiling():
            traced: Tensor = torch.ops.bdc.rankwise_lora(x, lora_a, lora_b, rank_weights, token_to_row, scaling)
            return traced
        wants_gradient = is_grad_enabled() and (
            x.requires_grad or lora_a.requires_grad or lora_b.requires_grad or rank_weights.requires_grad
        )
        if not wants_gradient and type(x) in PLAIN and x.ndim == 2 and lora_b.ndim == 2:
            y = x.new_empty(x.shape[0], lora_b.shape[0])
            if try_add(y, x, lora_a, lora_b, rank_weights, token_to_row, scaling, None, True):
                return y
        if torch._C._are_functorch_transforms_active():
            checks.check_not_mapped(x, lora_a, lora_b, rank_weights, token_to_row)
            return library.traced(x, lora_a, lora_b, rank_weights, token_to_row, scaling)
        if not unwatched(x, lora_a, lora_b, rank_weights, token_to_row):
            checks.check_is_tensor(token_to_row)
            found: Tensor = torch.ops.bdc.rankwise_lora(x, lora_a, lora_b, rank_weights, token_to_row, scaling)
            return found
        if not wants_gradient:
            return library.checked(x, lora_a, lora_b, rank_weights, token_to_row, scaling)
        return library.differentiable(x, lora_a, lora_b, rank_weights, token_to_row, scaling)
    except checks.MISUSE:
        checks.check_kinds(scaling, token_to_row, x=x, lora_a=lora_a, lora_b=lora_b, rank_weights=rank_weights)
        raise


def rankwise_lora_(
    y: Tensor,
    x: Tensor,
    lora_a: Tensor,
    lora_b: Tensor,
    rank_weights: Tensor,
    token_to_row: Tensor | None = None,
    scaling: float = 1.0,
) -> Tensor:
    """Add :func:`rankwise_lora` to ``y`` [T, d_out] in place; tokens with row -1 are not written.

    Under autocast x, lora_a and lora_b are cast to the dtype of ``y``, unless x is float64.

    Returns:
        ``y``.

    Raises:
        InputError: as :func:`rankwise_lora`; also where ``y`` shares memory with another argument, or a gradient is wanted.
    """
    try:
        if any_autocast() and autocasts(x):  # the first alone, since calls of Python add up
            x, lora_a, lora_b, rank_weights = cast(y.dtype, x, lora_a, lora_b, rank_weights)
        if is_grad_enabled() and (
            y.requires_grad
            or x.requires_grad
            or lora_a.requires_grad
            or lora_b.requires_grad
            or rank_weights.requires_grad
        ):
            checks.check_product(x, lora_a, lora_b, rank_weights, token_to_row, scaling)
            raise InputError(
                "rankwise_lora_ has no gradient: add rankwise_lora to y instead, or call it under torch.no_grad()"
            )
        if is_dynamo_compiling():
            torch.ops.bdc.rankwise_lora_(y, x, lora_a, lora_b, rank_weights, token_to_row, scaling)
            return y
        if y.ndim == 2 and try_add(y, x, lora_a, lora_b, rank_weights, token_to_row, scaling):
            increment_version((y,))
            return y
        checks.check_not_mapped(y, x, lora_a, lora_b, rank_weights, token_to_row)
        check_no_tangents(y, x, lora_a, lora_b, rank_weights)
        if unwatched(y, x, lora_a, lora_b, rank_weights, token_to_row):
            library.checked_(y, x, lora_a, lora_b, rank_weights, token_to_row, scaling)
        else:
            checks.check_is_tensor(token_to_row)
            torch.ops.bdc.rankwise_lora_(y, x, lora_a, lora_b, rank_weights, token_to_row, scaling)
        return y
    except checks.MISUSE:
        checks.check_kinds(scaling, token_to_row, y=y, x=x, lora_a=lora_a, lora_b=lora_b, rank_weights=rank_weights)
        raise
