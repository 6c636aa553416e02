"""Times of launches: graph replay under device events on a GPU, a plain clock on a CPU."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Sequence

import torch

Launch = Callable[[], object]
# About a quarter of a millisecond, longer than a graph takes to be handed to the GPU.
_BUSY_CYCLES = 400_000


class Timer:
    """One form of a computation over several input sets, so that a set is not in the cache when its turn comes again."""

    def __init__(self, launches: Sequence[Launch], device: torch.device) -> None:
        self.launches = launches
        self.device = device
        self.graph: torch.cuda.CUDAGraph | None = None
        if device.type == "cuda":
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for launch in launches:
                    launch()  # compiles, allocates
            torch.cuda.current_stream().wait_stream(stream)
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):
                for launch in launches:
                    launch()
            self.start, self.end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            self.graph.replay()
            torch.cuda.synchronize()
        else:
            for launch in launches:
                launch()

    def microseconds(self) -> float:
        """Of one launch, the mean over the input sets."""
        if self.graph is None:
            began = time.perf_counter()
            for launch in self.launches:
                launch()
            return (time.perf_counter() - began) * 1e6 / len(self.launches)
        torch.cuda._sleep(_BUSY_CYCLES)  # else the time would begin before the graph is there
        self.start.record()
        self.graph.replay()
        self.end.record()
        self.end.synchronize()
        return self.start.elapsed_time(self.end) * 1e3 / len(self.launches)


def interleaved(timers: dict[str, Timer], rounds: int) -> dict[str, dict[str, float]]:
    """Median and deciles in microseconds of each, in rounds of random order."""
    times: dict[str, list[float]] = {name: [] for name in timers}
    order, shuffler = list(timers), random.Random(0)
    for _ in range(rounds):
        shuffler.shuffle(order)
        for name in order:
            times[name].append(timers[name].microseconds())
    found = {}
    for name, values in times.items():
        deciles = statistics.quantiles(values, n=10) if len(values) > 1 else [values[0]] * 9
        found[name] = {"median": statistics.median(values), "p10": deciles[0], "p90": deciles[-1]}
    return found
