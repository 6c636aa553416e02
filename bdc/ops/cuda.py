"""The CUDA C++ backend: workspaces and launches of ``bdc._lora_cuda``.

Up to 8 tokens, float32, and rows that 16-byte loads do not fit go to the vector kernels (two launches); 9 to 64 tokens in 16 bits
to the persistent kernel (one launch). Larger batches are for library GEMMs.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from bdc.errors import BdcError, InputError
from bdc.ops import checks, native
from bdc.ops.counters import counters, raw_stream
from bdc.ops.devices import on_its_device, runs_kernels
from bdc.ops.outputs import MOST_OUTPUTS

MOST_TOKENS = 64
MOST_VECTOR_TOKENS = 8


@cache
def built() -> bool:
    """Whether the extension is installed; it is left out where bdc was built without nvcc."""
    return native.built("_lora_cuda")


@cache
def load() -> Any | None:
    """The extension module; None where it was not built, there is no GPU, or the driver is too old for it."""
    if not built() or not torch.cuda.is_available():
        return None
    module = native.load_extension("_lora_cuda")
    try:
        module.processors()  # asks the CUDA runtime that the extension carries, which may be newer than torch's
    except RuntimeError:
        return None
    return module


def supports(y: Tensor, x: Tensor) -> bool:
    """Whether :func:`add` takes these, of the same dtype."""
    module = load()
    return (
        module is not None
        and x.device.type == module.device_type
        and x.dtype in native.DTYPE_CODES
        and y.stride(1) == 1
        and len(x) <= MOST_TOKENS
        and runs_kernels(x.device)
    )


def add(y: Tensor, x: Tensor, lora_a: Tensor, lora_b: Tensor, g: Tensor, rows: Tensor | None, scaling: float) -> None:
    """Add the product to ``y``, copying arguments into the layout of the kernels where they have another."""
    _run(y, x, lora_a, lora_b, g, rows, scaling)


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
    """Add all outputs in one launch; False, with nothing written, for one, or where the persistent kernel does not take them."""
    x, lora_a, lora_b = map(native.contiguous_rows, (x, lora_a, lora_b))
    if len(ends) == 1 or not takes_layer(x, None, lora_a, lora_b, ends):
        return False
    _run(y, x, lora_a, lora_b, g, rows, scaling, ends=ends)
    return True


def takes_layer(x: Tensor, weight: Tensor | None, lora_a: Tensor, lora_b: Tensor, ends: Sequence[int]) -> bool:
    """Whether the persistent kernel multiplies these matrices, with or without a base, for so many outputs."""
    fits = x.dtype in native.HALVES and len(x) <= MOST_TOKENS and len(ends) <= MOST_OUTPUTS
    return fits and all(matrix is None or _in_chunks(matrix) for matrix in (x, weight, lora_a, lora_b))


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
    """The layer ``x W^T + bias`` and the product in one launch; without ``weight``, the product added to ``out``.

    Args are those of :func:`bdc.ops.triton_layer.linear`.

    Raises:
        InputError: no such kernel: float32, more than 64 tokens, rows that are not multiples of 16 bytes, or other ends.
    """
    ends = ends or (len(lora_b),)
    checks.check_layer(x, weight, bias, lora_a, lora_b, g, rows, scaling, out, ends)
    y = x.new_empty(len(x), len(lora_b)) if out is None else out
    if len(x):
        _run(y, x, lora_a, lora_b, g, rows, scaling, weight, bias if bias is None else bias.contiguous(), ends)
    if out is not None:
        torch.autograd.graph.increment_version((out,))
    return y


@on_its_device
def _run(
    y: Tensor,
    x: Tensor,
    lora_a: Tensor,
    lora_b: Tensor,
    g: Tensor,
    rows: Tensor | None,
    scaling: float,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    ends: tuple[int, ...] | None = None,
) -> None:
    module = load()
    assert module is not None
    (tokens, d_in), d_out, ranks = x.shape, len(lora_b), len(lora_a)
    if not (d_out and ranks):
        return
    x, lora_a, lora_b = map(native.contiguous_rows, (x, lora_a, lora_b))
    weight = None if weight is None else native.contiguous_rows(weight)
    g = g.float().contiguous()
    place = None if rows is None else rows.to(torch.int32).contiguous()
    tiled = takes_layer(x, weight, lora_a, lora_b, ends or ())
    if ends is not None and not tiled:
        raise InputError(
            f"the one-launch layer takes up to {MOST_TOKENS} tokens in 16 bits with rows of multiples of 16 bytes, "
            f"and up to {MOST_OUTPUTS} outputs, got {len(ends)} of {list(x.shape)} {x.dtype} and experts of rank {lora_b.shape[1]}"
        )
    code = native.DTYPE_CODES[x.dtype]
    addresses = tuple(0 if t is None else t.data_ptr() for t in (y, x, lora_a, lora_b, weight, bias, g, place))
    g_stride = 0 if rows is None and len(g) == 1 else g.stride(0)
    w_stride = 0 if weight is None else weight.stride(0)
    strides = (y.stride(0), x.stride(0), lora_a.stride(0), lora_b.stride(0), w_stride, g_stride)
    sizes = (tokens, d_in, d_out, ranks, len(g))
    stream = raw_stream(x.device)
    try:
        if ends is None and (tokens <= MOST_VECTOR_TOKENS or not tiled):
            count = _processors(x.device)
            planes = x.new_empty(module.vectors_workspace(code, sizes, count), dtype=torch.float32)
            module.vectors(code, addresses, strides, sizes, scaling, count, planes.data_ptr(), stream)
            return
        ends = ends or (d_out,)
        capacity = _capacity(x.device, code, tokens)
        floats, gated, words = module.tiles_workspace(sizes, ends, weight is not None, capacity)
        planes, h = x.new_empty(floats, dtype=torch.float32), x.new_empty(gated)
        counts = counters(x.device, words)
        work = (planes.data_ptr(), h.data_ptr(), counts.data_ptr())
        module.tiles(code, addresses, strides, sizes, scaling, ends, capacity, work, stream)
    except torch.OutOfMemoryError:
        raise
    except ValueError as error:
        raise InputError(f"ends {ends} do not fit {d_out} outputs and {ranks} ranks: {error}") from error
    except RuntimeError as error:
        raise BdcError(f"the CUDA kernel of the rank-wise product did not start: {error}") from error


def _in_chunks(matrix: Tensor) -> bool:
    """Whether each row starts at, and is a multiple of, 16 bytes."""
    size = matrix.element_size()
    return not (matrix.data_ptr() % 16 or matrix.stride(0) * size % 16 or matrix.shape[1] * size % 16)


@cache
def _processors(device: torch.device) -> int:
    module = load()
    assert module is not None
    if device.type != "cuda":
        return int(module.processors())
    with torch.cuda.device(device):
        return int(module.processors())


@cache
def _capacity(device: torch.device, code: int, tokens: int) -> tuple[int, int]:
    """Blocks of the persistent kernel that the device runs at once, and the stages of each."""
    module = load()
    assert module is not None
    if device.type != "cuda":
        blocks, stages = module.capacity(code, tokens)
    else:
        with torch.cuda.device(device):
            blocks, stages = module.capacity(code, tokens)
    return blocks, stages
