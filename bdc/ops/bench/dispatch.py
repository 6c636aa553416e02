"""What a call costs beside its arithmetic: a product so small that the rest is what takes time."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from bdc.ops import extension, rankwise_lora, rankwise_lora_
from bdc.ops.bench.cells import Cell, inputs

CELL = Cell("dispatch", 64, 64, 8, 1, torch.float32)
CALLS, ROUNDS = 1000, 15


def measure() -> dict[str, float]:
    """Microseconds of one call of each form, the median of interleaved rounds; {} where the extension is not built."""
    module = extension.load()
    if module is None:
        return {}
    given = inputs(CELL)
    y, arguments = given.y, (given.x, given.a, given.b, given.g, given.rows, 1.0)
    leaf = given.g.clone().requires_grad_()
    training = (given.x, given.a, given.b, leaf, given.rows, 1.0)
    forms: dict[str, Callable[[], Any]] = {
        "bare binding, in place": lambda: module.try_add(y, *arguments, None, False),
        "rankwise_lora_": lambda: rankwise_lora_(y, *arguments),
        "rankwise_lora": lambda: rankwise_lora(*arguments),
        "torch.ops.bdc.rankwise_lora_": lambda: torch.ops.bdc.rankwise_lora_.default(y, *arguments),
        "torch.ops.bdc.rankwise_lora": lambda: torch.ops.bdc.rankwise_lora.default(*arguments),
        "torch.ops.bdc.rankwise_lora, under autograd": lambda: torch.ops.bdc.rankwise_lora.default(*arguments),
        "rankwise_lora, with a gradient": lambda: rankwise_lora(*training),
        "torch.ops.bdc.rankwise_lora, with a gradient": lambda: torch.ops.bdc.rankwise_lora.default(*training),
    }
    times: dict[str, list[float]] = {name: [] for name in forms}
    for _ in range(ROUNDS):
        for name, form in forms.items():
            with torch.inference_mode("grad" not in name):
                form()
                started = time.perf_counter()
                for _ in range(CALLS):
                    form()
                times[name].append((time.perf_counter() - started) / CALLS * 1e6)
        y.zero_()
    return {name: round(statistics.median(values), 2) for name, values in times.items()}
