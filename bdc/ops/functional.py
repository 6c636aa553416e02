"""The product on tensors: backend choice and autograd.

With h = x A^T before the gate, U = dY B and s the scaling: dP = s g U; dX = dP A; dA = dP^T X; dB = s dY^T (h g);
dg[i] = s times the sum of h U over the tokens of row i. Sums run in a fixed order, so equal inputs give equal bits.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from bdc.errors import InputError
from bdc.ops import checks

_KNOWN = ("cpp", "torch")
_CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


@cache
def _extension() -> Any | None:
    if importlib.util.find_spec("bdc._lora") is None:
        return None
    try:
        return importlib.import_module("bdc._lora")
    except ImportError as error:
        raise InputError(f"the extension bdc._lora is there but does not load, build it again: {error}") from error


def backends() -> dict[str, str]:
    """Usable backends, and what each of them runs on.

    The environment variable BDC_OPS_BACKEND names the one to use where it can; without it the faster one is taken.
    """
    found: dict[str, str] = {}
    extension = _extension()
    if extension is not None:
        threads = extension.threads()
        width = f"{threads} threads" if threads > 1 else "1 thread"
        found["cpp"] = f"CPU ({extension.isa()}, {width}), float32, bfloat16 and float16, inference"
    found["torch"] = "every device and dtype, inference and training"
    return found


def rankwise_lora(
    x: Tensor,
    lora_a: Tensor,
    lora_b: Tensor,
    rank_weights: Tensor,
    token_to_row: Tensor | None = None,
    scaling: float = 1.0,
) -> Tensor:
    """``scaling * ((x[t] A^T) * g[row[t]]) B^T`` for every token t.

    Args:
        x: [T, d_in], float32, bfloat16, float16 or float64.
        lora_a: [R, d_in], the A of all experts one below the other, R = experts * rank; dtype of x.
        lora_b: [d_out, R], the B of all experts side by side; dtype of x.
        rank_weights: g, [N, R], a row per request; float32 or the dtype of x.
        token_to_row: [T] int32 or int64, the row of g of each token, -1 for no adapter. None: row 0 for all if N is 1,
            else row t for token t.
        scaling: s, alpha / rank.

    Returns:
        [T, d_out] in the dtype of x, zero where the row is -1. Differentiable in x, lora_a, lora_b and rank_weights, once.

    Raises:
        InputError: shapes, dtypes, devices or rows do not fit.
    """
    checks.check_product(x, lora_a, lora_b, rank_weights, token_to_row)
    if _wants_gradient(x, lora_a, lora_b, rank_weights):
        out: Tensor = _RankwiseLora.apply(x, lora_a, lora_b, rank_weights, token_to_row, scaling)  # type: ignore[no-untyped-call]
        return out
    return add_product(x.new_zeros(len(x), len(lora_b)), x, lora_a, lora_b, rank_weights, token_to_row, scaling)


def rankwise_lora_(
    y: Tensor,
    x: Tensor,
    lora_a: Tensor,
    lora_b: Tensor,
    rank_weights: Tensor,
    token_to_row: Tensor | None = None,
    scaling: float = 1.0,
) -> Tensor:
    """Add :func:`rankwise_lora` to ``y`` [T, d_out] in place; tokens with row -1 are not written.

    Returns:
        ``y``.

    Raises:
        InputError: as :func:`rankwise_lora`; also where ``y`` shares memory with another argument, or a gradient is wanted.
    """
    checks.check_product(x, lora_a, lora_b, rank_weights, token_to_row)
    others = {"x": x, "lora_a": lora_a, "lora_b": lora_b, "rank_weights": rank_weights}
    checks.check_output(y, others, len(x), len(lora_b))
    if _wants_gradient(y, x, lora_a, lora_b, rank_weights):
        raise InputError(
            "rankwise_lora_ has no gradient: add rankwise_lora to y instead, or call it under torch.no_grad()"
        )
    return add_product(y, x, lora_a, lora_b, rank_weights, token_to_row, scaling)


def add_product(
    y: Tensor, x: Tensor, lora_a: Tensor, lora_b: Tensor, g: Tensor, rows: Tensor | None, scaling: float
) -> Tensor:
    """:func:`rankwise_lora_` without checks, for arguments that were checked, and without a gradient."""
    if not len(x):
        return y
    if _chosen(y, x) == "cpp":
        _add_cpp(y, x, lora_a, lora_b, g, rows, scaling)
    else:
        _add_torch(y, x, lora_a, lora_b, g, rows, scaling)
    return y


def _chosen(y: Tensor, x: Tensor) -> str:
    forced = os.environ.get("BDC_OPS_BACKEND")
    if forced and forced not in _KNOWN:
        raise InputError(f"BDC_OPS_BACKEND must be one of {', '.join(_KNOWN)}, got {forced}")
    if forced == "torch":
        return "torch"
    if x.device.type != "cpu" or x.dtype not in _CODES or torch.compiler.is_compiling():
        return "torch"
    extension = _extension()
    if extension is None:
        if forced:
            raise InputError("BDC_OPS_BACKEND=cpp needs the extension bdc._lora, which is not built: install bdc again")
        return "torch"
    return "cpp" if y.stride(1) == 1 and (forced or extension.isa() != "portable") else "torch"


def _add_cpp(
    y: Tensor, x: Tensor, lora_a: Tensor, lora_b: Tensor, g: Tensor, rows: Tensor | None, scaling: float
) -> None:
    extension = _extension()
    assert extension is not None
    x = x if x.stride(1) == 1 else x.contiguous()
    lora_a, lora_b, g = lora_a.contiguous(), lora_b.contiguous(), g.float().contiguous()
    place = None if rows is None else rows.to(torch.int32).contiguous()
    extension.add(
        _CODES[x.dtype],
        (y.data_ptr(), x.data_ptr(), lora_a.data_ptr(), lora_b.data_ptr(), g.data_ptr()),
        0 if place is None else place.data_ptr(),
        (len(x), x.shape[1], len(lora_b), len(lora_a), len(g)),
        (y.stride(0), x.stride(0)),
        scaling,
    )


def _add_torch(
    y: Tensor, x: Tensor, lora_a: Tensor, lora_b: Tensor, g: Tensor, rows: Tensor | None, scaling: float
) -> None:
    if rows is not None and x.device.type == "cpu":
        active = rows >= 0
        if not bool(active.all()):
            at = active.nonzero().squeeze(1)
            part = y[at]
            _add_torch(part, x[at], lora_a, lora_b, g, rows[at], scaling) if len(at) else None
            y[at] = part
            return
    wide = _wide(x)
    gate = _gate(g, rows, len(x)).to(torch.promote_types(wide, torch.float32))
    h = x.to(wide) @ lora_a.to(wide).T
    gated = (h * gate * scaling).to(wide)
    if rows is not None and x.device.type != "cpu":
        # Asking whether a row is -1 would wait for the device.
        y.copy_(torch.where((rows >= 0)[:, None], torch.addmm(y, gated, lora_b.T), y))
    elif wide == y.dtype:
        y.addmm_(gated, lora_b.T)
    else:
        y.copy_(torch.addmm(y.to(wide), gated, lora_b.to(wide).T))


def _wide(x: Tensor) -> torch.dtype:
    """The dtype of the products: on a CPU float32 for 16-bit inputs, so that only the output is rounded."""
    return torch.float32 if x.device.type == "cpu" and x.dtype in (torch.bfloat16, torch.float16) else x.dtype


def _gate(g: Tensor, rows: Tensor | None, tokens: int) -> Tensor:
    """The row of g of each token, [T, R] or [1, R]; any row where there is none."""
    if rows is None:
        return g
    return g.index_select(0, rows.clamp_min(0)) if len(g) else g.new_zeros(tokens, g.shape[1])


def _wants_gradient(*tensors: Tensor) -> bool:
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


class _RankwiseLora(torch.autograd.Function):
    """The product with h saved before the gate; sums over tokens are kept in float32 or wider."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, lora_a: Tensor, lora_b: Tensor, g: Tensor, rows: Tensor | None, scaling: float
    ) -> Tensor:
        wide = _wide(x)
        x_wide = x if rows is None else x.masked_fill((rows < 0)[:, None], 0)
        h = x_wide.to(wide) @ lora_a.to(wide).T
        gate = _gate(g, rows, len(x))
        gated = (h * gate.to(torch.promote_types(wide, torch.float32)) * scaling).to(wide)
        if rows is not None:
            gated = gated.masked_fill((rows < 0)[:, None], 0)
        ctx.save_for_backward(x, lora_a, lora_b, g, rows, h)
        ctx.scaling = scaling
        return (gated @ lora_b.to(wide).T).to(x.dtype)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, lora_a, lora_b, g, rows, h = ctx.saved_tensors
        need_x, need_a, need_b, need_g, *_ = ctx.needs_input_grad
        wide, s = _wide(x), ctx.scaling
        total = torch.promote_types(wide, torch.float32)
        if rows is not None:
            absent = (rows < 0)[:, None]
            x, grad = x.masked_fill(absent, 0), grad.masked_fill(absent, 0)
        x, grad = x.to(wide), grad.to(wide)
        gate = _gate(g, rows, len(x)).to(total)
        if rows is not None:
            gate = gate.masked_fill(absent, 0)
        u = grad @ lora_b.to(wide)
        dp = (u * gate * s).to(wide)
        dx = (dp @ lora_a.to(wide)).to(lora_a.dtype) if need_x else None
        da = (dp.T @ x).to(lora_a.dtype) if need_a else None
        db = (grad.T @ (h * gate * s).to(wide)).to(lora_b.dtype) if need_b else None
        dg = _sum_by_row(h.to(total) * u * s, rows, len(g)).to(g.dtype) if need_g else None
        return dx, da, db, dg, None, None


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
