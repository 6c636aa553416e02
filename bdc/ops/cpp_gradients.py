"""Training on the CPU kernel: with experts B^T and A^T, dX is the product of dY, and U = dY B its h before the gate.

The equations are those of :mod:`bdc.ops.matmul`, which takes what the kernel does not.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bdc.ops import extension
from bdc.ops.native import contiguous_rows


def forward(
    x: Tensor, lora_a: Tensor, lora_b: Tensor, g: Tensor, rows: Tensor | None, scaling: float
) -> tuple[Tensor, Tensor] | None:
    """As :func:`bdc.ops.matmul.forward`; None where the kernel does not take these."""
    y, h = x.new_empty(len(x), len(lora_b)), x.new_empty(len(x), len(lora_a), dtype=torch.float32)
    given = (contiguous_rows(x), contiguous_rows(lora_a), contiguous_rows(lora_b), contiguous_rows(g.float()), rows)
    return (y, h) if extension.try_add(y, *given, scaling, h, True) else None


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
) -> tuple[Tensor | None, ...] | None:
    """As :func:`bdc.ops.matmul.backward`; None where the kernel does not take these.

    dP and the gated h are rounded to bfloat16 where the kernel multiplies it as it is.
    """
    need_x, need_a, need_b, need_g = needed
    g32 = g.float().contiguous().resolve_neg()
    dx = u = dp = gated = da = db = None
    if need_x or need_a or need_g:
        lora_a, lora_b = contiguous_rows(lora_a), contiguous_rows(lora_b)
        dx = grad.new_empty(grad.shape[0], lora_a.shape[1] if need_x else 0)
        u = h.new_empty(h.shape)
        if not extension.try_add(dx, grad, lora_a, lora_b, g32, rows, scaling, u, True, None, None, True):
            return None
    if need_a or need_b:
        factor = x.dtype if x.dtype == torch.bfloat16 and extension.multiplies_bfloat16() else torch.float32
        dp = h.new_empty(h.shape, dtype=factor) if need_a else None
        gated = h.new_empty(h.shape, dtype=factor) if need_b else None
    dg = torch.empty_like(g32) if need_g else None
    has_absent = extension.try_gate(u, h, g32, rows, scaling, dp, gated, dg)
    if has_absent is None:
        return None
    if rows is not None and has_absent:
        absent = (rows < 0)[:, None]
        grad = grad.masked_fill(absent, 0) if need_b else grad
        x = x.masked_fill(absent, 0) if need_a else x
    if dp is not None:
        da = extension.sum_over_tokens(x.to(dp.dtype).resolve_neg(), dp, turned=True).to(lora_a.dtype)
    if gated is not None:
        db = extension.sum_over_tokens(grad.to(gated.dtype).resolve_neg(), gated).to(lora_b.dtype)
    return dx if need_x else None, da, db, None if dg is None else dg.to(g.dtype)
