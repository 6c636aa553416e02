"""Products with A: h = x A^T as float32 planes, one for each split of the sum over the inputs.

Whoever reads the planes adds them in their order, so equal inputs give equal bits. Written, as all kernels here, for what
Triton 3.6 to 3.9 share.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def shrink(
    x_ptr,  # [tokens, d_in]
    a_ptr,  # [ranks, d_in]; transposed: [d_in, ranks]
    planes_ptr,  # [splits, tokens, ranks] float32
    tokens,
    ranks,
    d_in,
    x_stride,
    a_stride,
    TRANSPOSED: tl.constexpr,  # for the gradient, where B takes the place of A
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
    sums = tl.zeros((BLOCK_T, BLOCK_R), dtype=tl.float32)
    for _ in range(STEPS):
        x = tl.load(x_rows + k[None, :], mask=(t[:, None] < tokens) & (k[None, :] < d_in), other=0.0)
        if TRANSPOSED:
            places = a_ptr + k.to(tl.int64)[:, None] * a_stride + r[None, :]
        else:
            places = a_ptr + r.to(tl.int64)[None, :] * a_stride + k[:, None]
        a = tl.load(places, mask=(r[None, :] < ranks) & (k[:, None] < d_in), other=0.0)
        sums = tl.dot(x, a, sums, input_precision="ieee")
        k += BLOCK_K
    places = (split.to(tl.int64) * tokens + t[:, None]) * ranks + r[None, :]
    tl.store(planes_ptr + places, sums, mask=(t[:, None] < tokens) & (r[None, :] < ranks))


@triton.jit
def gate(
    planes_ptr,  # [splits, tokens, ranks] float32
    g_ptr,  # [requests, ranks] float32
    rows_ptr,  # [tokens] int32, -1 for no adapter
    gated_ptr,  # [tokens, ranks]: s h g, zero for a token without adapter
    h_ptr,  # [tokens, ranks] float32: h, for the gradients
    scaling,
    tokens,
    ranks,
    h_stride,  # of the planes' tokens
    g_stride,
    gated_stride,  # that of [x | gated], where a library multiplies [W | B]
    SPLITS: tl.constexpr,
    HAS_ROWS: tl.constexpr,
    SAVE_H: tl.constexpr,
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
    h = tl.zeros((BLOCK_T, BLOCK_R), dtype=tl.float32)
    for split in tl.static_range(SPLITS):
        places = (tl.full((), split, tl.int64) * tokens + t[:, None]) * h_stride + r[None, :]
        h += tl.load(planes_ptr + places, mask=active, other=0.0)
    weights = g_ptr + tl.where(row >= 0, row, 0).to(tl.int64)[:, None] * g_stride + r[None, :]
    gated = h * tl.load(weights, mask=active, other=0.0) * scaling
    places = t.to(tl.int64)[:, None] * gated_stride + r[None, :]
    tl.store(gated_ptr + places, gated.to(gated_ptr.dtype.element_ty), mask=inside)
    if SAVE_H:
        tl.store(h_ptr + t.to(tl.int64)[:, None] * ranks + r[None, :], h, mask=inside)
