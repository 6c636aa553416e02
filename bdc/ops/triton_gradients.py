"""Training on the Triton kernels: the forward pass that keeps h, and the gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from bdc.ops import triton_kernels as launches
from bdc.ops.devices import on_its_device
from bdc.ops.matmul import wide_dtype
from bdc.ops.native import contiguous_rows
from bdc.ops.triton_kernels import expand, gate, shrink


def forward(
    x: Tensor, lora_a: Tensor, lora_b: Tensor, g: Tensor, rows: Tensor | None, scaling: float
) -> tuple[Tensor, Tensor]:
    """The product [T, d_out] and h [T, R], zero for tokens without adapter, in the dtype that torch's products have it in."""
    planes = shrink(x, lora_a)
    h = planes.new_empty(planes.shape[1:])
    gate(x.new_empty(planes.shape[1:]), planes, g, rows, scaling, h)
    y = x.new_zeros(len(x), len(lora_b))
    expand(y, planes, lora_b, g, rows, scaling)
    return y, h.to(wide_dtype(x))


@on_its_device
def backward(
    grad: Tensor,
    x: Tensor,
    lora_a: Tensor,
    lora_b: Tensor,
    g: Tensor,
    rows: Tensor | None,
    h: Tensor,
    scaling: float,
    needed: tuple[bool, bool, bool, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of x, lora_a, lora_b and g where ``needed``; dX is a GEMM of torch's."""
    kernels = launches.kernels_for(x).gradients
    grad, x = contiguous_rows(grad), contiguous_rows(x) if needed[1] else x
    weights, place, g_stride = launches.gates(g, rows)
    tokens, ranks = h.shape
    # A token without adapter may hold anything: its part of U is never read.
    planes = shrink(grad, lora_b, transposed=True)
    dp, gated, products = x.new_empty(h.shape), x.new_empty(h.shape), planes.new_empty(h.shape)
    kernels.gate_gradient[launches.elementwise_grid(tokens, ranks)](
        planes,
        h.float().contiguous(),
        weights,
        place,
        dp,
        gated,
        products,
        float(scaling),
        tokens,
        ranks,
        g_stride,
        SPLITS=len(planes),
        HAS_ROWS=rows is not None,
        **launches.ELEMENTWISE,
    )
    dx = dp @ lora_a if needed[0] else None
    if dx is not None and rows is not None:
        dx.masked_fill_((rows < 0)[:, None], 0)  # zero times an infinite expert
    da = _outer(dp, x, rows, place, lora_a) if needed[1] else None
    db = _outer(grad, gated, rows, place, lora_b) if needed[2] else None
    if not needed[3]:
        return dx, da, db, None
    if rows is None and len(g) == tokens and tokens > 1:
        return dx, da, db, products.to(g.dtype)
    dg = products.new_empty(len(g), ranks)
    kernels.sum_by_row[(len(g), -(-ranks // 64))](
        products, place, dg, tokens, ranks, HAS_ROWS=rows is not None, BLOCK_T=64, BLOCK_R=64
    )
    return dx, da, db, dg.to(g.dtype)


def _outer(left: Tensor, right: Tensor, rows: Tensor | None, place: Tensor, like: Tensor) -> Tensor:
    """Sum over the tokens with an adapter of left[t]^T right[t], in the shape and dtype of ``like``."""
    out = torch.empty_like(like, memory_format=torch.contiguous_format)
    wide = left.dtype == torch.float32
    block_m, block_n, block_t = (32, 64, 32) if wide else (64, 128, 64)
    (height, width), tokens = out.shape, len(left)
    launches.kernels_for(left).gradients.outer[(-(-height // block_m), -(-width // block_n))](
        left,
        right,
        place,
        out,
        tokens,
        height,
        width,
        left.stride(0),
        right.stride(0),
        out.stride(0),
        HAS_ROWS=rows is not None,
        BLOCK_T=block_t,
        BLOCK_M=block_m,
        BLOCK_N=block_n,
    )
    return out
