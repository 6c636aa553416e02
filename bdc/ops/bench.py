"""``bdc bench op``: the rank-wise product beside the base GEMM and the two-GEMM forms of torch, in interleaved rounds.

The two-GEMM forms are the honest straw man: ``h = (x A^T) * g; y += s * h B^T`` with library GEMMs.
"""

from __future__ import annotations

import argparse
import json
import platform
import random as random_module
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from bdc.ops import backends, rankwise_lora_

SHAPES = {
    "smollm2-135m/q": (576, 576),
    "smollm2-135m/up": (576, 1536),
    "qwen2.5-0.5b/up": (896, 4864),
    "llama-3.1-8b/q": (4096, 4096),
}


def _cell(d_in: int, d_out: int, tokens: int, rank: int, dtype: torch.dtype, rounds: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    x, w, a, b = random(tokens, d_in), random(d_out, d_in), random(rank, d_in), random(d_out, rank)
    g = torch.rand(tokens, rank, generator=generator)
    gate = g.to(dtype)
    rows = torch.arange(tokens, dtype=torch.int32)
    y = random(tokens, d_out)
    forms: dict[str, Callable[[], Any]] = {
        "base": lambda: torch.nn.functional.linear(x, w),
        "bdc": lambda: rankwise_lora_(y, x, a, b, g, rows, 1.0),
        "eager": lambda: y.add_((x @ a.T * gate) @ b.T),
        "addmm_": lambda: y.addmm_(x @ a.T * gate, b.T),
    }
    times: dict[str, list[float]] = {name: [] for name in forms}
    with torch.inference_mode():
        for form in forms.values():
            form()
        order, shuffler = list(forms), random_module.Random(0)
        for _ in range(rounds):
            for name in order:
                started = time.perf_counter()
                forms[name]()
                times[name].append(time.perf_counter() - started)
            # The form after the base GEMM finds cold caches: chance says which.
            shuffler.shuffle(order)
            y.zero_()
    medians = {name: statistics.median(values) * 1e6 for name, values in times.items()}
    floor = rank * (d_in + d_out) / (d_in * d_out)
    return {
        "d_in": d_in,
        "d_out": d_out,
        "tokens": tokens,
        "rank": rank,
        "dtype": str(dtype).removeprefix("torch."),
        "us": {name: round(value, 2) for name, value in medians.items()},
        "p10_p90_us": {name: _spread(values) for name, values in times.items()},
        "overhead": medians["bdc"] / medians["base"],
        "floor": floor,
        "speedup_over_best_torch_form": min(medians["eager"], medians["addmm_"]) / medians["bdc"],
    }


def _spread(values: list[float]) -> tuple[float, float]:
    deciles = statistics.quantiles(values, n=10)
    return round(deciles[0] * 1e6, 2), round(deciles[-1] * 1e6, 2)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; prints a table and optionally writes JSON. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="bdc bench op", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few cells, under a minute")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the cells to FILE")
    parser.add_argument("--rounds", type=int, default=0, help="interleaved rounds per cell")
    args = parser.parse_args(argv)
    rounds = args.rounds or (15 if args.quick else 60)
    tokens = (1, 8, 64) if args.quick else (1, 2, 4, 8, 16, 32, 64, 256, 1024)
    ranks = (24, 128) if args.quick else (24, 32, 64, 128, 256)
    dtypes = (torch.float32, torch.bfloat16)
    print(
        f"backends: {', '.join(backends())}; torch {torch.__version__}, {torch.get_num_threads()} threads, {platform.machine()}"
    )
    print(
        f"{'shape':18}{'dtype':10}{'T':>5}{'R':>5}{'base us':>10}{'bdc us':>10}{'best torch us':>15}{'speed-up':>10}{'overhead':>10}{'floor':>8}"
    )
    cells = []
    for name, (d_in, d_out) in SHAPES.items():
        for dtype in dtypes:
            for count in tokens:
                for rank in ranks:
                    cell = {"shape": name} | _cell(d_in, d_out, count, rank, dtype, rounds)
                    cells.append(cell)
                    us = cell["us"]
                    print(
                        f"{name:18}{cell['dtype']:10}{count:5}{rank:5}{us['base']:10.1f}{us['bdc']:10.1f}"
                        f"{min(us['eager'], us['addmm_']):15.1f}{cell['speedup_over_best_torch_form']:9.2f}x"
                        f"{cell['overhead']:9.1%}{cell['floor']:8.1%}",
                        flush=True,
                    )
    if args.json:
        record = {"torch": torch.__version__, "threads": torch.get_num_threads(), "rounds": rounds, "cells": cells}
        args.json.write_text(json.dumps(record, indent=1), encoding="utf-8")
    return 0
