"""The CUDA C++ backend: workspaces and launches of ``bdc._lora_cuda``.

Up to 8 tokens, float32, and rows that 16-byte loads do not fit go to the vector kernels (two launches); 9 to 64 tokens in 16 bits
to the persistent kernel (one launch). Larger batches are for library GEMMs.
"""

from __future__ import annotations

import importlib
import importlib.util
from functools import cache
from typing import Any

import torch
from torch import Tensor

from bdc.errors import BdcError, InputError

MOST_TOKENS = 64
MOST_VECTOR_TOKENS = 8
_CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
# Counters that each launch leaves at zero. A captured launch keeps its own as long as the process runs, since its graph may run
# beside any other.
_ARENA_WORDS = 1 << 20


@cache
def built() -> bool:
    """Whether the extension is installed; it is left out where bdc was built without nvcc."""
    return importlib.util.find_spec("bdc._lora_cuda") is not None


@cache
def load() -> Any | None:
    """The extension module; None where it was not built or there is no GPU."""
    if not built() or not torch.cuda.is_available():
        return None
    try:
        return importlib.import_module("bdc._lora_cuda")
    except ImportError as error:
        raise InputError(f"the extension bdc._lora_cuda is there but does not load, build it again: {error}") from error


def supports(y: Tensor, x: Tensor) -> bool:
    """Whether :func:`add` takes these, of the same dtype."""
    module = load()
    return (
        module is not None
        and x.device.type == module.device_type
        and x.dtype in _CODES
        and y.stride(1) == 1
        and len(x) <= MOST_TOKENS
    )


def add(y: Tensor, x: Tensor, lora_a: Tensor, lora_b: Tensor, g: Tensor, rows: Tensor | None, scaling: float) -> None:
    """Add the product to ``y``, copying arguments into the layout of the kernels where they have another."""
    _run(y, x, lora_a, lora_b, g, rows, scaling, None, None)


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    lora_a: Tensor,
    lora_b: Tensor,
    g: Tensor,
    rows: Tensor | None,
    scaling: float,
) -> Tensor:
    """The whole layer, ``x W^T + bias`` and the product, in one launch; arguments as :func:`add`, checked by the caller.

    Args:
        weight: [d_out, d_in]; ``bias``: [d_out] or None; dtype of x.

    Raises:
        InputError: no such kernel: float32, more than 64 tokens, or rows that are not multiples of 16 bytes.
    """
    y = x.new_empty(len(x), len(weight))
    if not len(x):
        return y
    _run(y, x, lora_a, lora_b, g, rows, scaling, weight, bias)
    return y


def _run(
    y: Tensor,
    x: Tensor,
    lora_a: Tensor,
    lora_b: Tensor,
    g: Tensor,
    rows: Tensor | None,
    scaling: float,
    weight: Tensor | None,
    bias: Tensor | None,
) -> None:
    module = load()
    assert module is not None
    (tokens, d_in), (d_out, ranks) = x.shape, lora_b.shape
    if not (d_out and ranks):
        return
    x, lora_a, lora_b = (t if t.stride(1) == 1 else t.contiguous() for t in (x, lora_a, lora_b))
    g = g.float().contiguous()
    place = None if rows is None else rows.to(torch.int32).contiguous()
    matrices = [x, lora_a, lora_b, *([] if weight is None else [weight])]
    tiled = x.dtype != torch.float32 and all(map(_in_chunks, matrices)) and tokens <= MOST_TOKENS
    if weight is not None and not (tiled and weight.stride(1) == 1):
        raise InputError(
            f"the one-launch layer takes up to {MOST_TOKENS} tokens in 16 bits with rows of multiples of 16 bytes, "
            f"got {tokens} tokens of {list(x.shape)} {x.dtype} and experts of rank {ranks}"
        )
    code = _CODES[x.dtype]
    addresses = tuple(0 if t is None else t.data_ptr() for t in (y, x, lora_a, lora_b, weight, bias, g, place))
    g_stride = 0 if rows is None and len(g) == 1 else g.stride(0)
    w_stride = 0 if weight is None else weight.stride(0)
    strides = (y.stride(0), x.stride(0), lora_a.stride(0), lora_b.stride(0), w_stride, g_stride)
    sizes = (tokens, d_in, d_out, ranks, len(g))
    try:
        if weight is None and (tokens <= MOST_VECTOR_TOKENS or not tiled):
            count = _processors(x.device)
            planes = x.new_empty(module.vectors_workspace(code, sizes, count), dtype=torch.float32)
            module.vectors(code, addresses, strides, sizes, scaling, count, planes.data_ptr(), _stream(x.device))
        else:
            count = _resident_blocks(x.device, code, 16 if tokens <= 16 else 32 if tokens <= 32 else 64)
            floats, gated, words = module.tiles_workspace(sizes, weight is not None, count)
            planes, h = x.new_empty(floats, dtype=torch.float32), x.new_empty(gated)
            counters = _counters(x.device, words)
            work = (planes.data_ptr(), h.data_ptr(), counters.data_ptr())
            module.tiles(code, addresses, strides, sizes, scaling, count, work, _stream(x.device))
    except RuntimeError as error:
        raise BdcError(f"the CUDA kernel of the rank-wise product did not start: {error}") from error


def _in_chunks(matrix: Tensor) -> bool:
    """Whether each row starts at, and is a multiple of, 16 bytes."""
    size = matrix.element_size()
    return not (matrix.data_ptr() % 16 or matrix.stride(0) * size % 16 or matrix.shape[1] * size % 16)


def _stream(device: torch.device) -> int:
    return torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0


@cache
def _processors(device: torch.device) -> int:
    module = load()
    assert module is not None
    if device.type != "cuda":
        return int(module.processors())
    with torch.cuda.device(device):
        return int(module.processors())


@cache
def _resident_blocks(device: torch.device, code: int, token_tile: int) -> int:
    module = load()
    assert module is not None
    if device.type != "cuda":
        return int(module.resident_blocks(code, token_tile))
    with torch.cuda.device(device):
        return int(module.resident_blocks(code, token_tile))


class _Counters:
    """Zeroed words of one device, cut up among streams and captured launches."""

    def __init__(self, device: torch.device) -> None:
        self.words = torch.zeros(_ARENA_WORDS, dtype=torch.int32, device=device)
        self.used = 0
        self.of_stream: dict[int, Tensor] = {}

    def cut(self, words: int) -> Tensor | None:
        # 32 words apart: no two launches share a line of the cache.
        size = -(-words // 32) * 32
        if self.used + size > len(self.words):
            return None
        self.used += size
        return self.words[self.used - size : self.used]


_arenas: dict[torch.device, _Counters] = {}


def _counters(device: torch.device, words: int) -> Tensor:
    """Zeros that no launch running at the same time uses."""
    captured = device.type == "cuda" and torch.cuda.is_current_stream_capturing()
    arena = _arenas.get(device)
    if arena is None and not captured:
        arena = _arenas[device] = _Counters(device)
    kept = None
    if arena is not None and captured:
        kept = arena.cut(words)
    elif arena is not None:
        stream = _stream(device)
        kept = arena.of_stream.get(stream)
        if kept is None or len(kept) < words:
            kept = arena.cut(max(words, 1024))
            if kept is not None:
                arena.of_stream[stream] = kept
    # A graph captured before any eager call, or a full arena: zeroed by a node of its own.
    return torch.zeros(words, dtype=torch.int32, device=device) if kept is None else kept
