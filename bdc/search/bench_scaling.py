"""`bdc bench search --scaling`: what N threads make of a search, beside what the machine lets N of anything do.

By the wall clock, each beside the same with one thread just before: the search with N threads, from C++ and from Python
in waves; N processes of the C++ program, which share nothing but the machine's caches and memory; and N threads that
copy memory. Ratios are medians over the repeats, with their quartiles. `by steps` is the ratio of the rates by the median
time of each of a search's steps, over a run's searches. It leaves out whatever befalls a step in fewer than half of them:
what the machine takes from a thread for itself, of which N threads that wait for each other lose N times as much, and
also, say, a helper that fell asleep. Beside it is what tells such moments: the share of its time that one thread loses,
in gaps of more than a microsecond, which does nothing but look at the clock, and what a cache line takes from one thread
to the other (medians, before and after each search), since a virtual machine's processors may come to lie on different
caches from one second to the next, and threads that share a search exchange lines.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np

Search = Callable[[int, int, int], dict[str, Any]]  # of trees, nodes and branching
Measured = Callable[[], dict[str, Any]]  # per_second, and what else was seen
CELLS = [(256, 1_000), (1024, 1_000)]
RATES = ("per_second", "median_per_second")
SIGNS = ("lost", "line_ns")  # of what the machine was like


def copied(threads: int, megabytes: int = 128) -> dict[str, Any]:
    """Megabytes per second that so many threads copy together, each from one array of its own to another."""
    arrays = [(np.ones(megabytes << 17), np.empty(megabytes << 17)) for _ in range(threads)]
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(2):  # the first time the pages are fresh
            start = time.perf_counter()
            list(pool.map(lambda pair: np.copyto(pair[1], pair[0]), arrays))
        return {"per_second": threads * megabytes / (time.perf_counter() - start)}


def together(search: Search, copies: int) -> Search:
    """So many of `search` at once, and the sums of their rates."""

    def searches(trees: int, nodes: int, branching: int) -> dict[str, Any]:
        with ThreadPoolExecutor(copies) as pool:
            running = [pool.submit(search, trees, nodes, branching) for _ in range(copies)]
            found = [future.result() for future in running]
        return {rate: sum(one[rate] for one in found) for rate in RATES if rate in found[0]}

    return searches


def spread(ratios: list[float]) -> dict[str, float]:
    """Their median and quartiles."""
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
    return {"ratio": middle, "low": low, "high": high}


def compare(one: Measured, many: Measured, repeats: int) -> dict[str, Any]:
    """`many` over `one`, in turns; `pairs` has each turn's ratios and what the machine was like."""
    pairs: list[dict[str, float]] = []
    for _ in range(repeats):
        a, b = one(), many()
        ratios = {rate: b[rate] / a[rate] for rate in RATES if rate in b}
        pairs.append(ratios | {sign: b[sign] for sign in SIGNS if sign in b})
    found = {key: [pair[key] for pair in pairs] for key in pairs[0]}
    row: dict[str, Any] = spread(found["per_second"])
    if "median_per_second" in found:
        row["by_steps"] = spread(found["median_per_second"])
    row |= {sign: statistics.median(found[sign]) for sign in SIGNS if sign in found}
    return row | {"pairs": pairs}


def line(name: str, cell: dict[str, int], row: dict[str, Any]) -> str:
    """A row of the table."""
    text = f"{' x '.join(map(str, cell.values())):16}  {name:24}"
    for found in (row, row.get("by_steps")):
        text += "".join(f" {found[key]:5.2f}" for key in ("ratio", "low", "high")) + "  " if found else ""
    if "line_ns" in row:
        text += f" {100 * row['lost']:5.1f}  {row['line_ns']:5.0f}"
    return text.rstrip()


def measure(
    pairs: dict[str, tuple[Search, Search]],
    threads: int,
    branching: list[int],
    repeats: int,
    cells: list[tuple[int, int]],
) -> list[dict[str, Any]]:
    """A row per cell and pair, printed as they come. `pairs` hold a search and, by its name, what is set beside it."""
    rows: list[dict[str, Any]] = []

    def add(name: str, cell: dict[str, int], one: Measured, many: Measured) -> None:
        row = compare(one, many, repeats)
        rows.append(cell | {"what": name} | row)
        print(line(name, cell, row), flush=True)

    print(
        f"{'trees, nodes, B':16}  {f'{threads} over one':24} ratio   low  high   by steps   low  high lost, % line, ns"
    )
    add(f"{threads} threads copy memory", {}, partial(copied, 1), partial(copied, threads))
    for trees, nodes in cells or CELLS:
        for b in branching:
            cell = {"trees": trees, "nodes": nodes, "branching": b}
            for name, (one, many) in pairs.items():
                add(name, cell, partial(one, *cell.values()), partial(many, *cell.values()))
    return rows
