"""Gradients. With U = dY B (`shrink`, transposed) and h before the gate:

dP = s g U; dA = dP^T X; dB = dY^T (s g h); dg[i] = s times the sum of h U over the tokens of row i.
Every sum is one program's, in the order of the tokens: equal inputs give equal bits.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def gate_gradient(
    planes_ptr,  # [splits, tokens, ranks] float32, of U
    h_ptr,  # [tokens, ranks] float32
    g_ptr,  # [requests, ranks] float32
    rows_ptr,  # [tokens] int32, -1 for no adapter
    dp_ptr,  # [tokens, ranks]: s g U, zero for a token without adapter
    gated_ptr,  # [tokens, ranks]: s g h, likewise
    products_ptr,  # [tokens, ranks] float32: s h U, likewise
    scaling,
    tokens,
    ranks,
    g_stride,
    SPLITS: tl.constexpr,
    HAS_ROWS: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    t = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    r = tl.program_id(1) * BLOCK_R + tl.arange(0, BLOCK_R)
    if HAS_ROWS:
        row = tl.load(rows_ptr + t, mask=t < tokens, other=-1)
    else:
        row = tl.where(t < tokens, t, -1)
    inside = (t[:, None] < tokens) & (r[None, :] < ranks)
    active = (row[:, None] >= 0) & inside
    places = t.to(tl.int64)[:, None] * ranks + r[None, :]
    u = tl.zeros((BLOCK_T, BLOCK_R), dtype=tl.float32)
    for split in tl.static_range(SPLITS):
        u += tl.load(planes_ptr + tl.full((), split, tl.int64) * tokens * ranks + places, mask=active, other=0.0)
    weights = g_ptr + tl.where(row >= 0, row, 0).to(tl.int64)[:, None] * g_stride + r[None, :]
    g = tl.load(weights, mask=active, other=0.0) * scaling
    h = tl.load(h_ptr + places, mask=active, other=0.0)
    tl.store(dp_ptr + places, (g * u).to(dp_ptr.dtype.element_ty), mask=inside)
    tl.store(gated_ptr + places, (g * h).to(gated_ptr.dtype.element_ty), mask=inside)
    tl.store(products_ptr + places, scaling * h * u, mask=inside)


@triton.jit
def sum_by_row(
    products_ptr,  # [tokens, ranks] float32
    rows_ptr,  # [tokens] int32, -1 for no adapter
    dg_ptr,  # [requests, ranks] float32
    tokens,
    ranks,
    HAS_ROWS: tl.constexpr,  # without: one request, all tokens are its
    BLOCK_T: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    request = tl.program_id(0)
    r = tl.program_id(1) * BLOCK_R + tl.arange(0, BLOCK_R)
    sums = tl.zeros((BLOCK_R,), dtype=tl.float32)
    for start in range(0, tokens, BLOCK_T):
        t = start + tl.arange(0, BLOCK_T)
        mine = t < tokens
        if HAS_ROWS:
            mine = tl.load(rows_ptr + t, mask=mine, other=-1) == request
        places = products_ptr + t.to(tl.int64)[:, None] * ranks + r[None, :]
        sums += tl.sum(tl.load(places, mask=mine[:, None] & (r[None, :] < ranks), other=0.0), axis=0)
    tl.store(dg_ptr + request.to(tl.int64) * ranks + r, sums, mask=r < ranks)


@triton.jit
def outer(
    left_ptr,  # [tokens, rows]
    right_ptr,  # [tokens, columns]
    token_to_row_ptr,  # [tokens] int32; tokens with -1 are left out, whatever they hold
    out_ptr,  # [rows, columns]: the sum over the tokens of left[t]^T right[t]
    tokens,
    rows,
    columns,
    left_stride,
    right_stride,
    out_stride,
    HAS_ROWS: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    sums = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for start in range(0, tokens, BLOCK_T):
        t = start + tl.arange(0, BLOCK_T)
        active = t < tokens
        if HAS_ROWS:
            active = tl.load(token_to_row_ptr + t, mask=active, other=-1) >= 0
        place = t.to(tl.int64)
        left = tl.load(
            left_ptr + place[None, :] * left_stride + m[:, None], mask=active[None, :] & (m[:, None] < rows), other=0.0
        )
        right = tl.load(
            right_ptr + place[:, None] * right_stride + n[None, :],
            mask=active[:, None] & (n[None, :] < columns),
            other=0.0,
        )
        sums = tl.dot(left, right, sums, input_precision="ieee")
    places = out_ptr + m.to(tl.int64)[:, None] * out_stride + n[None, :]
    tl.store(places, sums.to(out_ptr.dtype.element_ty), mask=(m[:, None] < rows) & (n[None, :] < columns))
