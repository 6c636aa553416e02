"""The command: runs the cells, prints tables, writes JSON."""

from __future__ import annotations

import argparse
import importlib.util
import json
import shlex
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from bdc.artefacts import atomic_write, make_way
from bdc.errors import BdcError, InputError, MissingExtraError
from bdc.ops.bench import cells as grid
from bdc.ops.bench import dispatch, gradients, report, slices, streamed
from bdc.ops.bench import machine as limits
from bdc.ops.bench.cells import Cell
from bdc.ops.bench.peers import PEERS, Peer
from bdc.ops.bench.timing import interleaved
from bdc.ranges import check_ranges, whole_numbers

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Of the largest value: far above rounding, far below what a wrong row, gate or factor gives.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 4e-3}


def run(cell: Cell, peers: Sequence[Peer], machine: limits.Machine, seconds: float) -> dict[str, Any]:
    """Check each form against float64, then time them all; forms that are wrong are refused."""
    inputs = grid.inputs(cell)
    start = inputs.y.clone()
    calls = {"base": lambda: torch.nn.functional.linear(inputs.x, inputs.w)}
    with torch.inference_mode():
        for peer in peers:
            if not peer.runs(cell):
                continue
            y, given = start.clone(), peer.given(inputs)
            call = peer.make(given, y)
            _check_product(peer, cell, given, call(), y)
            calls[peer.name] = peer.make(given, inputs.y)
        times = interleaved(calls, seconds, lambda: inputs.y.copy_(start))
    return report.record(cell, times, machine)


def _check_product(peer: Peer, cell: Cell, inputs: grid.Inputs, returned: Any, y: torch.Tensor) -> None:
    truth = grid.expected(inputs, gated=peer.name != "peft one")
    at = grid.sample(inputs)
    got = (returned.reshape(y.shape) if peer.returns else y)[at].double()
    error = float((got - truth).abs().max() / truth.abs().max())
    if not error <= TOLERANCE[cell.dtype]:
        raise BdcError(f"{peer.name} is wrong by {error:.1e} of the largest value in {cell}, so it was not timed")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bdc bench op",
        description="The rank-wise product beside torch's two-GEMM forms, PEFT and vLLM, interleaved, with the base GEMM "
        "and the measured limits of the machine. Set OMP_WAIT_POLICY=passive before it starts on a shared machine.",
    )
    parser.add_argument("--quick", action="store_true", help="few cells, without torch.compile: under a minute")
    parser.add_argument("--threads", type=int, help="threads of torch and of the kernel")
    parser.add_argument("--dtypes", default="float32,bfloat16", help=f"of {', '.join(DTYPES)}")
    parser.add_argument("--tokens", type=whole_numbers, help="numbers of tokens, as 1,16,256")
    parser.add_argument("--ranks", type=whole_numbers, help="ranks of the stack, as 24,128")
    parser.add_argument("--peers", help=f"of {','.join(peer.name.replace(' ', '-') for peer in PEERS[1:])}")
    parser.add_argument("--stream", action="store_true", help="experts that come from memory, also of int8")
    parser.add_argument(
        "--slices", action="store_true", help="merged q, k, v and gate, up: one call beside one per output"
    )
    parser.add_argument("--gradients", action="store_true", help="forward and backward beside torch's autograd")
    parser.add_argument("--seconds", type=float, help="time for each cell")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all figures to FILE")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="also draw the roofline; needs matplotlib")
    return parser


def _peers(args: argparse.Namespace) -> tuple[list[Peer], list[str]]:
    """Those to run, and the names of those whose package is missing."""
    known = {peer.name.replace(" ", "-"): peer for peer in PEERS}
    if args.peers is None:
        wanted = [peer for peer in PEERS if peer.quick or not args.quick]
    else:
        names = args.peers.split(",")
        unknown = [name for name in names if name not in known]
        if unknown:
            raise InputError(f"--peers must be of {', '.join(known)}, got {unknown[0]}")
        wanted = [peer for name, peer in known.items() if name in {"bdc", "addmm_", "hoisted", *names}]
    missing = [peer.name for peer in wanted if peer.missing]
    return [peer for peer in wanted if not peer.missing], missing


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; prints tables and optionally writes JSON. Returns the exit code."""
    args = _parser().parse_args(argv)
    args.command = shlex.join(["bdc", "bench", "op", *(sys.argv[1:] if argv is None else argv)])
    _check(args)
    names = args.dtypes.split(",")
    if any(name not in DTYPES for name in names):
        raise InputError(f"--dtypes must be of {', '.join(DTYPES)}, got {args.dtypes}")
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    for option, run_rows in _OTHERS.items():
        if getattr(args, option):
            return run_rows(args, [DTYPES[name] for name in names])
    peers, missing = _peers(args)
    dtypes = tuple(DTYPES[name] for name in names)
    machine = limits.measure(dtypes)
    about = limits.describe() | {"missing_peers": missing, "semantics": {peer.name: peer.semantics for peer in peers}}
    packages = sorted({peer.package for peer in peers if peer.package})
    about["peers"] = {name: str(importlib.import_module(name).__version__) for name in packages}
    print(f"{about['device']}; {about['backend']}; torch {about['torch']}; commit {about['commit']}")
    print(f"limits: {json.dumps(machine.as_json())}")
    for peer in peers:
        print(f"{peer.name}: {peer.semantics}")
    for name in missing:
        print(f"{name}: not installed, left out")
    calls = dispatch.measure()
    print("a call on 1 token, 64 -> 8 -> 64, us: " + "; ".join(f"{name} {us}" for name, us in calls.items()))
    print(report.HEADER)
    shapes = grid.QUICK_SHAPES if args.quick else tuple(grid.SHAPES)
    tokens = args.tokens or (grid.QUICK_TOKENS if args.quick else grid.TOKENS)
    ranks = args.ranks or (grid.QUICK_RANKS if args.quick else grid.RANKS)
    seconds = args.seconds or (0.1 if args.quick else 0.5)
    about |= {"limits": machine.as_json(), "call_us": calls, "seconds": seconds}
    found: list[dict[str, Any]] = []
    try:
        for dtype in dtypes:
            for shape in shapes:
                for count in tokens:
                    for rank in ranks:
                        cell = Cell(shape, *grid.SHAPES[shape], rank, count, dtype)
                        found.append(run(cell, peers, machine, seconds))
                        print(report.row(found[-1]), flush=True)
    finally:  # what was measured is kept
        totals = report.summary(found)
        _write(args, about | {"summary": totals}, found)
    print("\n" + report.summary_table(totals))
    if args.picture:
        report.picture(found, machine, args.picture)
    return 0


def _check(args: argparse.Namespace) -> None:
    """Refuse what could only fail once all was measured."""
    if args.threads is not None:
        check_ranges(args, "--", "threads", low=1, high=1024)
    if args.seconds is not None:
        check_ranges(args, "--", "seconds", low=0, above=True, high=3600)
    others = [name for name in _OTHERS if getattr(args, name)]
    ignored = [name for name in (*others[1:], "quick", "peers", "picture") if others and getattr(args, name)]
    if ignored:
        raise InputError(f"--{ignored[0]} cannot be given with --{others[0]}")
    if args.picture is not None and importlib.util.find_spec("matplotlib") is None:
        raise MissingExtraError("--picture needs matplotlib: pip install matplotlib")
    for path in (args.json, args.picture):
        if path is not None:
            make_way(path)


def _run_slices(args: argparse.Namespace, dtypes: Sequence[torch.dtype]) -> int:
    tokens, ranks, seconds = args.tokens or (1, 4, 16, 64), args.ranks or (32, 128), args.seconds or 0.3
    print(slices.HEADER)
    about = limits.describe() | {"seconds": seconds}
    return _print_rows(args, slices.rows(dtypes, tokens, ranks, seconds), slices.line, about)


def _run_streamed(args: argparse.Namespace, dtypes: Sequence[torch.dtype]) -> int:
    tokens, ranks = args.tokens or (1, 2, 4, 8, 16), args.ranks or (32, 128)
    machine = limits.measure(tuple(dtypes))
    print(f"limits: {json.dumps(machine.as_json())}\n{streamed.HEADER}")
    rows = streamed.rows(machine, dtypes, tokens, ranks, max(3, int(8 * (args.seconds or 1))))
    return _print_rows(args, rows, streamed.line, limits.describe() | {"limits": machine.as_json()})


def _run_gradients(args: argparse.Namespace, dtypes: Sequence[torch.dtype]) -> int:
    tokens, ranks, seconds = args.tokens or (16, 64, 256, 1024), args.ranks or (32, 128), args.seconds or 0.3
    print(gradients.HEADER)
    about = limits.describe() | {"seconds": seconds}
    return _print_rows(args, gradients.rows(dtypes, tokens, ranks, seconds, TOLERANCE), gradients.line, about)


# Options that take other rows than the grid.
_OTHERS = {"slices": _run_slices, "stream": _run_streamed, "gradients": _run_gradients}


def _print_rows(
    args: argparse.Namespace,
    rows: Iterable[dict[str, Any]],
    line: Callable[[dict[str, Any]], str],
    about: dict[str, Any],
) -> int:
    """Each row as it is measured, and all of them in the record."""
    found: list[dict[str, Any]] = []
    try:
        for row in rows:
            print(line(row), flush=True)
            found.append(row)
    finally:
        _write(args, about, found)
    return 0


def _write(args: argparse.Namespace, about: dict[str, Any], found: list[dict[str, Any]]) -> None:
    """The record; nothing without a path or a cell."""
    if args.json is None or not found:
        return
    text = report.as_text(about | {"command": args.command}, found)
    json.loads(text)
    atomic_write(args.json, text)
    print(f"wrote {args.json}", file=sys.stderr)
