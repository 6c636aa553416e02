"""Experts of 8 bits: half the memory of bfloat16, and half the bytes that a token has to read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bdc.errors import InputError
from bdc.ops import checks

_MOST = 127  # -128 is not used: symmetric


@dataclass(frozen=True, eq=False)
class Int8Experts:
    """A stack of experts as 8-bit integers, with one scale per rank for A and B together.

    The product takes ``lora_a`` and ``lora_b`` as they are, with the scales folded into the rank weights:
    ``rankwise_lora(x, experts.lora_a, experts.lora_b, experts.fold(g))``.

    Attributes:
        lora_a: [R, d_in] int8; row r times its scale is the row of A.
        lora_b: [d_out, R] int8; likewise by columns.
        scales: [R] float32, the scale of A's row r times that of B's column r.
    """

    lora_a: Tensor
    lora_b: Tensor
    scales: Tensor

    def fold(self, rank_weights: Tensor) -> Tensor:
        """``rank_weights`` [N, R] for these integers: times the scales, in float32.

        Raises:
            InputError: they have another number of ranks.
        """
        return fold(rank_weights, self.scales)


def fold(rank_weights: Tensor, scales: Tensor) -> Tensor:
    """``rank_weights`` [N, R] times the ``scales`` [R] of integers, in float32."""
    if rank_weights.shape[-1:] != scales.shape:
        raise InputError(f"rank_weights must be [N, {len(scales)}], got {list(rank_weights.shape)}")
    if not rank_weights.requires_grad or torch._C._are_functorch_transforms_active():
        return rank_weights.float() * scales
    with torch.enable_grad():  # weights that are put in force without it may be used with it
        found: Tensor = _Fold.apply(rank_weights, scales)
        return found


class _Fold(torch.autograd.Function):
    """Differentiable as often as the result is used: its backward frees nothing."""

    @staticmethod
    def forward(ctx: Any, rank_weights: Tensor, scales: Tensor) -> Tensor:
        ctx.scales, ctx.dtype = scales, rank_weights.dtype
        return rank_weights.float() * scales

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return (grad * ctx.scales).to(ctx.dtype), None


def quantize_experts(lora_a: Tensor, lora_b: Tensor) -> Int8Experts:
    """Round experts to 8 bits, symmetrically, with a scale per rank: A's row r and B's column r by their largest element.

    Each element of A is off by at most half of its row's scale, max |A[r]| / 127, and likewise B.

    Args:
        lora_a: [R, d_in], the A of all experts one below the other.
        lora_b: [d_out, R], the B of all experts side by side.

    Raises:
        InputError: the shapes do not fit, an element is not finite, the experts are no floats, or a rank's scale, the product
            of both, is beyond float32.
    """
    checks.check_are_tensors(lora_a=lora_a, lora_b=lora_b)
    if lora_a.ndim != 2:
        raise InputError(f"lora_a must be [R, d_in], got {list(lora_a.shape)}")
    checks.check_experts(lora_a, lora_b, lora_a.shape[1])
    for name, tensor in (("lora_a", lora_a), ("lora_b", lora_b)):
        if not tensor.is_floating_point():
            raise InputError(f"{name} must be of floats to be rounded to 8 bits, got {tensor.dtype}")
        if not bool(torch.isfinite(tensor).all()):
            raise InputError(f"{name} must be finite to be rounded to 8 bits, got NaN or infinity")
    integers_a, scale_a = _round(lora_a)
    integers_b, scale_b = _round(lora_b.T)
    scales = (scale_a * scale_b).float()
    beyond = ~scales.isfinite() | ((scales == 0) & (scale_a > 0) & (scale_b > 0))
    if bool(beyond.any()):
        rank = int(beyond.nonzero()[0])
        a, b = float(lora_a[rank].abs().max()), float(lora_b[:, rank].abs().max())
        raise InputError(
            f"rank {rank}: elements of lora_a up to {a:.1e} and of lora_b up to {b:.1e} need a scale beyond float32"
        )
    return Int8Experts(integers_a, integers_b.T.contiguous(), scales)


def _round(rows: Tensor) -> tuple[Tensor, Tensor]:
    """``rows`` [R, d] as int8 [R, d] and the scale of each, float64 [R]; a row of zeros, or of subnormal ones, has scale 0."""
    least = torch.finfo(torch.promote_types(rows.dtype, torch.float32)).tiny
    rows = rows.detach().double()  # in float32 a scale can be too small where the product of two is not
    largest = rows.abs().amax(1) if rows.shape[1] else rows.new_zeros(len(rows))
    scale = torch.where(largest < least, 0.0, largest / _MOST)
    divisor = torch.where(scale > 0, scale, torch.inf)
    return (rows / divisor[:, None]).round().to(torch.int8), scale
