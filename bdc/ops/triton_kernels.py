"""The Triton backend: tile sizes and launches of ``bdc.kernels.lora``."""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

# The sum over the ranks is a step or two: buffers for more would only cost shared memory.
EXPAND_STAGES = 1
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True, slots=True)
class Tiles:
    """Sizes of one call, per program: tokens, ranks of shrink and of a step of expand, inputs of a step, outputs.

    ``splits`` programs share a sum over the inputs, each taking ``steps`` of it.
    """

    tokens: int
    ranks: int
    ranks_step: int
    inputs: int
    outputs: int
    splits: int
    steps: int


def tiles(tokens: int, ranks: int, d_in: int, *, processors: int, wide: bool) -> Tiles:
    """Tiles for a device with so many processors; ``wide`` inputs are float32, which fill its memory sooner."""
    block_t = min(max(16, power_of_two(tokens)), 32 if wide else 64)
    block_r = min(max(16, power_of_two(ranks)), 64 if wide else 128)
    block_k = 32 if wide else 64
    steps = -(-d_in // block_k)
    programs = -(-tokens // block_t) * -(-ranks // block_r)
    splits = max(1, min(processors // programs, steps // 4, 16))
    per_split = -(-steps // splits)
    return Tiles(block_t, block_r, min(block_r, 32 if wide else 64), block_k, 64, -(-steps // per_split), per_split)


def power_of_two(n: int) -> int:
    """The least power of two that is not below ``n``."""
    return 1 << max(0, n - 1).bit_length()


@cache
def load() -> Any | None:
    """The kernels' module; None without it, without Triton, or without a GPU and the interpreter (TRITON_INTERPRET=1)."""
    if any(importlib.util.find_spec(name) is None for name in ("triton", "bdc.kernels")):
        return None
    if not (torch.cuda.is_available() or interpreted()):
        return None
    return importlib.import_module("bdc.kernels.lora")


def interpreted() -> bool:
    """Whether Triton runs its kernels in Python, on CPU tensors."""
    from triton import knobs

    return bool(knobs.runtime.interpret)


def supports(y: Tensor, x: Tensor) -> bool:
    """Whether :func:`add` takes these, of the same dtype."""
    place = "cpu" if interpreted() else "cuda"
    return x.device.type == place and x.dtype in _DTYPES and y.stride(1) == 1


def add(y: Tensor, x: Tensor, lora_a: Tensor, lora_b: Tensor, g: Tensor, rows: Tensor | None, scaling: float) -> None:
    """Add the product to ``y``, copying arguments into the layout of the kernels where they have another."""
    kernels = load()
    assert kernels is not None
    if x.device.type == "cpu" and x.dtype == torch.bfloat16:
        # The interpreter multiplies the bits of bfloat16 as integers, and truncates where a GPU rounds.
        wide = y.float()
        add(wide, x.float(), lora_a.float(), lora_b.float(), g, rows, scaling)
        y.copy_(wide)
        return
    x, lora_a, lora_b = (t if t.stride(1) == 1 else t.contiguous() for t in (x, lora_a, lora_b))
    g = g.float().contiguous()
    place = g if rows is None else rows.to(torch.int32).contiguous()
    (tokens, d_in), (d_out, ranks) = x.shape, lora_b.shape
    if not (d_out and ranks):
        return
    count = 1 if x.device.type == "cpu" else torch.cuda.get_device_properties(x.device).multi_processor_count
    tile = tiles(tokens, ranks, d_in, processors=count, wide=x.dtype == torch.float32)
    planes = torch.empty(tile.splits, tokens, ranks, dtype=torch.float32, device=x.device)
    across = -(-tokens // tile.tokens)
    kernels.shrink[(across, -(-ranks // tile.ranks), tile.splits)](
        x,
        lora_a,
        planes,
        tokens,
        ranks,
        d_in,
        x.stride(0),
        lora_a.stride(0),
        BLOCK_T=tile.tokens,
        BLOCK_R=tile.ranks,
        BLOCK_K=tile.inputs,
        STEPS=tile.steps,
    )
    kernels.expand[(across, -(-d_out // tile.outputs))](
        y,
        planes,
        g,
        place,
        lora_b,
        float(scaling),
        tokens,
        ranks,
        d_out,
        y.stride(0),
        0 if rows is None and len(g) == 1 else g.stride(0),
        lora_b.stride(0),
        SPLITS=tile.splits,
        HAS_ROWS=rows is not None,
        BLOCK_T=tile.tokens,
        BLOCK_N=tile.outputs,
        BLOCK_R=tile.ranks_step,
        num_stages=EXPAND_STAGES,
    )
