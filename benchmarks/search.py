"""The tree core from Python: simulations (select, expand with B children, back up a constant) per CPU second.

One wave per step asks every tree for one leaf. A plain-Python UCT search does the same work for comparison.
`python -m benchmarks.search --help`
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from pathlib import Path

import numpy as np

from bdc.search import UCT, Forest


def ours(trees: int, nodes: int, branching: int, threads: int) -> tuple[float, int]:
    """CPU seconds and simulations of one search, driven in waves."""
    forest = Forest(UCT(), "mean", threads=threads)
    value = np.full(trees, 0.5)
    start = time.process_time()
    roots = forest.plant(trees)
    for _ in range(nodes // branching):
        selection = forest.select(roots)
        forest.expand(selection.leaf, branching)
        forest.backup(selection, value)
    return time.process_time() - start, nodes // branching * trees


def plain_python(trees: int, nodes: int, branching: int, threads: int) -> tuple[float, int]:
    """The same search on lists, one tree after the other."""
    start = time.process_time()
    for _ in range(trees):
        children: list[list[int]] = [[]]
        parent, n, total, visits = [-1], [0], [0.0], [1]
        for _ in range(nodes // branching):
            at = 0
            while children[at]:
                log = math.log(visits[at])
                at = max(
                    children[at],
                    key=lambda c: math.inf if n[c] == 0 else total[c] / n[c] + math.sqrt(2 * log / n[c]),
                )
            children[at] = list(range(len(parent), len(parent) + branching))
            for _ in range(branching):
                children.append([])
                parent.append(at)
                n.append(0)
                total.append(0.0)
                visits.append(1)
            value = 0.5
            while at >= 0:
                n[at] += 1
                total[at] += value
                value *= 0.9
                at = parent[at]
                if at >= 0:
                    visits[at] += 1
    return time.process_time() - start, nodes // branching * trees


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trees", type=int, nargs="+", default=[1, 64, 256])
    parser.add_argument("--nodes", type=int, nargs="+", default=[1000])
    parser.add_argument("--branching", type=int, nargs="+", default=[3, 8, 32])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the rows here")
    args = parser.parse_args()
    rows = []
    print(f"{'system':12} {'trees':>6} {'nodes':>8} {'B':>3} {'ksim/CPU s':>11} {'min':>8} {'max':>8}")
    for name, run in (("bdc.search", ours), ("python", plain_python)):
        for trees in args.trees:
            for nodes in args.nodes:
                if run is plain_python and trees * nodes > 300_000:
                    continue  # minutes
                for branching in args.branching:
                    rates = []
                    for _ in range(args.repeats):
                        seconds, simulations = run(trees, nodes, branching, args.threads)
                        rates.append(simulations / seconds / 1000)
                    row = {"system": name, "trees": trees, "nodes": nodes, "branching": branching}
                    row |= {"median": statistics.median(rates), "min": min(rates), "max": max(rates)}
                    rows.append(row)
                    print(
                        f"{name:12} {trees:6} {nodes:8} {branching:3} "
                        f"{row['median']:11.1f} {row['min']:8.1f} {row['max']:8.1f}",
                        flush=True,
                    )
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
