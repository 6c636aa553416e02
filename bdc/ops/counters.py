"""Counters on a device that every launch of a persistent kernel leaves at zero."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

_WORDS = 1 << 20  # of a device: 4 MB
# Blocks of one launch count in one place; two launches that may run at once share no line of the cache.
_LINE = 32
_OF_A_STREAM = 1024


class _Arena:
    """Zeros of one device, cut up among its streams and the launches that graphs captured."""

    def __init__(self, device: torch.device) -> None:
        # In a thread of its own, which a graph's pool that the caller allocates from does not reach.
        with ThreadPoolExecutor(1) as alone:
            self.words = alone.submit(_zeros, device).result()
        self.used = 0
        self.of_stream: dict[int, Tensor] = {}

    def cut(self, words: int) -> Tensor | None:
        size = -(-words // _LINE) * _LINE
        if self.used + size > len(self.words):
            return None
        self.used += size
        return self.words[self.used - size : self.used]


def _zeros(device: torch.device) -> Tensor:
    words = torch.zeros(_WORDS, dtype=torch.int32, device=device)
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()  # all streams count in them
    return words


_arenas: dict[torch.device, _Arena] = {}


def counters(device: torch.device, words: int) -> Tensor:
    """``words`` int32 zeros that no launch running at the same time uses.

    Launches on one stream share theirs. A captured launch keeps its own as long as the process runs: its graph may run beside
    any other.
    """
    captured = device.type == "cuda" and torch.cuda.is_current_stream_capturing()
    arena = _arenas.get(device)
    if arena is None and not captured:
        arena = _arenas[device] = _Arena(device)
    kept = None
    if arena is not None and captured:
        kept = arena.cut(words)
    elif arena is not None:
        stream = raw_stream(device)
        kept = arena.of_stream.get(stream)
        if kept is None or len(kept) < words:
            kept = arena.cut(max(words, _OF_A_STREAM))
            if kept is not None:
                arena.of_stream[stream] = kept
    # A graph captured before any eager call, or a full arena: zeroed by a node of its own.
    return torch.zeros(words, dtype=torch.int32, device=device) if kept is None else kept


def raw_stream(device: torch.device) -> int:
    """The handle of torch's current stream; 0 for a CPU."""
    return torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0


def all_zero() -> bool:
    """Whether every launch left its counters at zero; waits for the devices."""
    return not any(bool(arena.words.any()) for arena in _arenas.values())
