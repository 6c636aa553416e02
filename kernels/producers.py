"""What makes a layer's input, and shrink of it in the same launch: x is read once less, and a launch is saved.

Each writes x for the base layer, and the planes of h = x A^T as `shrink` does.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def rms_norm_shrink(
    hidden_ptr,  # [tokens, d_in]
    weight_ptr,  # [d_in]
    a_ptr,  # [ranks, d_in]
    x_ptr,  # [tokens, d_in]: hidden / rms(hidden), rounded, times weight
    planes_ptr,  # [splits, tokens, ranks] float32
    epsilon,
    tokens,
    ranks,
    d_in,
    hidden_stride,
    a_stride,
    x_stride,
    BLOCK_T: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STEPS: tl.constexpr,
):
    t = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    r = tl.program_id(1) * BLOCK_R + tl.arange(0, BLOCK_R)
    split = tl.program_id(2)
    rows = hidden_ptr + t.to(tl.int64)[:, None] * hidden_stride
    # Every program adds up the whole row again: it is small, and in the cache.
    squares = tl.zeros((BLOCK_T, BLOCK_K), dtype=tl.float32)
    for start in range(0, d_in, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        hidden = tl.load(rows + k[None, :], mask=(t[:, None] < tokens) & (k[None, :] < d_in), other=0.0).to(tl.float32)
        squares += hidden * hidden
    scale = 1.0 / tl.sqrt(tl.sum(squares, axis=1) / d_in + epsilon)

    a_rows = a_ptr + r.to(tl.int64)[None, :] * a_stride
    x_rows = x_ptr + t.to(tl.int64)[:, None] * x_stride
    k = split * STEPS * BLOCK_K + tl.arange(0, BLOCK_K)
    sums = tl.zeros((BLOCK_T, BLOCK_R), dtype=tl.float32)
    for _ in range(STEPS):
        mask = (t[:, None] < tokens) & (k[None, :] < d_in)
        hidden = tl.load(rows + k[None, :], mask=mask, other=0.0)
        weight = tl.load(weight_ptr + k, mask=k < d_in, other=0.0)
        normal = (hidden.to(tl.float32) * scale[:, None]).to(hidden.dtype)
        x = (normal.to(tl.float32) * weight.to(tl.float32)[None, :]).to(hidden.dtype)
        if tl.program_id(1) == 0:
            tl.store(x_rows + k[None, :], x, mask=mask)
        a = tl.load(a_rows + k[:, None], mask=(r[None, :] < ranks) & (k[:, None] < d_in), other=0.0)
        sums = tl.dot(x, a, sums, input_precision="ieee")
        k += BLOCK_K
    places = (split.to(tl.int64) * tokens + t[:, None]) * ranks + r[None, :]
    tl.store(planes_ptr + places, sums, mask=(t[:, None] < tokens) & (r[None, :] < ranks))


@triton.jit
def silu_mul_shrink(
    gate_ptr,  # [tokens, d_in]
    up_ptr,  # [tokens, d_in]
    a_ptr,  # [ranks, d_in]
    x_ptr,  # [tokens, d_in]: silu(gate), rounded, times up
    planes_ptr,  # [splits, tokens, ranks] float32
    tokens,
    ranks,
    d_in,
    gate_stride,
    up_stride,
    a_stride,
    x_stride,
    BLOCK_T: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STEPS: tl.constexpr,
):
    t = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    r = tl.program_id(1) * BLOCK_R + tl.arange(0, BLOCK_R)
    split = tl.program_id(2)
    k = split * STEPS * BLOCK_K + tl.arange(0, BLOCK_K)
    gate_rows = gate_ptr + t.to(tl.int64)[:, None] * gate_stride
    up_rows = up_ptr + t.to(tl.int64)[:, None] * up_stride
    a_rows = a_ptr + r.to(tl.int64)[None, :] * a_stride
    x_rows = x_ptr + t.to(tl.int64)[:, None] * x_stride
    sums = tl.zeros((BLOCK_T, BLOCK_R), dtype=tl.float32)
    for _ in range(STEPS):
        mask = (t[:, None] < tokens) & (k[None, :] < d_in)
        gate = tl.load(gate_rows + k[None, :], mask=mask, other=0.0).to(tl.float32)
        up = tl.load(up_rows + k[None, :], mask=mask, other=0.0)
        silu = (gate / (1.0 + tl.exp(-gate))).to(up.dtype)
        x = (silu.to(tl.float32) * up.to(tl.float32)).to(up.dtype)
        if tl.program_id(1) == 0:
            tl.store(x_rows + k[None, :], x, mask=mask)
        a = tl.load(a_rows + k[:, None], mask=(r[None, :] < ranks) & (k[:, None] < d_in), other=0.0)
        sums = tl.dot(x, a, sums, input_precision="ieee")
        k += BLOCK_K
    places = (split.to(tl.int64) * tokens + t[:, None]) * ranks + r[None, :]
    tl.store(planes_ptr + places, sums, mask=(t[:, None] < tokens) & (r[None, :] < ranks))
