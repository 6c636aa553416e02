"""The Triton backend: launches of ``bdc.kernels``.

A product is made of planes, [splits, T, R] in float32, whose sum is h = x A^T: :func:`shrink` or a producer of x makes them,
and :func:`expand` or :func:`gate` takes them. The arguments were checked by the caller.
"""

from __future__ import annotations

import importlib
import importlib.util
from functools import cache
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from bdc.errors import InputError
from bdc.ops.devices import on_its_device, runs_kernels
from bdc.ops.native import contiguous_rows
from bdc.ops.triton_plan import Tiles, tiles

# The sum over the ranks is a step or two: buffers for more would only cost shared memory.
EXPAND_STAGES = 1
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Of a kernel that has an element of [T, R] to itself.
ELEMENTWISE = {"BLOCK_T": 16, "BLOCK_R": 64}


@cache
def load() -> Any | None:
    """The kernels' modules; None without them, without Triton, or without a GPU and the interpreter (TRITON_INTERPRET=1)."""
    if any(importlib.util.find_spec(name) is None for name in ("triton", "bdc.kernels")):
        return None
    if not (torch.cuda.is_available() or interpreted()):
        return None
    names = ("shrink", "expand", "layer", "producers", "gradients")
    return SimpleNamespace(**{name: importlib.import_module(f"bdc.kernels.{name}") for name in names})


def interpreted() -> bool:
    """Whether Triton runs its kernels in Python, on CPU tensors."""
    from triton import knobs

    return bool(knobs.runtime.interpret)


def supports(y: Tensor, x: Tensor) -> bool:
    """Whether :func:`add` takes these, of the same dtype."""
    place = "cpu" if interpreted() else "cuda"
    return x.device.type == place and x.dtype in _DTYPES and y.stride(1) == 1 and runs_kernels(x.device)


def add(y: Tensor, x: Tensor, lora_a: Tensor, lora_b: Tensor, g: Tensor, rows: Tensor | None, scaling: float) -> None:
    """Add the product to ``y``, copying arguments into the layout of the kernels where they have another."""
    if x.device.type == "cpu" and x.dtype == torch.bfloat16:
        # The interpreter multiplies the bits of bfloat16 as integers, and truncates where a GPU rounds.
        wide = y.float()
        add(wide, x.float(), lora_a.float(), lora_b.float(), g, rows, scaling)
        y.copy_(wide)
        return
    if lora_b.numel():
        expand(y, shrink(x, lora_a), lora_b, g, rows, scaling)


@on_its_device
def shrink(x: Tensor, a: Tensor, *, transposed: bool = False) -> Tensor:
    """Planes of ``x A^T`` for x [T, d_in] and ``a`` [R, d_in], or [d_in, R] if ``transposed``."""
    x, a = contiguous_rows(x), contiguous_rows(a)
    (tokens, d_in), ranks = x.shape, a.shape[1] if transposed else a.shape[0]
    tile = shrink_tiles(x, ranks)
    planes = empty_planes(x, tile, ranks)
    kernels_for(x).shrink.shrink[shrink_grid(tile, tokens, ranks)](
        x, a, planes, tokens, ranks, d_in, x.stride(0), a.stride(0), transposed, **shrink_blocks(tile)
    )
    return planes


@on_its_device
def expand(
    y: Tensor,
    planes: Tensor,
    lora_b: Tensor,
    g: Tensor,
    rows: Tensor | None,
    scaling: float,
    bounds: Tensor | None = None,
) -> None:
    """Gate the planes' sum, multiply by B, add to ``y`` [T, d_out].

    Args:
        planes: [splits, T, R]; a single one may have rows that lie apart, and the dtype of y: the last columns of x [W; A]^T, say.
        lora_b: [d_out, R].
        bounds: [S + 1] int32, for S outputs side by side in y, of columns ``bounds[i]`` to ``bounds[i + 1]``, with ranks of their
            own: planes and g then have S * R, ``lora_b`` holds the outputs' B one below the other.
    """
    lora_b, (g, place, g_stride) = contiguous_rows(lora_b), gates(g, rows)
    (d_out, ranks), (splits, tokens, all_ranks) = lora_b.shape, planes.shape
    slices = 1 if bounds is None else len(bounds) - 1
    if all_ranks != slices * ranks or g.shape[1] != all_ranks:
        raise InputError(f"{slices} outputs of {ranks} ranks need planes and g of {slices * ranks}, got {all_ranks}")
    planes = planes if splits == 1 and planes.stride(2) == 1 else planes.contiguous()
    tile = tiles(tokens, ranks, 1, d_out, processors=processors(y), wide=y.dtype == torch.float32)
    kernels_for(y).expand.expand[(-(-tokens // tile.tokens), -(-d_out // tile.outputs), slices)](
        y,
        planes,
        g,
        place,
        lora_b,
        place if bounds is None else bounds,
        float(scaling),
        tokens,
        ranks,
        d_out,
        y.stride(0),
        g_stride,
        lora_b.stride(0),
        planes.stride(1),
        SPLITS=splits,
        HAS_ROWS=rows is not None,
        SLICED=bounds is not None,
        BLOCK_T=tile.tokens,
        BLOCK_N=tile.outputs,
        BLOCK_R=tile.ranks_step,
        num_stages=EXPAND_STAGES,
        num_warps=tile.warps,
    )


@on_its_device
def gate(
    out: Tensor, planes: Tensor, g: Tensor, rows: Tensor | None, scaling: float, h: Tensor | None = None
) -> Tensor:
    """Write the gated sum of the planes, s h g, to ``out`` [T, R], zero for tokens without adapter; some columns of planes may do.

    With ``out`` the last R columns of a buffer whose first are x, a library multiplies ``[x | s h g]`` by ``[W | B]``: the layer
    in one GEMM. ``h``, float32 [T, R] contiguous, takes the sum before the gate, for the gradients.
    """
    g, place, g_stride = gates(g, rows)
    splits, tokens, ranks = planes.shape
    if planes.stride(2) != 1 or planes.stride(0) != tokens * planes.stride(1):
        planes = planes.contiguous()
    kernels_for(out).shrink.gate[elementwise_grid(tokens, ranks)](
        planes,
        g,
        place,
        out,
        planes if h is None else h,
        float(scaling),
        tokens,
        ranks,
        planes.stride(1),
        g_stride,
        out.stride(0),
        SPLITS=splits,
        HAS_ROWS=rows is not None,
        SAVE_H=h is not None,
        **ELEMENTWISE,
    )
    return out


def kernels_for(x: Tensor) -> Any:
    """The kernels' modules, where they run on tensors like ``x``."""
    kernels = load()
    if kernels is None or x.dtype not in _DTYPES or (x.device.type == "cpu") != interpreted():
        raise InputError(f"the Triton kernels need a GPU or TRITON_INTERPRET=1, got {x.dtype} on {x.device}")
    if x.device.type == "cpu" and x.dtype == torch.bfloat16:
        raise InputError("Triton's interpreter cannot multiply bfloat16: pass float32 or float16 there")
    return kernels


def gates(g: Tensor, rows: Tensor | None) -> tuple[Tensor, Tensor, int]:
    """g in float32, the tokens' rows (or anything, without), and the stride from one token's or row's weights to the next."""
    g = contiguous_rows(g.float())
    if rows is not None:
        return g, rows.to(torch.int32).contiguous(), g.stride(0)
    return g, g, 0 if len(g) == 1 else g.stride(0)


@cache
def _device(device: torch.device) -> tuple[int, int]:
    """Processors, and bytes of shared memory that a program may have; in the interpreter there is no limit that matters."""
    if device.type == "cpu":
        return 1, 1 << 20
    found = torch.cuda.get_device_properties(device)
    shared = getattr(found, "shared_memory_per_block_optin", found.shared_memory_per_block)
    return int(found.multi_processor_count), int(shared)


def processors(x: Tensor) -> int:
    """Of the device of ``x``; one in the interpreter, which runs programs one by one."""
    return _device(x.device)[0]


def shared_bytes(x: Tensor) -> int:
    """Of the device of ``x``, for one program."""
    return _device(x.device)[1]


def shrink_tiles(x: Tensor, ranks: int) -> Tiles:
    """Tiles of a shrink of ``x``."""
    return tiles(len(x), ranks, x.shape[1], 1, processors=processors(x), wide=x.dtype == torch.float32)


def empty_planes(x: Tensor, tile: Tiles, ranks: int) -> Tensor:
    """Room for the planes of h."""
    return x.new_empty(tile.splits, len(x), ranks, dtype=torch.float32)


def shrink_grid(tile: Tiles, tokens: int, ranks: int) -> tuple[int, int, int]:
    """Programs of a shrink."""
    return -(-tokens // tile.tokens), -(-ranks // tile.ranks), tile.splits


def shrink_blocks(tile: Tiles) -> dict[str, int]:
    """Constants of a shrink."""
    return {"BLOCK_T": tile.tokens, "BLOCK_R": tile.ranks, "BLOCK_K": tile.inputs, "STEPS": tile.steps}


def elementwise_grid(tokens: int, ranks: int) -> tuple[int, int]:
    """Programs of a kernel that has an element of [T, R] to itself."""
    return -(-tokens // ELEMENTWISE["BLOCK_T"]), -(-ranks // ELEMENTWISE["BLOCK_R"])
