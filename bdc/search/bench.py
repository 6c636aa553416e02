"""`bdc bench search`: simulations of the tree core and of its peers, the same work in one run.

A simulation selects a leaf, gives it B children, and backs up a constant at the leaf; UCT with c = sqrt(2), mean backup.
Rates are thousands of simulations per CPU second, the median of the repeats with its range. Two rows are ours: driven
from C++ (the program `search_bench`) and from Python in waves of one leaf per tree. Peers run where they are given:
`--plain` and `--openspiel` programs built by benchmarks/peers/CMakeLists.txt, `--peers` the Python of an environment
with them, `--lightzero` LightZero's unpacked wheel. "plain C++" is bare arrays without anything that makes a library of
them. Peers without a batched call search one tree after the other. OpenSpiel expands a leaf at its second visit and
gumbel-mcts makes a child when it visits it, so that both make fewer nodes in the same number of simulations;
"OpenSpiel, per expansion" searches until it has made as many and counts expansions. Every system does a search first
that is not counted.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import os
import platform
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bdc.artefacts import atomic_write, make_way
from bdc.errors import InputError
from bdc.machine import commit, processor, usable_cores
from bdc.ranges import check_ranges
from bdc.search import bench_calls, bench_scaling
from bdc.search.forest import Forest
from bdc.search.rules import UCT

Rate = Callable[[int, int, int], dict[str, Any]]
CELLS = [(1, 1_000), (1, 100_000), (1, 1_000_000), (64, 1_000), (64, 100_000), (256, 1_000), (1024, 1_000)]
BRANCHING = [3, 8, 32]
PEERS = {
    "LightZero": 1_100_000,
    "mctx": 64_000,
    "gumbel-mcts": 64_000,
    "TreeQuest": 1_000,
    "TreeQuest AB-MCTS-A": 500,
}  # most nodes


def in_waves(threads: int, by_steps: bool = False) -> Rate:
    """Ours from Python, with the wall clock's rate too; `by_steps` adds that of the median time of each step."""

    def rate(trees: int, nodes: int, branching: int) -> dict[str, Any]:
        value = np.full(trees, 0.5)
        waves = nodes // branching
        repeats = max(7 if by_steps else 1, 200_000 // (trees * waves))
        ends: list[float] = []  # of all steps
        for repeat in range(repeats + 1):
            if repeat == 1:  # the first search is not counted
                wall, cpu = time.perf_counter(), time.process_time()
            forest = Forest(UCT(), "mean", threads=threads)
            selection = forest.select(forest.plant(trees))
            for _ in range(waves):
                selection = forest.step(selection, branching, value)
                if by_steps:
                    ends.append(time.perf_counter())
            del forest  # before the next one, which can use its memory again
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        work = trees * waves * repeats
        found = {"per_cpu_second": work / cpu, "per_second": work / wall, "last_depth": float(selection.depth.mean())}
        if by_steps:  # the first step of a search with the making of its forest
            steps = np.diff(ends[waves - 1 :]).reshape(repeats, waves)
            found["median_per_second"] = trees * waves / float(np.median(steps, axis=0).sum())
        return found

    return rate


def plain_python(trees: int, nodes: int, branching: int) -> dict[str, Any]:
    """The same search on lists, as often as takes 0.1 s, after one that is not counted."""
    plain_search(trees, nodes, branching)
    start, spent, repeats = time.process_time(), 0.0, 0
    while spent < 0.1:  # small cells often enough to time
        plain_search(trees, nodes, branching)
        repeats += 1
        spent = time.process_time() - start
    return {"per_cpu_second": trees * (nodes // branching) * repeats / spent}


def plain_search(trees: int, nodes: int, branching: int) -> None:
    """One tree after the other, in lists."""
    for _ in range(trees):
        children: list[list[int]] = [[]]
        parent, n, total, visits = [-1], [0], [0.0], [1]
        for _ in range(nodes // branching):
            at = 0
            while children[at]:
                log = math.log(visits[at])
                score = [math.inf if n[c] == 0 else total[c] / n[c] + math.sqrt(2 * log / n[c]) for c in children[at]]
                at = children[at][score.index(max(score))]
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


def program(*command: str | Path, last: Sequence[str] = ()) -> Rate:
    """A program that takes trees, nodes, branching and `last`, and prints one line of JSON."""

    def rate(trees: int, nodes: int, branching: int) -> dict[str, Any]:
        words = [*map(str, command), str(trees), str(nodes), str(branching), *last]
        done = subprocess.run(words, capture_output=True, text=True, errors="replace")
        if done.returncode:
            said = done.stderr.strip().splitlines() or ["it said nothing"]
            raise InputError(f"`{shlex.join(words)}` failed with exit code {done.returncode}: {said[-1]}")
        try:
            found = json.loads(done.stdout.splitlines()[-1])
        except (ValueError, IndexError):
            found = None
        if not isinstance(found, dict) or not found.keys() & {"rates", "per_cpu_second"}:
            raise InputError(f"the last line of `{shlex.join(words)}` is no JSON with a rate")
        return found

    return rate


def systems(args: argparse.Namespace) -> dict[str, tuple[Rate, int]]:
    """By name: how to measure one cell, and the most nodes it is measured with (larger cells take minutes)."""
    found: dict[str, tuple[Rate, int]] = {}
    if args.core:
        found["bdc from C++"] = (program(args.core), 10**9)
    found["bdc in waves"] = (in_waves(1), 10**9)
    if args.threads > 1:
        if args.core:
            found[f"bdc from C++, {args.threads} threads"] = (program(args.core, last=[str(args.threads)]), 10**9)
        found[f"bdc in waves, {args.threads} threads"] = (in_waves(args.threads), 10**9)
    if args.plain:
        found["plain C++"] = (program(args.plain), 10**9)
        found["plain C++ in waves"] = (program(args.plain, last=["waves"]), 10**9)
    if args.openspiel:
        found["OpenSpiel"] = (program(args.openspiel), 10**9)
        found["OpenSpiel, per expansion"] = (program(args.openspiel, last=["grown"]), 10**9)
    if args.peers:
        script = Path(__file__).parents[2] / "benchmarks" / "peers" / "search_peers.py"
        for name, most in PEERS.items():
            if name != "LightZero" or args.lightzero:
                found[name] = (program(args.peers, script, name), most)
    found["plain Python"] = (plain_python, 64_000)
    return found


def cell(text: str) -> tuple[int, int]:
    """Trees and nodes of a command line's TREESxNODES."""
    trees, _, nodes = text.partition("x")
    if not (trees.isdecimal() and nodes.isdecimal() and int(trees) > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is not TREESxNODES, for example 64x1000")
    return int(trees), int(nodes)


def scaling(args: argparse.Namespace) -> dict[str, Any]:
    """Ours with several threads over ours with one."""
    threads = max(2, args.threads)
    pairs: dict[str, tuple[Rate, Rate]] = {}
    if args.core:
        one = program(args.core, last=["1", "steps"])
        pairs[f"from C++, {threads} threads"] = (one, program(args.core, last=[str(threads), "steps"]))
        pairs[f"from C++, {threads} processes"] = (one, bench_scaling.together(one, threads))
    pairs[f"in waves, {threads} threads"] = (in_waves(1, by_steps=True), in_waves(threads, by_steps=True))
    rows = bench_scaling.measure(pairs, threads, args.branching, args.repeats, args.cells)
    return {"threads": threads, "rows": rows}


def device() -> str:
    """The processor's name and how many of them this process may use."""
    return f"{processor()}, {usable_cores()} processors"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="bdc bench search", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--cells", nargs="+", type=cell, default=[], help="TREESxNODES, for example 64x1000 (default: the whole grid)"
    )
    parser.add_argument("--branching", type=int, nargs="+", default=BRANCHING)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1, help="a further row of ours with so many threads")
    parser.add_argument(
        "--core", type=Path, help="the program search_bench (cmake --build BUILD --target search_bench)"
    )
    parser.add_argument("--plain", type=Path, help="the program plain_bench")
    parser.add_argument("--openspiel", type=Path, help="the program openspiel_bench")
    parser.add_argument("--peers", type=Path, help="a Python with mctx, jax, treequest, numba and gumbel-mcts")
    parser.add_argument("--lightzero", type=Path, help="the folder of LightZero's unpacked wheel")
    parser.add_argument("--calls", action="store_true", help="what single calls cost, instead of the grid")
    parser.add_argument(
        "--scaling", action="store_true", help="--threads (default 2) over one, beside what the machine gives"
    )
    parser.add_argument("--json", type=Path, help="write the rows here, beside those of this commit")
    args = parser.parse_args(argv)
    command = f"bdc bench search {' '.join(sys.argv[1:] if argv is None else argv)}"
    check_ranges(args, "--", "repeats", "threads", low=1)
    for size in args.branching:
        if not 1 <= size <= min((nodes for _, nodes in args.cells), default=size):
            raise InputError(f"--branching has {size}; it lies between 1 and the nodes of the smallest cell")
    if args.json:
        prepare(args.json)
    record = head(command)  # of the checkout that starts the run
    if args.calls or args.scaling:
        figures = bench_calls.measure() if args.calls else scaling(args)
        if args.json:
            atomic_write(args.json, json.dumps(record | figures, indent=1) + "\n")
        return 0
    os.environ.update(OMP_NUM_THREADS="1", XLA_FLAGS="--xla_cpu_multi_thread_eigen=false")
    if args.lightzero:
        if not args.lightzero.is_dir():
            raise InputError(f"--lightzero is {args.lightzero}, which is no folder")
        os.environ["LIGHTZERO"] = str(args.lightzero)
    found = systems(args)
    rows: list[dict[str, Any]] = []
    print(f"{'trees':>6} {'nodes':>8} {'B':>3}  {'system':24} {'ksim/CPU s':>11} {'min':>8} {'max':>8}")
    for trees, nodes in args.cells or CELLS:
        for branching in args.branching:
            wanted = {name: rate for name, (rate, most) in found.items() if trees * nodes <= most}
            results: dict[str, list[dict[str, Any]]] = {name: [] for name in wanted}
            for repeat in range(args.repeats):
                turn = repeat % len(wanted)  # nobody always runs after the same neighbour
                for name, rate in [*wanted.items()][turn:] + [*wanted.items()][:turn]:
                    if repeat == 0 or name not in PEERS:  # these repeat by themselves: their imports take seconds
                        results[name].append(rate(trees, nodes, branching))
            for name, runs in results.items():
                rates = [rate / 1000 for run in runs for rate in run.get("rates", [run.get("per_cpu_second")])]
                row = {"trees": trees, "nodes": nodes, "branching": branching, "system": name}
                row |= {"median": statistics.median(rates), "min": min(rates), "max": max(rates)}
                if "per_second" in runs[0]:
                    row["wall_median"] = statistics.median(run["per_second"] / 1000 for run in runs)
                extras = ("mean_depth", "last_depth", "bytes_per_node", "nodes_made", "version")
                row |= {key: runs[0][key] for key in extras if key in runs[0]}
                rows.append(row)
                print(
                    f"{trees:6} {nodes:8} {branching:3}  {name:24} {row['median']:11.1f} "
                    f"{row['min']:8.1f} {row['max']:8.1f}",
                    flush=True,
                )
            if args.json:
                write(args.json, rows, record)
    return 0


def head(command: str) -> dict[str, Any]:
    """Where, when, with what and by which command a record was made."""
    return {
        "device": device(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "date": datetime.date.today().isoformat(),
        "commit": commit(),
        "commands": [command],
    }


def prepare(path: Path) -> None:
    """Makes the folder of a record.

    Raises:
        InputError: it cannot be made, or something that is no record lies at `path`.
    """
    make_way(path)
    if path.exists():
        try:
            old = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            old = None
        if not isinstance(old, dict):
            raise InputError(f"{path} is there already and no record of this benchmark; choose another file")


def write(path: Path, rows: list[dict[str, Any]], record: dict[str, Any]) -> None:
    """Writes the rows; those of other cells stay that a run of the same commit on the same device has written."""
    record = {"what": "thousand simulations per CPU second"} | record
    if path.exists():
        old = json.loads(path.read_text(encoding="utf-8"))
        if all(old.get(key) == record[key] for key in ("what", "device", "commit")):
            measured = {(row["trees"], row["nodes"], row["branching"]) for row in rows}
            kept = [row for row in old["rows"] if (row["trees"], row["nodes"], row["branching"]) not in measured]
            rows = kept + rows
            record["commands"] = [*dict.fromkeys([*old["commands"], *record["commands"]])]
    atomic_write(path, json.dumps(record | {"rows": rows}, indent=1) + "\n")
