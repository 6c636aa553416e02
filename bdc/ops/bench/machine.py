"""What this machine can do, measured: the roofline under the cells."""

from __future__ import annotations

import datetime
import math
import os
import platform
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from bdc import __version__
from bdc.machine import commit, processor
from bdc.ops import backends
from bdc.ops.bench.cells import Cell

SIZES = tuple(2**power for power in range(16, 31))  # bytes read over and over


@dataclass(frozen=True)
class Machine:
    """What torch gets out of it: bytes per second by the bytes that are read again and again, and flops per second by dtype."""

    bandwidth: dict[int, float]
    peak: dict[torch.dtype, float]

    def seconds(self, cell: Cell) -> float:
        """The longer of this cell's flops at torch's rate and its bytes at the bandwidth of so many, between two sizes interpolated.

        A kernel that multiplies faster than torch's GEMM, or finds a part in a nearer cache, can take less.
        """
        sizes = sorted(self.bandwidth)
        bandwidth = float(np.interp(math.log2(cell.moved_bytes), np.log2(sizes), [self.bandwidth[s] for s in sizes]))
        return max(cell.moved_bytes / bandwidth, cell.flops / self.peak[cell.dtype])

    def as_json(self) -> dict[str, Any]:
        return {
            "read_gb_per_s": {f"{size >> 10} KiB": round(speed / 1e9, 1) for size, speed in self.bandwidth.items()},
            "gemm_gflop_per_s": {str(dtype)[6:]: round(speed / 1e9, 1) for dtype, speed in self.peak.items()},
        }


def measure(dtypes: tuple[torch.dtype, ...]) -> Machine:
    """The fastest of a few ways to read, and torch's own GEMM on squares; about three seconds."""
    bandwidth = {}
    for size in SIZES:
        values = torch.ones(size // 4)
        half = values.view(2, -1)
        matrix, vector = values.view(-1, 4096), torch.ones(4096)
        ways = (lambda v=values: v.sum(), lambda h=half: torch.dot(h[0], h[1]), lambda m=matrix, v=vector: m @ v)
        bandwidth[size] = size / min(_fastest(way, 0.04) for way in ways)
    # More bytes never come faster: a small size that lost to a larger one was disturbed.
    best = 0.0
    for size in reversed(SIZES):
        best = bandwidth[size] = max(best, bandwidth[size])
    peak = {}
    widened = (torch.float32,) if torch.float16 in dtypes else ()
    for dtype in {*dtypes, *widened}:
        n = 768
        square = torch.randn(n, n).to(dtype)
        peak[dtype] = 2.0 * n**3 / _fastest(lambda s=square: s @ s, 0.3)
    if torch.float16 in peak:  # multiplied as float32, which is faster than torch's own product
        peak[torch.float16] = max(peak[torch.float16], peak[torch.float32])
    return Machine(bandwidth, peak)


def _fastest(call: Any, seconds: float) -> float:
    call()
    best, until = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < until:
        started = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - started)
    return best


def describe() -> dict[str, Any]:
    """Device, versions, date and commit, for the record."""
    return {
        "device": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY", "unset"),
        "backend": backends().get("cpp", "torch"),
        "bdc": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "commit": commit() or "unknown",
        "date": datetime.date.today().isoformat(),
    }
