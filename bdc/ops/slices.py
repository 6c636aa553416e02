"""The product with several outputs that share x, as merged q, k and v or gate and up projections have them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_dynamo_compiling

from bdc.errors import InputError
from bdc.ops import checks, dispatch, operators
from bdc.ops.autocasting import autocasts, cast
from bdc.ops.extension import try_add, unwatched
from bdc.ops.functional import rankwise_lora, rankwise_lora_
from bdc.ops.library import increment_version
from bdc.ops.outputs import outputs
from bdc.ops.watchers import check_no_tangents


def rankwise_lora_slices(
    x: Tensor,
    lora_a: Tensor,
    lora_b: Tensor,
    rank_weights: Tensor,
    ends: Sequence[int],
    token_to_row: Tensor | None = None,
    scaling: float = 1.0,
) -> Tensor:
    """One :func:`bdc.ops.rankwise_lora` per slice of the output, side by side; on a CPU in one pass over ``x``.

    Args:
        x: [T, d_in], as in :func:`bdc.ops.rankwise_lora`.
        lora_a: [S * R, d_in], the stacked A of the first slice, then that of the next, R ranks each.
        lora_b: [d_out, R], row o of the slice that column o belongs to.
        rank_weights: g, [N, S * R], slice after slice.
        ends: the column before which each slice ends, S rising numbers, the last of which is d_out.
        token_to_row, scaling: as in :func:`bdc.ops.rankwise_lora`.

    Returns:
        [T, d_out] in the dtype of x, zero where the row is -1. Differentiable in x, lora_a, lora_b and rank_weights, once.

    Raises:
        InputError: shapes, dtypes, devices, ends or rows do not fit.
    """
    ends = checks.as_ends(ends)
    try:
        wants_gradient = torch.is_grad_enabled() and any(t.requires_grad for t in (x, lora_a, lora_b, rank_weights))
        if not (wants_gradient or autocasts(x)) and x.ndim == 2 and lora_b.ndim == 2:
            if is_dynamo_compiling():
                y = x.new_zeros(x.shape[0], lora_b.shape[0])
                return rankwise_lora_slices_(y, x, lora_a, lora_b, rank_weights, ends, token_to_row, scaling)
            y = x.new_empty(x.shape[0], lora_b.shape[0])
            if try_add(y, x, lora_a, lora_b, rank_weights, token_to_row, scaling, None, True, None, ends):
                return y
            if unwatched(x, lora_a, lora_b, rank_weights, token_to_row):
                _check(x, lora_a, lora_b, rank_weights, token_to_row, ends, scaling)
                dispatch.add_slices(y.zero_(), x, lora_a, lora_b, rank_weights, token_to_row, scaling, ends)
                return y
        parts = _parts(lora_a, lora_b, rank_weights, ends)
        return torch.cat([rankwise_lora(x, a, b, g, token_to_row, scaling) for _, a, b, g in parts], 1)
    except checks.MISUSE:
        checks.check_kinds(scaling, token_to_row, x=x, lora_a=lora_a, lora_b=lora_b, rank_weights=rank_weights)
        raise


def rankwise_lora_slices_(
    y: Tensor,
    x: Tensor,
    lora_a: Tensor,
    lora_b: Tensor,
    rank_weights: Tensor,
    ends: Sequence[int],
    token_to_row: Tensor | None = None,
    scaling: float = 1.0,
) -> Tensor:
    """Add :func:`rankwise_lora_slices` to ``y`` [T, d_out] in place; tokens with row -1 are not written.

    Returns:
        ``y``.

    Raises:
        InputError: as :func:`rankwise_lora_slices`; also where ``y`` shares memory with another argument, or a gradient is
            wanted.
    """
    ends = checks.as_ends(ends)
    try:
        tensors = (y, x, lora_a, lora_b, rank_weights)
        if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
            raise InputError(
                "rankwise_lora_slices_ has no gradient: add rankwise_lora_slices to y, or call it under torch.no_grad()"
            )
        if autocasts(x):
            x, lora_a, lora_b, rank_weights = cast(y.dtype, x, lora_a, lora_b, rank_weights)
        if is_dynamo_compiling():
            torch.ops.bdc.rankwise_lora_slices_(y, x, lora_a, lora_b, rank_weights, token_to_row, ends, scaling)
        else:
            _add(y, x, lora_a, lora_b, rank_weights, token_to_row, ends, scaling)
        return y
    except checks.MISUSE:
        checks.check_kinds(scaling, token_to_row, y=y, x=x, lora_a=lora_a, lora_b=lora_b, rank_weights=rank_weights)
        raise


def product(
    x: Tensor, a: Tensor, b: Tensor, g: Tensor, rows: Tensor | None, scaling: float, ends: Sequence[int] | None
) -> Tensor:
    """The product of one output, or of several where there are ``ends``."""
    if ends is None:
        return rankwise_lora(x, a, b, g, rows, scaling)
    return rankwise_lora_slices(x, a, b, g, ends, rows, scaling)


def add_product(
    y: Tensor,
    x: Tensor,
    a: Tensor,
    b: Tensor,
    g: Tensor,
    rows: Tensor | None,
    scaling: float,
    ends: Sequence[int] | None,
) -> Tensor:
    """:func:`product` added to ``y`` in place."""
    if ends is None:
        return rankwise_lora_(y, x, a, b, g, rows, scaling)
    return rankwise_lora_slices_(y, x, a, b, g, ends, rows, scaling)


def _add(
    y: Tensor,
    x: Tensor,
    lora_a: Tensor,
    lora_b: Tensor,
    g: Tensor,
    rows: Tensor | None,
    ends: tuple[int, ...],
    scaling: float,
) -> None:
    """The product added to ``y``, without a gradient; checks everything."""
    if y.ndim == 2 and try_add(y, x, lora_a, lora_b, g, rows, scaling, None, False, None, ends):
        increment_version((y,))
        return
    check_no_tangents(y, x, lora_a, lora_b, g)
    if not unwatched(y, x, lora_a, lora_b, g, rows):
        for columns, own_a, own_b, own_g in _parts(lora_a, lora_b, g, ends):
            rankwise_lora_(y[:, columns], x, own_a, own_b, own_g, rows, scaling)
        return
    _check(x, lora_a, lora_b, g, rows, ends, scaling)
    others = {"lora_a": lora_a, "lora_b": lora_b, "rank_weights": g, "token_to_row": rows}
    checks.check_output(y, x, others, len(x), len(lora_b))
    dispatch.add_slices(y, x, lora_a, lora_b, g, rows, scaling, ends)
    increment_version((y,))


def _check(
    x: Tensor, lora_a: Tensor, lora_b: Tensor, g: Tensor, rows: Tensor | None, ends: tuple[int, ...], scaling: float
) -> None:
    """All arguments but y; those of one output stand for the others', which have as many ranks."""
    checks.check_slices(lora_a, lora_b, ends, g)
    ranks = lora_b.shape[1]
    checks.check_product(x, lora_a[:ranks], lora_b, g[:, :ranks], rows, scaling)


def _add_op(
    y: Tensor, x: Tensor, lora_a: Tensor, lora_b: Tensor, g: Tensor, rows: Tensor | None, ends: Any, scaling: float
) -> None:
    _add(y, x, lora_a, lora_b, g, rows, checks.as_ends(ends), scaling)


def _check_fakes(
    x: Tensor, lora_a: Tensor, lora_b: Tensor, g: Tensor, rows: Tensor | None, ends: Any, scaling: float
) -> None:
    check_experts(x, lora_a, lora_b, g, checks.as_ends(ends))


def check_experts(x: Tensor, lora_a: Tensor, lora_b: Tensor, g: Tensor, ends: tuple[int, ...]) -> None:
    """What shapes alone tell; those of one output stand for the others', which have as many ranks."""
    checks.check_slices(lora_a, lora_b, ends, g)
    ranks = lora_b.shape[1]
    checks.check_experts(lora_a[:ranks], lora_b, x.shape[-1])
    checks.check_weights(g[:, :ranks], ranks, x.dtype, x.device)


def _parts(
    lora_a: Tensor, lora_b: Tensor, g: Tensor, ends: tuple[int, ...]
) -> Iterator[tuple[slice, Tensor, Tensor, Tensor]]:
    """Each slice's columns of the output, and its A, B and g."""
    checks.check_slices(lora_a, lora_b, ends, g)
    for columns, own in outputs(ends, lora_b.shape[1]):
        yield columns, lora_a[own], lora_b[columns], g[:, own]


operators.register_in_place("rankwise_lora_slices", "Tensor? token_to_row, int[] ends", _add_op, _check_fakes)
