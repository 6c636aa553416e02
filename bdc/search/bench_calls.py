"""`bdc bench search --calls`: what single calls of the tree core cost from Python, with medians over many."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bdc.search.forest import Forest
from bdc.search.rules import UCT, Thompson

THOMPSON_NODES = (100, 1_000, 10_000, 100_000)
SNAPSHOT_NODES = 1_000_000


def median_seconds(work: Callable[[], Any], repeats: int) -> float:
    """CPU time of one `work()`."""
    spent = []
    for _ in range(repeats):
        start = time.process_time_ns()
        work()
        spent.append(time.process_time_ns() - start)
    return statistics.median(spent) / 1e9


def simulation(trees: int, leaves: int, *, waves: int = 300) -> float:
    """Microseconds per leaf of select, expand with three children and backup, `leaves` in each of `trees` per call."""

    def search() -> None:
        forest = Forest(UCT(), "mean", threads=1)
        roots = forest.plant(trees)
        value = np.full(trees * leaves, 0.5)
        for _ in range(waves):
            selection = forest.select(roots, leaves)
            forest.expand(selection.distinct_leaves if leaves > 1 else selection.leaf, 3)
            forest.backup(selection, value)

    return median_seconds(search, 7) / (waves * trees * leaves) * 1e6


def steps(trees: int, *, waves: int = 300) -> float:
    """The same with `step`, one leaf in each of `trees`."""

    def search() -> None:
        forest = Forest(UCT(), "mean", threads=1)
        selection = forest.select(forest.plant(trees))
        value = np.full(trees, 0.5)
        for _ in range(waves):
            selection = forest.step(selection, 3, value)

    return median_seconds(search, 7) / (waves * trees) * 1e6


def thompson(nodes: int, posterior: str, *, seed: int = 0) -> dict[str, Any]:
    """Selections per CPU second (thousand) of AB-MCTS-like Thompson on one tree of so many nodes that it has grown
    itself, with uniform random returns; each is abandoned, so that the tree stays."""
    forest = Forest(Thompson(1, posterior), "mean", seed=seed, threads=1)  # type: ignore[arg-type]
    roots = forest.plant(1)
    returns = np.random.default_rng(seed).random(nodes)
    while len(forest) < nodes:
        leaves = 1 if len(forest) < 1000 else 8  # several at once, as a parallel search does
        selection = forest.select(roots, leaves)
        children = forest.expand(selection.leaf, 1, None, selection.agent)
        forest.backup(children, returns[: len(children)], tickets=selection.ticket)
        returns = np.roll(returns, len(children))

    def select() -> None:
        for _ in range(100):
            forest.abandon(forest.select(roots))

    rows = forest.nodes(int(roots[0]))
    return {
        "nodes": nodes,
        "posterior": posterior,
        "root_children": int(rows["children"][0]),
        "most_children": int(rows["children"].max()),
        "depth": int(rows["depth"].max()),
        "thousand_per_second": 100 / median_seconds(select, 31) / 1e3,
    }


def snapshot(nodes: int) -> dict[str, float]:
    """Milliseconds of save (to the disk, and without waiting for it), of load with all checks, and of a mapped open,
    by the wall clock."""
    forest = Forest(UCT(), "mean", threads=1)
    roots = forest.plant(64)
    while len(forest) < nodes:
        selection = forest.select(roots)
        forest.expand(selection.leaf, 8)
        forest.backup(selection, np.full(64, 0.5))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "forest"
        times: dict[str, list[float]] = {"save_no_sync": [], "save": [], "load": [], "open": []}
        for _ in range(7):
            marks = [time.perf_counter()]
            forest.save(path, sync=False)
            marks.append(time.perf_counter())
            forest.save(path)
            marks.append(time.perf_counter())
            checked = Forest.load(path)
            marks.append(time.perf_counter())
            mapped = Forest.load(path, verify=False)
            marks.append(time.perf_counter())
            assert len(checked) == len(mapped) == len(forest)
            del checked, mapped  # not within the next round's times
            for name, before, after in zip(times, marks, marks[1:], strict=False):
                times[name].append(1e3 * (after - before))
        size = path.stat().st_size
    return {name: statistics.median(spent) for name, spent in times.items()} | {"megabytes": size / 1e6}


def measure(
    *, thompson_nodes: tuple[int, ...] = THOMPSON_NODES, snapshot_nodes: int = SNAPSHOT_NODES
) -> dict[str, Any]:
    """All of it, printed line by line."""
    figures: dict[str, Any] = {"us_per_leaf": {}}
    for trees, leaves in ((1, 1), (1, 64), (256, 1), (1024, 1)):
        name = f"{trees} trees, {leaves} leaves each"
        figures["us_per_leaf"][name] = value = simulation(trees, leaves)
        print(f"{name:28} {value:8.3f} us per leaf (select, expand, backup)", flush=True)
    figures["us_per_leaf_in_steps"] = {}
    for trees in (1, 256, 1024):
        figures["us_per_leaf_in_steps"][f"{trees} trees"] = value = steps(trees)
        print(f"{trees:4} trees, one leaf each      {value:8.3f} us per leaf (step)", flush=True)
    figures["thompson"] = []
    for posterior in ("beta", "normal"):
        for nodes in thompson_nodes:
            figures["thompson"].append(row := thompson(nodes, posterior))
            print(
                f"Thompson, {posterior:6} {nodes:8} nodes, {row['root_children']:5} below the root: "
                f"{row['thousand_per_second']:8.1f} thousand selections per second",
                flush=True,
            )
    figures["snapshot_ms"] = found = snapshot(snapshot_nodes)
    print(f"{snapshot_nodes} nodes: " + ", ".join(f"{name} {value:.1f}" for name, value in found.items()) + " (ms, MB)")
    return figures
