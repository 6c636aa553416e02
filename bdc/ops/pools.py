"""The product with several pools of experts: each row of rank weights takes the experts of its own pool."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.compiler import is_dynamo_compiling

from bdc.ops import checks, dispatch, matmul, operators
from bdc.ops.autocasting import autocasts, cast
from bdc.ops.extension import try_add
from bdc.ops.library import increment_version


def rankwise_lora_pools(
    x: Tensor,
    lora_a: Tensor,
    lora_b: Tensor,
    rank_weights: Tensor,
    row_to_pool: Tensor,
    token_to_row: Tensor | None = None,
    scaling: float = 1.0,
) -> Tensor:
    """:func:`bdc.ops.rankwise_lora` with the experts of pool ``row_to_pool[row[t]]`` for token t.

    The same as one call per pool in which tokens of other pools have row -1; tokens may come in any order, and each pool's
    experts are read once.

    Args:
        x: [T, d_in], float32, bfloat16, float16 or float64.
        lora_a: [P, R, d_in], the stacked A of each pool; dtype of x, or int8 as in :func:`bdc.ops.rankwise_lora`.
        lora_b: [P, d_out, R], the stacked B; dtype of lora_a.
        rank_weights: g, [N, R], a row per request; float32 or the dtype of x.
        row_to_pool: [N] int32 or int64, in [0, P).
        token_to_row, scaling: as in :func:`bdc.ops.rankwise_lora`.

    Returns:
        [T, d_out] in the dtype of x, zero where the row is -1. Differentiable in x, lora_a, lora_b and rank_weights, once.

    Raises:
        InputError: shapes, dtypes, devices, pools or rows do not fit.
    """
    try:
        if autocasts(x):
            dtype = torch.get_autocast_dtype(x.device.type)
            x, lora_a, lora_b, rank_weights = cast(dtype, x, lora_a, lora_b, rank_weights)
        if not is_dynamo_compiling() and torch._C._are_functorch_transforms_active():
            checks.check_not_mapped(x, lora_a, lora_b, rank_weights, row_to_pool, token_to_row)
            return _traced(x, lora_a, lora_b, rank_weights, row_to_pool, token_to_row, scaling)
        found: Tensor = torch.ops.bdc.rankwise_lora_pools(
            x, lora_a, lora_b, rank_weights, row_to_pool, token_to_row, scaling
        )
        return found
    except checks.MISUSE:
        tensors = {"x": x, "lora_a": lora_a, "lora_b": lora_b, "rank_weights": rank_weights, "row_to_pool": row_to_pool}
        checks.check_kinds(scaling, token_to_row, **tensors)
        raise


def rankwise_lora_pools_(
    y: Tensor,
    x: Tensor,
    lora_a: Tensor,
    lora_b: Tensor,
    rank_weights: Tensor,
    row_to_pool: Tensor,
    token_to_row: Tensor | None = None,
    scaling: float = 1.0,
) -> Tensor:
    """Add :func:`rankwise_lora_pools` to ``y`` [T, d_out] in place; tokens with row -1 are not written.

    Under autocast x, lora_a and lora_b are cast to the dtype of ``y``, unless x is float64.

    Returns:
        ``y``.

    Raises:
        InputError: as :func:`rankwise_lora_pools`; also where ``y`` shares memory with another argument, or a gradient is
            wanted.
    """
    try:
        if not is_dynamo_compiling():
            checks.check_not_mapped(y, x, lora_a, lora_b, rank_weights, row_to_pool, token_to_row)
        if autocasts(x):
            x, lora_a, lora_b, rank_weights = cast(y.dtype, x, lora_a, lora_b, rank_weights)
        torch.ops.bdc.rankwise_lora_pools_(y, x, lora_a, lora_b, rank_weights, row_to_pool, token_to_row, scaling)
        return y
    except checks.MISUSE:
        tensors = {"y": y, "x": x, "lora_a": lora_a, "lora_b": lora_b, "rank_weights": rank_weights}
        checks.check_kinds(scaling, token_to_row, **tensors, row_to_pool=row_to_pool)
        raise


def _product(
    x: Tensor, lora_a: Tensor, lora_b: Tensor, g: Tensor, pools: Tensor, rows: Tensor | None, scaling: float
) -> Tensor:
    if x.ndim == 2 and lora_b.ndim == 3:
        y = x.new_empty(len(x), lora_b.shape[1])
        if try_add(y, x, lora_a, lora_b, g, rows, scaling, None, True, pools):
            return y
    checks.check_pools(x, lora_a, lora_b, g, pools, rows, scaling)
    y = x.new_zeros(len(x), lora_b.shape[1])
    for pool, here in _rows_by_pool(lora_a, g, pools, rows, len(x)):
        dispatch.add_product(y, x, lora_a[pool], lora_b[pool], g, here, scaling)
    return y


def _product_(
    y: Tensor, x: Tensor, lora_a: Tensor, lora_b: Tensor, g: Tensor, pools: Tensor, rows: Tensor | None, scaling: float
) -> None:
    if y.ndim == 2 and try_add(y, x, lora_a, lora_b, g, rows, scaling, None, False, pools):
        increment_version((y,))
        return
    checks.check_pools(x, lora_a, lora_b, g, pools, rows, scaling)
    others = {"lora_a": lora_a, "lora_b": lora_b, "rank_weights": g, "row_to_pool": pools, "token_to_row": rows}
    checks.check_output(y, x, others, len(x), lora_b.shape[1])
    for pool, here in _rows_by_pool(lora_a, g, pools, rows, len(x)):
        dispatch.add_product(y, x, lora_a[pool], lora_b[pool], g, here, scaling)
    increment_version((y,))


def _product_with_h(
    x: Tensor, lora_a: Tensor, lora_b: Tensor, g: Tensor, pools: Tensor, rows: Tensor | None, scaling: float
) -> tuple[Tensor, Tensor]:
    if x.ndim == 2 and lora_b.ndim == 3:
        y, h = x.new_empty(len(x), lora_b.shape[1]), g.new_empty(len(x), lora_a.shape[1])
        if try_add(y, x, lora_a, lora_b, g, rows, scaling, h, True, pools):
            return y, h
    checks.check_pools(x, lora_a, lora_b, g, pools, rows, scaling)
    y = x.new_zeros(len(x), lora_b.shape[1])
    h = x.new_zeros(len(x), lora_a.shape[1], dtype=matmul.wide_dtype(x))
    for pool, here in _rows_by_pool(lora_a, g, pools, rows, len(x)):
        at = _tokens_of(here)
        part, own = dispatch.forward_with_h(x[at], lora_a[pool], lora_b[pool], g, here[at], scaling)
        y[at], h[at] = part, own
    return y, h


def _backward(
    grad: Tensor,
    x: Tensor,
    lora_a: Tensor,
    lora_b: Tensor,
    g: Tensor,
    pools: Tensor,
    rows: Tensor | None,
    h: Tensor,
    scaling: float,
    needed: list[bool],
) -> tuple[Tensor, ...]:
    found = [
        torch.zeros_like(t, memory_format=torch.contiguous_format) if need else x.new_empty(0)
        for t, need in zip((x, lora_a, lora_b, g), needed, strict=True)
    ]
    for pool, here in _rows_by_pool(lora_a, g, pools, rows, len(x)):
        at = _tokens_of(here)
        dx, da, db, dg = dispatch.backward(
            grad[at], x[at], lora_a[pool], lora_b[pool], g, here[at], h[at], scaling, tuple(needed)
        )
        if dx is not None:
            found[0][at] = dx
        if da is not None:
            found[1][pool] = da
        if db is not None:
            found[2][pool] = db
        if dg is not None:
            found[3] += dg  # zero for rows of other pools
    return tuple(found)


def _rows_by_pool(
    lora_a: Tensor, g: Tensor, pools: Tensor, rows: Tensor | None, tokens: int
) -> Iterator[tuple[int, Tensor]]:
    """Each pool with tokens, and the row of each token, -1 for those of other pools; on a GPU all pools, to not wait for it."""
    if rows is None:
        rows = torch.arange(tokens, device=pools.device) if len(g) > 1 else pools.new_zeros(tokens)
    if not len(g):
        return
    of_token = pools[rows.clamp_min(0)].masked_fill(rows < 0, -1)
    present = of_token.unique().tolist() if pools.device.type == "cpu" else range(len(lora_a))
    for pool in present:
        if pool >= 0:
            yield pool, rows.masked_fill(of_token != pool, -1)


def _tokens_of(rows: Tensor) -> Tensor:
    return (rows >= 0).nonzero().squeeze(1)


_traced = operators.register(
    "rankwise_lora_pools",
    "Tensor row_to_pool, Tensor? token_to_row",
    _product,
    _product_,
    _product_with_h,
    _backward,
)
