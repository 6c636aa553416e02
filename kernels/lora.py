"""The rank-wise product in two launches: shrink to planes of h, then gate and expand.

    h = x A^T;  y += s (h * g[row]) B^T

`shrink` splits the sum over d_in among programs, each of which writes a float32 plane of its own; `expand` adds the planes in
their order, so equal inputs give equal bits. Written for what Triton 3.6 to 3.9 share.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def shrink(
    x_ptr,  # [tokens, d_in]
    a_ptr,  # [ranks, d_in]
    planes_ptr,  # [splits, tokens, ranks] float32
    tokens,
    ranks,
    d_in,
    x_stride,
    a_stride,
    BLOCK_T: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STEPS: tl.constexpr,  # of BLOCK_K for each split
):
    t = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    r = tl.program_id(1) * BLOCK_R + tl.arange(0, BLOCK_R)
    split = tl.program_id(2)
    k = split * STEPS * BLOCK_K + tl.arange(0, BLOCK_K)
    x_rows = x_ptr + t.to(tl.int64)[:, None] * x_stride
    a_rows = a_ptr + r.to(tl.int64)[None, :] * a_stride
    sums = tl.zeros((BLOCK_T, BLOCK_R), dtype=tl.float32)
    for _ in range(STEPS):
        x = tl.load(x_rows + k[None, :], mask=(t[:, None] < tokens) & (k[None, :] < d_in), other=0.0)
        a = tl.load(a_rows + k[:, None], mask=(r[None, :] < ranks) & (k[:, None] < d_in), other=0.0)
        sums = tl.dot(x, a, sums, input_precision="ieee")
        k += BLOCK_K
    places = (split.to(tl.int64) * tokens + t[:, None]) * ranks + r[None, :]
    tl.store(planes_ptr + places, sums, mask=(t[:, None] < tokens) & (r[None, :] < ranks))


@triton.jit
def expand(
    y_ptr,  # [tokens, d_out]
    planes_ptr,  # [splits, tokens, ranks] float32
    g_ptr,  # [requests, ranks] float32
    rows_ptr,  # [tokens] int32, -1 for no adapter
    b_ptr,  # [d_out, ranks]
    scaling,
    tokens,
    ranks,
    d_out,
    y_stride,
    g_stride,  # without rows: 0 where one row of g is for all tokens
    b_stride,
    SPLITS: tl.constexpr,
    HAS_ROWS: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    t = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    if HAS_ROWS:
        row = tl.load(rows_ptr + t, mask=t < tokens, other=-1)
    else:
        row = tl.where(t < tokens, t, -1)
    active = row >= 0
    g_rows = g_ptr + tl.where(active, row, 0).to(tl.int64)[:, None] * g_stride
    b_rows = b_ptr + n.to(tl.int64)[None, :] * b_stride
    sums = tl.zeros((BLOCK_T, BLOCK_N), dtype=tl.float32)
    for start in range(0, ranks, BLOCK_R):
        r = start + tl.arange(0, BLOCK_R)
        mask = active[:, None] & (r[None, :] < ranks)
        h = tl.zeros((BLOCK_T, BLOCK_R), dtype=tl.float32)
        for split in tl.static_range(SPLITS):
            places = (tl.full((), split, tl.int64) * tokens + t[:, None]) * ranks + r[None, :]
            h += tl.load(planes_ptr + places, mask=mask, other=0.0)
        gate = tl.load(g_rows + r[None, :], mask=mask, other=0.0)
        b = tl.load(b_rows + r[:, None], mask=(n[None, :] < d_out) & (r[:, None] < ranks), other=0.0)
        gated = (h * gate * scaling).to(b.dtype)
        sums = tl.dot(gated, b, sums, input_precision="ieee")
    y_places = y_ptr + t.to(tl.int64)[:, None] * y_stride + n[None, :]
    mask = active[:, None] & (n[None, :] < d_out)
    y = tl.load(y_places, mask=mask, other=0.0)
    tl.store(y_places, (y.to(tl.float32) + sums).to(y.dtype), mask=mask)
