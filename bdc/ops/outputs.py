"""Where outputs that share x lie, as q, k and v or gate and up do: side by side in y, each with its own part of the ranks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

MOST_OUTPUTS = 4
"""Of one launch on a GPU; kMostSlices of csrc/cuda/plan.hpp."""


def outputs(ends: Sequence[int], ranks: int) -> Iterator[tuple[slice, slice]]:
    """Columns of y, which are rows of B, and ranks of h, of each of the outputs that end before ``ends`` and have so many."""
    for i, (first, end) in enumerate(zip((0, *ends), ends, strict=False)):
        yield slice(first, end), slice(i * ranks, (i + 1) * ranks)
