"""The product and its gradients as torch's matrix products, on any device; experts of int8 are cast, which is exact.

With h = x A^T before the gate, U = dY B and s the scaling: dP = s g U; dX = dP A; dA = dP^T X; dB = s dY^T (h g);
dg[i] = s times the sum of h U over the tokens of row i. Sums run in a fixed order, so equal inputs give equal bits.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bdc.ops.native import HALVES
from bdc.ops.outputs import outputs


def supports(y: Tensor, x: Tensor) -> bool:
    """Whether :func:`add` takes these: all that passed the checks."""
    return True


def add(y: Tensor, x: Tensor, lora_a: Tensor, lora_b: Tensor, g: Tensor, rows: Tensor | None, scaling: float) -> None:
    """Add the product to ``y`` [T, d_out] in place; tokens with row -1 are not written."""
    add_slices(y, x, lora_a, lora_b, g, rows, scaling, (len(lora_b),))


def add_slices(
    y: Tensor,
    x: Tensor,
    lora_a: Tensor,
    lora_b: Tensor,
    g: Tensor,
    rows: Tensor | None,
    scaling: float,
    ends: tuple[int, ...],
) -> bool:
    """Add all outputs, of one product with all of A; always True."""
    if rows is not None and x.device.type == "cpu":
        active = rows >= 0
        if not bool(active.all()):
            at = active.nonzero().squeeze(1)
            part = y[at]
            if len(at):
                add_slices(part, x[at], lora_a, lora_b, g, rows[at], scaling, ends)
            y[at] = part
            return True
    wide = wide_dtype(x)
    gate = _gate(g, rows, len(x)).to(torch.promote_types(wide, torch.float32))
    lora_a, lora_b = lora_a.to(x.dtype), lora_b.to(x.dtype)
    if x.device.type == "cuda" and x.dtype in HALVES and torch.version.hip is None:
        h = torch.mm(x, lora_a.T, out_dtype=torch.float32)  # rounded once, after the gate
    else:
        h = x.to(wide) @ lora_a.to(wide).T
    gated = (h * gate * scaling).to(wide)
    for columns, own in outputs(ends, lora_b.shape[1]):
        _expand(y[:, columns], gated[:, own], lora_b[columns], rows)
    return True


def _expand(y: Tensor, gated: Tensor, lora_b: Tensor, rows: Tensor | None) -> None:
    if y.device.type == "cpu":
        y.add_(gated @ lora_b.to(gated.dtype).T)  # BLAS may add to y rank by rank, and round it each time
    elif rows is None:
        y.addmm_(gated, lora_b.T)
    else:
        # Asking whether a row is -1 would wait for the device.
        y.copy_(torch.where((rows >= 0)[:, None], torch.addmm(y, gated, lora_b.T), y))


def forward(
    x: Tensor, lora_a: Tensor, lora_b: Tensor, g: Tensor, rows: Tensor | None, scaling: float
) -> tuple[Tensor, Tensor]:
    """The product [T, d_out] in the dtype of x, and h [T, R] in the dtype of the products, for :func:`backward`."""
    wide = wide_dtype(x)
    absent = None if rows is None else (rows < 0)[:, None]
    h = (x if absent is None else x.masked_fill(absent, 0)).to(wide) @ lora_a.to(wide).T
    gate = _gate(g, rows, len(x)).to(torch.promote_types(wide, torch.float32))
    gated = (h * gate * scaling).to(wide)
    if absent is not None:
        gated = gated.masked_fill(absent, 0)
    return (gated @ lora_b.to(wide).T).to(x.dtype), h


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
    """Gradients of x, lora_a, lora_b and g where ``needed``; sums over tokens are kept in float32 or wider.

    Only the gradient of lora_a reads x.
    """
    need_x, need_a, need_b, need_g = needed
    dtype, wide, s = x.dtype, wide_dtype(x), scaling
    total = torch.promote_types(wide, torch.float32)
    gate = _gate(g, rows, len(x)).to(total)
    absent = None if rows is None else (rows < 0)[:, None]
    if absent is not None:
        grad, gate = grad.masked_fill(absent, 0), gate.masked_fill(absent, 0)
        x = x.masked_fill(absent, 0) if need_a else x
    grad = grad.to(wide)
    u = grad @ lora_b.to(wide)
    dp = (u * gate * s).to(wide)
    dx = (dp @ lora_a.to(wide)).to(dtype) if need_x else None
    if dx is not None and absent is not None:
        dx.masked_fill_(absent, 0)  # zero times an infinite expert
    da = (dp.T @ x.to(wide)).to(lora_a.dtype) if need_a else None
    db = (grad.T @ (h * gate * s).to(wide)).to(lora_b.dtype) if need_b else None
    dg = _sum_by_row(h.to(total) * u * s, rows, len(g)).to(g.dtype) if need_g else None
    return dx, da, db, dg


def wide_dtype(x: Tensor) -> torch.dtype:
    """The dtype of the products: on a CPU float32 for 16-bit inputs, so that only the output is rounded."""
    return torch.float32 if x.device.type == "cpu" and x.dtype in HALVES else x.dtype


def _gate(g: Tensor, rows: Tensor | None, tokens: int) -> Tensor:
    """The row of g of each token, [T, R] or [1, R]; any row where there is none."""
    if rows is None:
        return g
    return g.index_select(0, rows.clamp_min(0)) if len(g) else g.new_zeros(tokens, g.shape[1])


def _sum_by_row(values: Tensor, rows: Tensor | None, requests: int) -> Tensor:
    """Sum of ``values`` [T, R] over the tokens of each row, [N, R], in the order of the tokens."""
    if rows is None:
        return values.sum(0, keepdim=True) if requests == 1 else values
    sums = values.new_zeros(requests + 1, values.shape[1])  # the last row takes the tokens without one
    place = torch.where(rows < 0, requests, rows).long()
    if values.device.type == "cpu":
        sums.index_add_(0, place, values)
    else:
        sums.index_put_((place,), values, accumulate=True)  # sorts; index_add_ would use atomics there
    return sums[:requests]
