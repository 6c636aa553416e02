"""The Triton backend, and layers for decoding on its kernels: one launch for base and product, or shrink where the input is made."""

from __future__ import annotations

import torch
from torch import Tensor

from bdc.errors import InputError
from bdc.ops import checks
from bdc.ops import triton_kernels as launches
from bdc.ops.counters import counters
from bdc.ops.devices import on_its_device
from bdc.ops.native import contiguous_rows
from bdc.ops.outputs import MOST_OUTPUTS
from bdc.ops.triton_plan import layer_tiles

MOST_LAYER_TOKENS = 64


def supports(y: Tensor, x: Tensor) -> bool:
    """Whether :func:`add` takes these, of the same dtype."""
    return launches.supports(y, x)


def add(y: Tensor, x: Tensor, lora_a: Tensor, lora_b: Tensor, g: Tensor, rows: Tensor | None, scaling: float) -> None:
    """Add the product to ``y``: in one launch for up to 64 tokens, else in two."""
    if x.device.type != "cpu" and len(x) <= MOST_LAYER_TOKENS and lora_a.numel() and lora_b.numel():
        _launch(y, x, None, None, lora_a, lora_b, g, rows, scaling, (len(lora_b),))
    else:
        launches.add(y, x, lora_a, lora_b, g, rows, scaling)


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
    """Add all outputs in one launch; False, with nothing written, where there is none."""
    if not takes_layer(x, None, lora_a, lora_b, ends):
        return False
    _launch(y, x, None, None, lora_a, lora_b, g, rows, scaling, ends)
    return True


def takes_layer(x: Tensor, weight: Tensor | None, lora_a: Tensor, lora_b: Tensor, ends: tuple[int, ...]) -> bool:
    """Whether there is a launch for so many tokens and outputs, with or without a base; the interpreter cannot multiply bfloat16."""
    interprets = x.device.type == "cpu" and x.dtype == torch.bfloat16
    return len(x) <= MOST_LAYER_TOKENS and bool(lora_b.numel()) and has_tiles(ends) and not interprets


def has_tiles(ends: tuple[int, ...]) -> bool:
    """Whether a launch has tiles of outputs that end there: up to four, at multiples of 64 but for the last."""
    return len(ends) <= MOST_OUTPUTS and not any(end % 64 for end in ends[:-1])


def producer_warps(block_t: int) -> int:
    """Warps of a producer, which holds both its inputs and a tile of x."""
    return 8 if block_t > 16 else 4


def linear(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    lora_a: Tensor,
    lora_b: Tensor,
    g: Tensor,
    rows: Tensor | None,
    scaling: float,
    out: Tensor | None = None,
    ends: tuple[int, ...] | None = None,
) -> Tensor:
    """The layer ``x W^T + bias`` and the product in one launch, for up to 64 tokens; without ``weight``, the product added to ``out``.

    Args:
        weight: [d_out, d_in] or None; ``bias``: [d_out] or None; dtype of x.
        ends: for up to four outputs side by side, such as q, k and v, the columns of y where each ends, the last d_out, the others
            multiples of 64. Then ``lora_a`` [S * R, d_in] and g [N, S * R] hold ranks for each, ``lora_b`` [d_out, R] their B
            one below the other.
    """
    ends = ends or (len(lora_b),)
    checks.check_layer(x, weight, bias, lora_a, lora_b, g, rows, scaling, out, ends)
    if not has_tiles(ends):
        raise InputError(f"ends must be up to four, multiples of 64 but for the last, got {ends}")
    if len(x) > MOST_LAYER_TOKENS:
        raise InputError(f"the one-launch layer takes up to {MOST_LAYER_TOKENS} tokens, got {len(x)}")
    y = x.new_empty(len(x), len(lora_b)) if out is None else out
    if len(x):
        _launch(y, x, weight, bias, lora_a, lora_b, g, rows, scaling, ends)
    if out is not None:
        torch.autograd.graph.increment_version((out,))
    return y


@on_its_device
def _launch(
    y: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    lora_a: Tensor,
    lora_b: Tensor,
    g: Tensor,
    rows: Tensor | None,
    scaling: float,
    ends: tuple[int, ...],
) -> None:
    """:func:`linear` into ``y``, for arguments that were checked."""
    (tokens, d_in), (d_out, slice_ranks), ranks = x.shape, lora_b.shape, len(lora_a)
    kernels = launches.kernels_for(x)
    x, lora_a, lora_b, w = (
        contiguous_rows(x),
        contiguous_rows(lora_a),
        contiguous_rows(lora_b),
        lora_b if weight is None else contiguous_rows(weight),
    )
    g, place, g_stride = launches.gates(g, rows)
    tile = layer_tiles(
        tokens,
        ranks,
        d_in,
        d_out,
        processors=launches.processors(x),
        shared_bytes=launches.shared_bytes(x),
        wide=x.dtype == torch.float32,
        most_outputs=64 if any(end % 128 for end in ends[:-1]) else 128,  # a program's are of one slice
    )
    rank_tiles = -(-ranks // tile.rank_tile)
    planes = x.new_empty(rank_tiles, tile.splits, tile.tokens, tile.rank_tile, dtype=torch.float32)
    kernels.layer.layer[(rank_tiles * tile.splits + -(-d_out // tile.outputs),)](
        y,
        x,
        w,
        y if bias is None else bias.contiguous(),
        lora_a,
        lora_b,
        g,
        place,
        planes,
        x.new_empty(tile.tokens, rank_tiles * tile.rank_tile),
        counters(x.device, 3 + rank_tiles),
        float(scaling),
        tokens,
        ranks,
        slice_ranks,
        d_in,
        d_out,
        *(*ends, d_out, d_out, d_out)[:3],
        y.stride(0),
        x.stride(0),
        w.stride(0),
        lora_a.stride(0),
        lora_b.stride(0),
        g_stride,
        HAS_BASE=weight is not None,
        HAS_BIAS=bias is not None,
        HAS_ROWS=rows is not None,
        BLOCK_T=tile.tokens,
        BLOCK_N=tile.outputs,
        BLOCK_K=tile.inputs,
        BLOCK_R=tile.ranks_step,
        RANK_TILE=tile.rank_tile,
        SPLITS=tile.splits,
        STEPS=tile.steps,
        SLICES=len(ends),
        num_stages=tile.stages,
        num_warps=tile.warps,
    )


@on_its_device
def rms_norm_shrink(
    hidden: Tensor, weight: Tensor, epsilon: float, lora_a: Tensor, out: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """x = RMSNorm(hidden) [T, d_in], rounded before and after ``weight`` as transformers does, and the planes of x A^T."""
    checks.check_producer(hidden, {"weight": (weight, hidden.shape[1:])}, lora_a, out)
    hidden, lora_a, weight = contiguous_rows(hidden), contiguous_rows(lora_a), weight.contiguous()
    (tokens, d_in), ranks = hidden.shape, len(lora_a)
    x = torch.empty_like(hidden) if out is None else out
    tile = launches.shrink_tiles(hidden, ranks)
    planes = launches.empty_planes(hidden, tile, ranks)
    launches.kernels_for(hidden).producers.rms_norm_shrink[launches.shrink_grid(tile, tokens, ranks)](
        hidden,
        weight,
        lora_a,
        x,
        planes,
        epsilon,
        tokens,
        ranks,
        d_in,
        hidden.stride(0),
        lora_a.stride(0),
        x.stride(0),
        **launches.shrink_blocks(tile),
        num_warps=producer_warps(tile.tokens),
    )
    return x, planes


@on_its_device
def silu_mul_shrink(gate: Tensor, up: Tensor, lora_a: Tensor, out: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """x = silu(gate) * up [T, d_in], rounded before and after the product, and the planes of x A^T."""
    checks.check_producer(gate, {"up": (up, gate.shape)}, lora_a, out)
    gate, up, lora_a = contiguous_rows(gate), contiguous_rows(up), contiguous_rows(lora_a)
    (tokens, d_in), ranks = gate.shape, len(lora_a)
    x = gate.new_empty(tokens, d_in) if out is None else out
    tile = launches.shrink_tiles(gate, ranks)
    planes = launches.empty_planes(gate, tile, ranks)
    launches.kernels_for(gate).producers.silu_mul_shrink[launches.shrink_grid(tile, tokens, ranks)](
        gate,
        up,
        lora_a,
        x,
        planes,
        tokens,
        ranks,
        d_in,
        gate.stride(0),
        up.stride(0),
        lora_a.stride(0),
        x.stride(0),
        **launches.shrink_blocks(tile),
        num_warps=producer_warps(tile.tokens),
    )
    return x, planes
