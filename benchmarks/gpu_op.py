"""The rank-wise product on a GPU: the layers of Llama-3.1-8B, R = 128, bfloat16, under graph replay.

Every form is first compared with float64; one that is wrong is reported as such and not timed. `--dry-run` runs the same code on a
CPU, with tiny sizes and Triton's interpreter, to show that it works; its times mean nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import importlib.util
import itertools
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

# Name to d_in and the outputs that share x, as serving engines merge them.
Shapes = dict[str, tuple[int, tuple[int, ...]]]
LLAMA: Shapes = {
    "qkv": (4096, (4096, 1024, 1024)),
    "o": (4096, (4096,)),
    "gate_up": (4096, (14336, 14336)),
    "down": (14336, (4096,)),
}
TINY: Shapes = {"qkv": (64, (64, 64, 32)), "o": (96, (64,))}
# Larger than the cache of an H100 or H200, in all sets together.
BYTES_OF_SETS = 256 << 20
OURS = (
    "bdc.ops layer",
    "bdc.ops added",
    "cuda",
    "cuda layer",
    "triton",
    "triton 1",
    "triton layer",
    "n-concat",
    "forked",
    "k-concat",
    "k-concat mm",
)
LARGEST_ERROR = {torch.bfloat16: 1e-2, torch.float16: 2e-3, torch.float32: 1e-5}


def sets_of(d_in: int, d_out: int, dtype: torch.dtype, tiny: bool) -> int:
    """Input sets to rotate among."""
    return 1 if tiny else max(2, min(32, -(-BYTES_OF_SETS // (d_in * d_out * dtype.itemsize))))


def error_of(launch: Any, case: Any, gated: bool = True) -> float:
    """Relative error against float64 of a sample of the tokens; infinite where it is not finite."""
    got, expected = launch()[case.sample()].double(), case.truth(gated)
    error = float((got - expected).norm() / expected.norm())
    return error if error == error else float("inf")


def measure(
    shape: tuple[int, tuple[int, ...]], tokens: int, rank: int, dtype: torch.dtype, device: torch.device, args: Any
) -> dict[str, Any]:
    """One cell: microseconds of each form, and why the others were not timed."""
    from gpu_clock import Timer, interleaved
    from gpu_forms import FORMS, OTHER_PRODUCT, UNGATED, Case

    d_in, widths = shape
    d_out = sum(widths)
    requests = 2 if args.dry_run else 16
    cases = [
        Case.random(tokens, d_in, widths, rank, dtype, device, requests)
        for _ in range(sets_of(d_in, d_out, dtype, args.dry_run))
    ]
    timers, errors, left_out = {}, {}, {}
    for name, form in FORMS.items():
        try:
            launches = [form(case) for case in cases]
            if launches[0] is None:
                left_out[name] = "does not apply, or is not installed"
                continue
            if name not in OTHER_PRODUCT:
                errors[name] = error_of(launches[-1], cases[-1], name not in UNGATED)
                if errors[name] > LARGEST_ERROR[dtype]:
                    left_out[name] = f"wrong: relative error {errors[name]:.2e}"
                    continue
            timers[name] = Timer([launch for launch in launches if launch is not None], device)
        except Exception as error:  # one form's failure must not cost the others' times
            left_out[name] = f"{type(error).__name__}: {str(error)[:300]}"
    times = interleaved(timers, args.rounds)
    before = times["base"]["median"]
    return {
        "tokens": tokens,
        "d_in": d_in,
        "d_out": d_out,
        "rank": rank,
        "floor": rank * (len(widths) * d_in + d_out) / (d_in * d_out),
        "us": times,
        "overhead": {name: value["median"] / before - 1 for name, value in times.items() if name != "base"},
        "relative_error": errors,
        "left_out": left_out,
    }


def compile_all(argv: Sequence[str], jobs: int) -> None:
    """Launch everything once in several processes, which leave Triton's kernels in its cache: one would take minutes."""
    command = [sys.executable, str(Path(__file__)), *argv, "--jobs", str(jobs), "--part"]
    for job in [subprocess.Popen([*command, str(part)], stdout=subprocess.DEVNULL) for part in range(jobs)]:
        job.wait()


def launch_once(shape: tuple[int, tuple[int, ...]], tokens: int, rank: int, dtype: torch.dtype) -> None:
    """Compiles what a cell needs; errors are for the measurement to report."""
    from gpu_forms import FORMS, Case

    case = Case.random(tokens, *shape, rank, dtype, torch.device("cuda"))
    for form in FORMS.values():
        with contextlib.suppress(Exception):
            launch = form(case)
            if launch is not None:
                launch()


def whole_layer(cells: list[dict[str, Any]]) -> dict[str, Any]:
    """Overhead over all linear layers of a transformer layer, by form, where every cell has it; "best" takes each cell's best of ours."""
    names = set.intersection(*(set(cell["us"]) for cell in cells))
    total = {name: sum(cell["us"][name]["median"] for cell in cells) for name in cells[0]["us"] if name in names}
    total["best"] = sum(min(cell["us"][name]["median"] for name in OURS if name in cell["us"]) for cell in cells)
    sizes = [cell["d_in"] * cell["d_out"] for cell in cells]
    floor = sum(cell["floor"] * size for cell, size in zip(cells, sizes, strict=True)) / sum(sizes)
    overhead = {name: value / total["base"] - 1 for name, value in total.items() if name != "base"}
    # With the norm that makes x on both sides.
    if {"norm+base", "norm+triton"} <= total.keys():
        overhead["norm+triton"] = total["norm+triton"] / total["norm+base"] - 1
        del overhead["norm+base"]
    return {"us": total, "overhead": overhead, "floor": floor}


def copy_rate() -> float:
    """Terabytes per second of a large copy on the GPU, read and written."""
    source = torch.randint(0, 255, (1 << 30,), dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    times = []
    for _ in range(8):
        start.record()
        target.copy_(source)
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return 2 * source.numel() / min(times) / 1e9


def main(argv: Sequence[str] | None = None) -> int:
    """Run the grid; the exit code is 1 if a form of ours was wrong or failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the cells to FILE")
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes on the CPU, in Triton's interpreter")
    parser.add_argument("--rounds", type=int, default=30, help="interleaved rounds of each cell")
    parser.add_argument("--seconds", type=float, default=200, help="begin no token count after that long")
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count(), help="processes that compile Triton's kernels first"
    )
    parser.add_argument("--part", type=int, help=argparse.SUPPRESS)  # of the cells, for one of those processes
    args = parser.parse_args(argv)
    if args.dry_run:
        os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported
        args.rounds = 2
    elif not torch.cuda.is_available():
        parser.error("no GPU is available: --dry-run shows that the script works")
    device = torch.device("cpu" if args.dry_run else "cuda")
    dtype = torch.float16 if args.dry_run else torch.bfloat16  # NumPy has no bfloat16, vLLM no float32
    shapes, rank = (TINY, 16) if args.dry_run else (LLAMA, 128)
    counts = (1, 20) if args.dry_run else (1, 16, 64, 4096, 8, 256)  # what the targets name comes first
    torch.manual_seed(0)
    began, layers, cells, late = time.monotonic(), {}, [], []
    if args.part is not None:
        with torch.inference_mode():
            for tokens, shape in list(itertools.product(counts, shapes.values()))[args.part :: args.jobs]:
                launch_once(shape, tokens, rank, dtype)
        return 0
    if not args.dry_run:
        compile_all(sys.argv[1:] if argv is None else argv, args.jobs)
        print(f"compiled: {time.monotonic() - began:.0f} s", flush=True)
    record: dict[str, Any] = {
        "device": "CPU, a dry run: times mean nothing" if args.dry_run else torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "triton": importlib.metadata.version("triton") if importlib.util.find_spec("triton") else None,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d"),
        "copy_tb_per_s": None if args.dry_run else copy_rate(),
        "dtype": str(dtype),
        "rank": rank,
        "rounds": args.rounds,
        "not_reached": late,
        "layers": layers,
        "cells": cells,
    }
    with torch.inference_mode():
        for tokens in counts:
            if time.monotonic() - began > args.seconds:
                late.append(tokens)
            else:
                found: list[dict[str, Any]] = []
                for name, shape in shapes.items():
                    found.append({"module": name} | measure(shape, tokens, rank, dtype, device, args))
                    print(f"T={tokens} {name}: {time.monotonic() - began:.0f} s", flush=True)
                cells += found
                layers[tokens] = whole_layer(found)
            if args.json:  # at once, since the next count may be stopped
                args.json.write_text(json.dumps(record, indent=1), encoding="utf-8")
    failures = {
        f"{name}: {why}" for cell in cells for name, why in cell["left_out"].items() if not why.startswith("does not")
    }
    for failure in sorted(failures):
        print(f"left out: {failure}")
    names = list(max((layer["overhead"] for layer in layers.values()), key=len))
    print(f"{record['device']}, {record['dtype']}, R={rank}: overhead of a whole layer over its base GEMMs")
    print(f"{'T':>5}{'base us':>10}{'floor':>8}" + "".join(f"{name:>14}" for name in names))
    for tokens, layer in sorted(layers.items()):
        row = "".join(
            f"{layer['overhead'][name]:>13.1%} " if name in layer["overhead"] else f"{'-':>13} " for name in names
        )
        print(f"{tokens:>5}{layer['us']['base']:>10.1f}{layer['floor']:>8.1%}{row}")
    for tokens in late:
        print(f"{tokens:>5} not reached in {args.seconds:.0f} s")
    return int(any(not failure.startswith("vllm") for failure in failures))


if __name__ == "__main__":
    raise SystemExit(main())
