"""`bdc bench search --scaling`: what N threads make of a search, beside what the machine lets N of anything do.

By the wall clock, each beside the same with one thread just before: the search with N threads, from C++ and from Python
in waves; N processes of the C++ program, which share nothing but the machine's caches and memory; and N threads that
copy memory. Ratios are medians over the repeats, with their quartiles. Beside those of the C++ program's threads is
the median of what a cache line takes from one thread to the other, before and after: a virtual machine's processors
may come to lie on different caches from one second to the next, and threads that share a search exchange lines.
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
Measured = Callable[[], float]  # work per second
CELLS = [(256, 1_000), (1024, 1_000)]


def copied(threads: int, megabytes: int = 128) -> float:
    """Megabytes per second that so many threads copy together, each from one array of its own to another."""
    arrays = [(np.ones(megabytes << 17), np.empty(megabytes << 17)) for _ in range(threads)]
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(2):  # the first time the pages are fresh
            start = time.perf_counter()
            list(pool.map(lambda pair: np.copyto(pair[1], pair[0]), arrays))
        return threads * megabytes / (time.perf_counter() - start)


class Rate:
    """The rate of a search in a cell, each time it is called; it remembers what lines took."""

    def __init__(self, search: Search, cell: dict[str, int]) -> None:
        self.search, self.cell = search, cell
        self.line_ns: list[float] = []

    def __call__(self) -> float:
        found = self.search(*self.cell.values())
        if found.get("line_ns"):
            self.line_ns.append(float(found["line_ns"]))
        return float(found["per_second"])


def together(search: Search, copies: int) -> Search:
    """So many of `search` at once, and the sum of their rates."""

    def searches(trees: int, nodes: int, branching: int) -> dict[str, Any]:
        with ThreadPoolExecutor(copies) as pool:
            running = [pool.submit(search, trees, nodes, branching) for _ in range(copies)]
            return {"per_second": sum(future.result()["per_second"] for future in running)}

    return searches


def measure(
    pairs: dict[str, tuple[Search, Search]],
    threads: int,
    branching: list[int],
    repeats: int,
    cells: list[tuple[int, int]],
) -> list[dict[str, Any]]:
    """A row per cell and pair, printed as they come. `pairs` hold a search and, by its name, what is set beside it."""
    rows: list[dict[str, Any]] = []

    def compare(name: str, cell: dict[str, int], one: Measured, many: Measured) -> None:
        found = [1 / one() * many() for _ in range(repeats)]
        low, middle, high = statistics.quantiles(found, n=4, method="inclusive") if repeats > 1 else found * 3
        row = cell | {"what": name, "ratio": middle, "low": low, "high": high}
        where = " x ".join(map(str, cell.values()))
        text = f"{where:16}  {name:34} {middle:5.2f} {low:5.2f} {high:5.2f}"
        if lines := many.line_ns if isinstance(many, Rate) else []:
            row |= {"line_ns": statistics.median(lines), "pairs": list(zip(found, lines, strict=True))}
            text += f"  {row['line_ns']:5.0f}"
        rows.append(row)
        print(text, flush=True)

    print(f"{'trees, nodes, B':16}  {f'{threads} over one':34} ratio   low  high  line, ns")
    compare(f"{threads} threads copy memory", {}, partial(copied, 1), partial(copied, threads))
    for trees, nodes in cells or CELLS:
        for b in branching:
            cell = {"trees": trees, "nodes": nodes, "branching": b}
            for name, (one, many) in pairs.items():
                compare(name, cell, Rate(one, cell), Rate(many, cell))
    return rows
