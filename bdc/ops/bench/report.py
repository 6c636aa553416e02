"""One cell's figures, tables of all cells, and the roofline picture."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from bdc.ops.bench.cells import Cell
from bdc.ops.bench.machine import Machine
from bdc.ops.bench.peers import TORCH_FORMS
from bdc.ops.bench.timing import Times


def record(cell: Cell, times: dict[str, Times], machine: Machine) -> dict[str, Any]:
    """A cell as JSON. ``us`` has [p10, median, p90] of each form; speed-ups, ``others`` and overhead compare medians."""
    medians = {name: value.median for name, value in times.items()}
    ours = medians["bdc"]
    torch_form = min((name for name in TORCH_FORMS if name in medians), key=lambda name: medians[name])
    return {
        "shape": cell.shape,
        "d_in": cell.d_in,
        "d_out": cell.d_out,
        "rank": cell.rank,
        "tokens": cell.tokens,
        "requests": cell.requests,
        "dtype": str(cell.dtype).removeprefix("torch."),
        "us": {name: value[:3] for name, value in times.items()},
        "rounds": next(iter(times.values())).rounds,
        "best_torch": torch_form,
        "speedup": round(medians[torch_form] / ours, 3),
        "others": {
            name: round(us / ours, 2) for name, us in medians.items() if name.startswith(("peft", "vllm", "bdc int8"))
        },
        "overhead": round(ours / medians["base"], 4),
        "floor": round(cell.floor, 4),
        "share_of_limit": round(machine.seconds(cell) * 1e6 / ours, 3),
    }


def as_text(about: dict[str, Any], cells: Sequence[dict[str, Any]]) -> str:
    """A record as JSON with a line for each cell, so that a difference can be read."""
    lines = ",\n".join(json.dumps(cell) for cell in cells)
    return json.dumps(about, indent=1)[:-2] + f',\n "cells": [\n{lines}\n]\n}}\n'


HEADER = (
    f"{'layer':18} {'dtype':9}{'T':>5}{'R':>5}{'base us':>10}{'bdc us':>10}{'best torch us':>22}{'speed-up':>9}"
    f"{'overhead':>10}{'floor':>8}{'of limit':>9}"
)


def row(cell: dict[str, Any]) -> str:
    """The line of the table for one cell."""
    us = cell["us"]
    torch_form = f"{us[cell['best_torch']][1]:.1f} {cell['best_torch']}"
    return (
        f"{cell['shape']:18} {cell['dtype']:9}{cell['tokens']:5}{cell['rank']:5}{us['base'][1]:10.1f}"
        f"{us['bdc'][1]:10.1f}{torch_form:>22}{cell['speedup']:8.2f}x{cell['overhead']:9.1%}{cell['floor']:8.1%}"
        f"{cell['share_of_limit']:9.0%}"
    )


def mean(values: Iterable[float]) -> float:
    """Geometric mean."""
    logarithms = [math.log(max(value, 1e-9)) for value in values]
    return math.exp(sum(logarithms) / len(logarithms))


def summary(cells: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each dtype and number of tokens: geometric means of the speed-ups, the worst cell, and the share of the limit."""
    groups: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for cell in cells:
        groups.setdefault((cell["dtype"], cell["tokens"]), []).append(cell)
    found = []
    for (dtype, tokens), group in groups.items():
        others = sorted({name for cell in group for name in cell["others"]})
        found.append(
            {
                "dtype": dtype,
                "tokens": tokens,
                "cells": len(group),
                "speedup": round(mean(cell["speedup"] for cell in group), 2),
                "worst": min(cell["speedup"] for cell in group),
                "share_of_limit": round(mean(cell["share_of_limit"] for cell in group), 2),
                "overhead_over_floor": round(mean(cell["overhead"] / cell["floor"] for cell in group), 2),
                "others": {
                    name: round(mean(cell["others"][name] for cell in group if name in cell["others"]), 1)
                    for name in others
                },
            }
        )
    return found


def summary_table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown: the speed-ups are geometric means over layers and ranks."""
    names = sorted({name for entry in rows for name in entry["others"]})
    head = ["dtype", "T", "over the best torch form", "worst cell", *(f"over {name}" for name in names)]
    head += ["share of the machine's limit", "overhead / (c R)"]
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for entry in rows:
        others = [f"{entry['others'][name]:.1f}x" if name in entry["others"] else "" for name in names]
        fields = [entry["dtype"], str(entry["tokens"]), f"{entry['speedup']:.2f}x", f"{entry['worst']:.2f}x", *others]
        fields += [f"{entry['share_of_limit']:.0%}", f"{entry['overhead_over_floor']:.2f}"]
        lines.append("| " + " | ".join(fields) + " |")
    return "\n".join(lines)


def picture(cells: Sequence[dict[str, Any]], machine: Machine, path: Path) -> None:
    """Flops per second over flops per byte for ours and torch's best form, under the measured limits."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 5))
    for name, marker in (("bdc", "o"), ("best torch", "x")):
        points = []
        for cell in cells:
            weights = cell["rank"] * (cell["d_in"] + cell["d_out"])
            moved = weights + cell["tokens"] * (cell["d_in"] + 2 * cell["d_out"])
            flops = 2 * cell["tokens"] * weights
            us = cell["us"]["bdc" if name == "bdc" else cell["best_torch"]][1]
            points.append((flops / moved / (4 if cell["dtype"] == "float32" else 2), flops / us / 1e3))
        axes.scatter(*zip(*points, strict=True), marker=marker, s=12, label=name)
    for dtype, peak in machine.peak.items():
        axes.axhline(peak / 1e9, linestyle=":", label=f"GEMM, {str(dtype)[6:]}")
    x = [0.2, 1000.0]
    for size in (1 << 19, 1 << 26):
        axes.plot(
            x, [machine.bandwidth[size] / 1e9 * i for i in x], linewidth=0.8, label=f"reading {size >> 20 or 0.5} MiB"
        )
    axes.set(xscale="log", yscale="log", xlabel="flops per byte", ylabel="GFLOP/s", ylim=(1, None))
    axes.legend(fontsize=7)
    figure.savefig(path, dpi=120, bbox_inches="tight")
