"""Products with B: the planes of h are added in their order, gated, multiplied, and added to y.

Slices are outputs that share x and lie side by side in y, such as q, k and v: each has its own ranks of h, and columns of y
from one of `bounds` to the next.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def expand(
    y_ptr,  # [tokens, d_out]
    planes_ptr,  # [splits, tokens, slices * ranks], float32; a single one in any dtype
    g_ptr,  # [requests, slices * ranks] float32
    rows_ptr,  # [tokens] int32, -1 for no adapter
    b_ptr,  # [d_out, ranks], the slices one below the other
    bounds_ptr,  # [slices + 1] int32
    scaling,
    tokens,
    ranks,  # of a slice
    d_out,
    y_stride,
    g_stride,  # without rows: 0 where one row of g is for all tokens
    b_stride,
    h_stride,  # of the planes' tokens
    SPLITS: tl.constexpr,
    HAS_ROWS: tl.constexpr,
    SLICED: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    t = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    first, end = 0, d_out
    if SLICED:
        part = tl.program_id(2)
        n += tl.load(bounds_ptr + part)
        end = tl.load(bounds_ptr + part + 1)
        first = part * ranks
    if HAS_ROWS:
        row = tl.load(rows_ptr + t, mask=t < tokens, other=-1)
    else:
        row = tl.where(t < tokens, t, -1)
    active = row >= 0
    g_rows = g_ptr + tl.where(active, row, 0).to(tl.int64)[:, None] * g_stride + first
    b_rows = b_ptr + n.to(tl.int64)[None, :] * b_stride
    sums = tl.zeros((BLOCK_T, BLOCK_N), dtype=tl.float32)
    for start in range(0, ranks, BLOCK_R):
        r = start + tl.arange(0, BLOCK_R)
        mask = active[:, None] & (r[None, :] < ranks)
        h = tl.zeros((BLOCK_T, BLOCK_R), dtype=tl.float32)
        for split in range(SPLITS):
            places = (tl.cast(split, tl.int64) * tokens + t[:, None]) * h_stride + first + r[None, :]
            h += tl.load(planes_ptr + places, mask=mask, other=0.0)
        gate = tl.load(g_rows + r[None, :], mask=mask, other=0.0)
        b = tl.load(b_rows + r[:, None], mask=(n[None, :] < end) & (r[:, None] < ranks), other=0.0)
        gated = (h * gate * scaling).to(b.dtype)
        sums = tl.dot(gated, b, sums, input_precision="ieee")
    y_places = y_ptr + t.to(tl.int64)[:, None] * y_stride + n[None, :]
    mask = active[:, None] & (n[None, :] < end)
    y = tl.load(y_places, mask=mask, other=0.0)
    # A sum of zero leaves y alone, even where it is -0.
    tl.store(y_places, (y.to(tl.float32) + sums).to(y.dtype), mask=mask & (sums != 0))
