"""Times of calls in interleaved rounds."""

from __future__ import annotations

import math
import random
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

SAMPLE_SECONDS = 2e-4  # a shorter call is repeated within a sample
MOST_UNTIMED, UNTIMED_SECONDS = 12, 2e-3  # a last cache that takes what others drop fills over several calls
LONG_SECONDS = 5e-3  # a longer call finds no caches worth warming
LEAST_ROUNDS, MOST_ROUNDS = 5, 60


class Times(NamedTuple):
    """Microseconds of one call."""

    p10: float
    median: float
    p90: float
    rounds: int


def interleaved(
    calls: Mapping[str, Callable[[], Any]], seconds: float, reset: Callable[[], Any], seed: int = 0
) -> dict[str, Times]:
    """Deciles and median of each call, timed in turns in an order that chance changes every round.

    A sample follows untimed calls of its own, so that it finds the caches as its own kind leaves them, which is what
    all forms get. ``reset`` runs after every round: values that only grow would end as infinities.
    """
    repeats, untimed, cost = {}, {}, 0.0
    for name, call in calls.items():
        call()
        took = max(min(_once(call) for _ in range(3)), 1e-7)
        repeats[name] = max(1, int(SAMPLE_SECONDS / took))
        untimed[name] = min(MOST_UNTIMED, math.ceil(UNTIMED_SECONDS / took)) if took < LONG_SECONDS else 0
        cost += took * (repeats[name] + untimed[name])
    rounds = max(LEAST_ROUNDS, min(MOST_ROUNDS, int(seconds / cost)))
    samples: dict[str, list[float]] = {name: [] for name in calls}
    order, shuffler = list(calls), random.Random(seed)
    for _ in range(rounds):
        shuffler.shuffle(order)
        for name in order:
            call, count = calls[name], repeats[name]
            for _ in range(untimed[name]):
                call()
            started = time.perf_counter()
            for _ in range(count):
                call()
            samples[name].append((time.perf_counter() - started) / count * 1e6)
        reset()
    found = {}
    for name, values in samples.items():
        deciles = statistics.quantiles(values, n=10, method="inclusive")
        p10, median, p90 = (round(value, 2) for value in (deciles[0], statistics.median(values), deciles[-1]))
        found[name] = Times(p10, median, p90, rounds)
    return found


def _once(call: Callable[[], Any]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started
