"""Sizes of the Triton kernels' tiles."""

from __future__ import annotations

from dataclasses import dataclass

MOST_SPLITS = 16
# expand reads all planes in every program, so many tokens take few of them.
_PLANE_TOKENS = 512


@dataclass(frozen=True, slots=True)
class Tiles:
    """Sizes of one call, per program: tokens, ranks of shrink and of a step of expand, inputs of a step, outputs.

    ``splits`` programs share a sum over the inputs, each taking ``steps`` of it; ``warps`` is for expand.
    """

    tokens: int
    ranks: int
    ranks_step: int
    inputs: int
    outputs: int
    splits: int
    steps: int
    warps: int


def tiles(tokens: int, ranks: int, d_in: int, d_out: int, *, processors: int, wide: bool) -> Tiles:
    """Tiles for a device with so many processors; ``wide`` inputs are float32, which fill its memory sooner.

    Tiles are as large as they can be while every processor gets one.
    """
    block_t = min(max(16, power_of_two(tokens)), 32 if wide else 64)
    across = -(-tokens // block_t)
    block_k = 64 if wide or tokens > 64 else 128
    steps = -(-d_in // block_k)
    most = min(MOST_SPLITS, max(2, _PLANE_TOKENS // tokens), max(1, steps // 2))
    block_r = min(max(16, power_of_two(ranks)), 64 if wide else 128)
    while block_r > 16 and across * -(-ranks // block_r) * most < processors:
        block_r //= 2
    splits = max(1, min(most, processors // (across * -(-ranks // block_r))))
    per_split = -(-steps // splits)
    outputs = 64 if wide else 128
    while outputs > 32 and across * -(-d_out // outputs) < processors:
        outputs //= 2
    ranks_step = min(max(16, power_of_two(ranks)), 32 if wide or tokens > 16 else 64)
    warps = 8 if tokens > 64 else 4
    return Tiles(block_t, block_r, ranks_step, block_k, outputs, -(-steps // per_split), per_split, warps)


@dataclass(frozen=True, slots=True)
class LayerTiles:
    """Sizes of the one-launch layer: all tokens, outputs of a program, inputs and ranks of a step, ranks of a tile of h.

    ``splits`` programs share a sum of h over the inputs, each taking ``steps`` of it; loads are ``stages`` steps deep.
    """

    tokens: int
    outputs: int
    inputs: int
    ranks_step: int
    rank_tile: int
    splits: int
    steps: int
    stages: int
    warps: int


def layer_tiles(
    tokens: int,
    ranks: int,
    d_in: int,
    d_out: int,
    *,
    processors: int,
    shared_bytes: int,
    wide: bool,
    most_outputs: int = 128,
) -> LayerTiles:
    """As :func:`tiles`, for up to 64 tokens and programs with so much shared memory and at most so many outputs.

    The sizes of 16-bit inputs are those that were fastest for the layers of Llama-3.1-8B on an H100 (benchmarks/gpu_tune.py).
    """
    block_t = max(16, power_of_two(tokens))
    outputs, block_k, stages, warps = _layer_sizes(block_t, d_in, d_out, processors, wide)
    outputs = min(outputs, most_outputs)
    step_bytes = (block_t + outputs) * (4 if wide else 2)
    while stages > 2 and stages * block_k * step_bytes > shared_bytes:
        stages -= 1
    while block_k > 32 and stages * block_k * step_bytes > shared_bytes:
        block_k //= 2
    steps = -(-d_in // block_k)
    rank_tile = min(max(16, power_of_two(ranks)), 32)
    splits = max(1, min(MOST_SPLITS, steps // 2, processors // -(-ranks // rank_tile)))
    per_split = -(-steps // splits)
    ranks_step = min(max(16, power_of_two(ranks)), 64 if wide else 128)
    return LayerTiles(
        block_t, outputs, block_k, ranks_step, rank_tile, -(-steps // per_split), per_split, stages, warps
    )


def _layer_sizes(block_t: int, d_in: int, d_out: int, processors: int, wide: bool) -> tuple[int, int, int, int]:
    """Outputs, inputs, stages and warps."""
    if wide:
        outputs = 64
        while outputs > 16 and -(-d_out // outputs) < processors:
            outputs //= 2
        return outputs, 64, 3, 4
    if block_t > 16:
        if d_out >= 128 * 3 * processors // 2:
            return 128, 128, 3, 8
        return (64, 128, 4, 4) if d_out > 32 * processors else (32, 128, 5, 4)
    if d_out >= 64 * 3 * processors:
        return 64, 256, 3, 4
    if d_out > 32 * processors:
        return 32, 512, 3, 4
    outputs = 32 if d_out > 16 * processors else 16
    # One program on each processor: short sums take smaller steps.
    return (outputs, 128, 5, 4) if d_in <= 8192 else (outputs, 256, 4, 4)


def power_of_two(n: int) -> int:
    """The least power of two that is not below ``n``."""
    return 1 << max(0, n - 1).bit_length()
