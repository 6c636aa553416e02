"""Experts that come from memory: twice as many copies as the last cache holds, one after the other, as a model's layers are."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from bdc.ops import quantize_experts, rankwise_lora_
from bdc.ops.bench.cells import SHAPES
from bdc.ops.bench.machine import Machine

LAYERS = ("smollm2-135m/q", "qwen2.5-0.5b/down", "llama-3.1-8b/q")
LEAST_BYTES = 256 << 20  # of each form's experts
HEADER = (
    f"{'layer':20} {'dtype':9}{'T':>4}{'R':>5}{'own us':>9}{'two GEMMs':>11}{'int8 us':>9}{'own/int8':>9}"
    f"{'own GB/s':>10}{'int8 GB/s':>10}{'own share':>10}{'int8 share':>11}"
)


def rows(
    machine: Machine, dtypes: Sequence[torch.dtype], tokens: Sequence[int], ranks: Sequence[int], rounds: int
) -> Iterator[dict[str, Any]]:
    """A row per dtype, layer, tokens and ranks; shares are of the measured bandwidth of reading from memory."""
    for dtype in dtypes:
        for layer in LAYERS:
            for rank in ranks:
                yield from _rows(machine, layer, rank, dtype, tokens, rounds)


def stream_bytes() -> int:
    """Bytes of each form's experts: twice the last cache as the system describes it."""
    sizes = Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")
    caches = [int(size.read_text().strip().removesuffix("K")) << 10 for size in sizes]
    return max([LEAST_BYTES, *(2 * cache for cache in caches)])


def line(row: dict[str, Any]) -> str:
    return (
        f"{row['layer']:20} {row['dtype']:9}{row['tokens']:4}{row['rank']:5}{row['own_us']:9.1f}"
        f"{row['two_gemms_us']:11.1f}{row['int8_us']:9.1f}{row['own_us'] / row['int8_us']:8.2f}x"
        f"{row['own_gb_per_s']:10.1f}{row['int8_gb_per_s']:10.1f}{row['own_share']:10.0%}{row['int8_share']:11.0%}"
    )


def _rows(
    machine: Machine, layer: str, rank: int, dtype: torch.dtype, tokens: Sequence[int], rounds: int
) -> Iterator[dict[str, Any]]:
    d_in, d_out = SHAPES[layer]
    generator = torch.Generator().manual_seed(0)
    elements = rank * (d_in + d_out)
    copies = max(2, stream_bytes() // (elements * dtype.itemsize))
    a = torch.randn(rank, d_in, generator=generator).mul(d_in**-0.5).to(dtype)
    b = torch.randn(d_out, rank, generator=generator).mul(rank**-0.5).to(dtype)
    rounded = quantize_experts(a, b)
    own = [(a.clone(), b.clone()) for _ in range(copies)]
    turned = [(a.T, b.T) for a, b in own]
    # As many bytes: fewer copies of half the size might stay in the cache.
    integers = [(rounded.lora_a.clone(), rounded.lora_b.clone()) for _ in range(copies * dtype.itemsize)]
    for count in tokens:
        g = torch.rand(min(count, 8), rank, generator=generator) + 0.5
        folded = rounded.fold(g)
        place = torch.arange(count, dtype=torch.int32) % len(g)
        gate = g.to(dtype)[place.long()]
        x, y = (torch.randn(count, d, generator=generator).to(dtype) for d in (d_in, d_out))
        start, h = y.clone(), x.new_empty(count, rank)
        calls: dict[str, tuple[Callable[..., Any], list[Any]]] = {
            "own": (lambda a, b: rankwise_lora_(y, x, a, b, g, place), own),  # noqa: B023
            "two_gemms": (lambda a, b: y.addmm_(torch.mm(x, a, out=h).mul_(gate), b), turned),  # noqa: B023
            "int8": (lambda a, b: rankwise_lora_(y, x, a, b, folded, place), integers),  # noqa: B023
        }
        us = _timed(calls, rounds, lambda: y.copy_(start))  # noqa: B023
        limit = machine.bandwidth[max(machine.bandwidth)]
        row: dict[str, Any] = {
            "layer": layer,
            "dtype": str(dtype).removeprefix("torch."),
            "tokens": count,
            "rank": rank,
            "copies": copies,
            "rounds": rounds,
        }
        row |= {f"{name}_us": round(value, 2) for name, value in us.items()}
        for name, size in (("own", dtype.itemsize), ("int8", 1)):
            speed = elements * size / us[name] * 1e6
            row |= {f"{name}_gb_per_s": round(speed / 1e9, 2), f"{name}_share": round(speed / limit, 3)}
        yield row


def _timed(
    calls: dict[str, tuple[Callable[..., Any], list[Any]]], rounds: int, reset: Callable[[], Any]
) -> dict[str, float]:
    """Median microseconds of a call on one copy, over passes through all copies, in turns."""
    shuffler, spent = random.Random(0), {name: list[float]() for name in calls}
    with torch.inference_mode():
        for repeat in range(rounds + 1):
            for name in shuffler.sample(list(calls), len(calls)):
                call, copies = calls[name]
                started = time.perf_counter()
                for a, b in copies:
                    call(a, b)
                if repeat:  # the first pass touches fresh pages
                    spent[name].append((time.perf_counter() - started) / len(copies) * 1e6)
                reset()
    return {name: statistics.median(values) for name, values in spent.items()}
