"""A layer for decoding in one launch: [x, gated h] [W, B]^T as one sum, or its second part alone, added to y.

The programs that begin first make h, each a split of a tile; the last to arrive at a tile adds its planes in their order and gates
them. All others make outputs, W first, so that h is there when B's turn comes. A program that waits for h waits for programs that
have begun: any number of them may run at once. Counters are zero again when the launch ends.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _make_gated(
    item,
    x_ptr,
    a_ptr,
    g_ptr,
    row,
    planes_ptr,
    gated_ptr,
    counters_ptr,
    scaling,
    tokens,
    ranks,
    d_in,
    x_stride,
    a_stride,
    g_stride,
    BLOCK_T: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SPLITS: tl.constexpr,
    STEPS: tl.constexpr,
):
    """One split of one tile of h; the last to arrive at the tile gates it."""
    tiles = tl.cdiv(ranks, BLOCK_R)
    tile, split = item % tiles, item // tiles
    t = tl.arange(0, BLOCK_T)
    r = tile * BLOCK_R + tl.arange(0, BLOCK_R)
    k = split * STEPS * BLOCK_K + tl.arange(0, BLOCK_K)
    x_rows = x_ptr + t.to(tl.int64)[:, None] * x_stride
    a_rows = a_ptr + r.to(tl.int64)[None, :] * a_stride
    sums = tl.zeros((BLOCK_T, BLOCK_R), dtype=tl.float32)
    for _ in range(STEPS):
        x = tl.load(x_rows + k[None, :], mask=(t[:, None] < tokens) & (k[None, :] < d_in), other=0.0)
        a = tl.load(a_rows + k[:, None], mask=(r[None, :] < ranks) & (k[:, None] < d_in), other=0.0)
        sums = tl.dot(x, a, sums, input_precision="ieee")
        k += BLOCK_K
    places = planes_ptr + tile * SPLITS * BLOCK_T * BLOCK_R + t[:, None] * BLOCK_R + tl.arange(0, BLOCK_R)[None, :]
    tl.store(places + split * BLOCK_T * BLOCK_R, sums)
    tl.debug_barrier()
    if tl.atomic_add(counters_ptr + 3 + tile, 1, sem="acq_rel") == SPLITS - 1:
        tl.debug_barrier()
        h = tl.zeros((BLOCK_T, BLOCK_R), dtype=tl.float32)
        for other in tl.static_range(SPLITS):
            # Past the first-level cache, which does not see what other programs write.
            h += tl.load(places + other * BLOCK_T * BLOCK_R, cache_modifier=".cg")
        mask = (row[:, None] >= 0) & (r[None, :] < ranks)
        weights = g_ptr + tl.where(row >= 0, row, 0).to(tl.int64)[:, None] * g_stride + r[None, :]
        gated = tl.where(mask, h * (tl.load(weights, mask=mask, other=0.0) * scaling), 0.0)
        tl.store(gated_ptr + t[:, None] * tiles * BLOCK_R + r[None, :], gated.to(gated_ptr.dtype.element_ty))
        tl.store(counters_ptr + 3 + tile, 0)
        tl.debug_barrier()
        tl.atomic_add(counters_ptr + 1, 1, sem="release")


@triton.jit
def layer(
    y_ptr,  # [tokens, d_out]
    x_ptr,  # [tokens, d_in], tokens <= BLOCK_T
    w_ptr,  # [d_out, d_in]
    bias_ptr,  # [d_out]
    a_ptr,  # [ranks, d_in]
    b_ptr,  # [d_out, slice_ranks]
    g_ptr,  # [requests, ranks] float32
    rows_ptr,  # [tokens] int32, -1 for no adapter
    planes_ptr,  # [rank tiles, SPLITS, BLOCK_T, RANK_TILE] float32
    gated_ptr,  # [BLOCK_T, rank tiles * RANK_TILE]
    counters_ptr,  # [3 + rank tiles] int32: tickets, tiles that are ready, programs that are done; arrivals
    scaling,
    tokens,
    ranks,
    slice_ranks,  # of an output; the slices of outputs that share x have ranks of their own
    d_in,
    d_out,
    end_0,  # columns of y where slices end, the last at d_out; multiples of BLOCK_N
    end_1,
    end_2,
    y_stride,
    x_stride,
    w_stride,
    a_stride,
    b_stride,
    g_stride,
    HAS_BASE: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_ROWS: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_R: tl.constexpr,
    RANK_TILE: tl.constexpr,
    SPLITS: tl.constexpr,
    STEPS: tl.constexpr,
    SLICES: tl.constexpr,  # up to 4
):
    t = tl.arange(0, BLOCK_T)
    if HAS_ROWS:
        row = tl.load(rows_ptr + t, mask=t < tokens, other=-1)
    else:
        row = tl.where(t < tokens, t, -1)
    tiles = tl.cdiv(ranks, RANK_TILE)
    item = tl.atomic_add(counters_ptr, 1, sem="relaxed")
    if item < tiles * SPLITS:
        _make_gated(
            item,
            x_ptr,
            a_ptr,
            g_ptr,
            row,
            planes_ptr,
            gated_ptr,
            counters_ptr,
            scaling,
            tokens,
            ranks,
            d_in,
            x_stride,
            a_stride,
            g_stride,
            BLOCK_T,
            RANK_TILE,
            BLOCK_K,
            SPLITS,
            STEPS,
        )
    else:
        first_output = (item - tiles * SPLITS) * BLOCK_N
        n = first_output + tl.arange(0, BLOCK_N)
        base = tl.zeros((BLOCK_T, BLOCK_N), dtype=tl.float32)
        if HAS_BASE:
            x_rows = x_ptr + t.to(tl.int64)[:, None] * x_stride
            w_rows = w_ptr + n.to(tl.int64)[None, :] * w_stride
            for start in range(0, d_in, BLOCK_K):
                k = start + tl.arange(0, BLOCK_K)
                x = tl.load(x_rows + k[None, :], mask=(t[:, None] < tokens) & (k[None, :] < d_in), other=0.0)
                w = tl.load(w_rows + k[:, None], mask=(n[None, :] < d_out) & (k[:, None] < d_in), other=0.0)
                base = tl.dot(x, w, base, input_precision="ieee")

        part = first_output * 0
        if SLICES > 1:
            part += (first_output >= end_0).to(tl.int32)
        if SLICES > 2:
            part += (first_output >= end_1).to(tl.int32)
        if SLICES > 3:
            part += (first_output >= end_2).to(tl.int32)

        # B is asked for before h is there to multiply it with.
        r = tl.arange(0, BLOCK_R)
        b_rows = b_ptr + n.to(tl.int64)[None, :] * b_stride
        gated_rows = gated_ptr + t[:, None] * tiles * RANK_TILE + part * slice_ranks
        b = tl.load(b_rows + r[:, None], mask=(n[None, :] < d_out) & (r[:, None] < slice_ranks), other=0.0)
        while tl.atomic_add(counters_ptr + 1, 0, sem="acquire") < tiles:
            pass
        tl.debug_barrier()
        # Apart from the base, so that a token without an adapter can leave it out.
        added = tl.zeros((BLOCK_T, BLOCK_N), dtype=tl.float32)
        gated = tl.load(gated_rows + r[None, :], mask=r[None, :] < slice_ranks, other=0.0, cache_modifier=".cg")
        added = tl.dot(gated, b, added, input_precision="ieee")
        for start in range(BLOCK_R, slice_ranks, BLOCK_R):
            r = start + tl.arange(0, BLOCK_R)
            b = tl.load(b_rows + r[:, None], mask=(n[None, :] < d_out) & (r[:, None] < slice_ranks), other=0.0)
            gated = tl.load(gated_rows + r[None, :], mask=r[None, :] < slice_ranks, other=0.0, cache_modifier=".cg")
            added = tl.dot(gated, b, added, input_precision="ieee")

        places = y_ptr + t.to(tl.int64)[:, None] * y_stride + n[None, :]
        inside = (t[:, None] < tokens) & (n[None, :] < d_out)
        if HAS_BASE:
            sums = tl.where(row[:, None] >= 0, base + added, base)
            if HAS_BIAS:
                sums += tl.load(bias_ptr + n, mask=n < d_out, other=0.0).to(tl.float32)[None, :]
            tl.store(places, sums.to(y_ptr.dtype.element_ty), mask=inside)
        else:
            active = inside & (row[:, None] >= 0)
            y = tl.load(places, mask=active, other=0.0)
            tl.store(places, (y.to(tl.float32) + added).to(y.dtype), mask=active & (added != 0))

    tl.debug_barrier()
    if tl.atomic_add(counters_ptr + 2, 1, sem="acq_rel") == tl.num_programs(0) - 1:
        for i in tl.static_range(3):
            tl.store(counters_ptr + i, 0)
