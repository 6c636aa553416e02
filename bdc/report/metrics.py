"""What the report says about each metric of evaluation.json: its name, its unit and which way is better."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

OURS, UPPER = "bdc", "search"
"""The customised solver, and the search that it is to replace: no rival of the solvers, but what they are measured by."""


@dataclass(frozen=True, slots=True)
class Metric:
    """A column of the results table; ``fraction`` values lie in [0, 1] and print as percentages."""

    key: str
    label: str
    meaning: str
    better: str
    fraction: bool

    def format(self, value: float | None, *, signed: bool = False) -> str:
        """``0.6123`` as ``0.612``, or as ``61.2 %`` for a fraction; a missing value as an en dash."""
        if value is None:
            return "\u2013"
        number = 100 * value if self.fraction else value
        text = f"{number:{'+' if signed else ''}.{1 if self.fraction else 3}f}".replace("-", "\u2212")
        if not self.fraction:
            return text
        return f"{text} points" if signed else f"{text} %"

    def interval(self, value: Mapping[str, Any] | None) -> str:
        """The 95 % interval in brackets, without the unit; empty where there is none."""
        if value is None or number(value.get("low")) is None or number(value.get("high")) is None:
            return ""
        low, high = (self.format(number(value[end])).removesuffix(" %") for end in ("low", "high"))
        return f"[{low}, {high}]"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


METRICS = (
    Metric("loss", "Held-out loss", "cross-entropy per response token, in nats", "lower", False),
    Metric("pass_rate", "Pass rate", "mean share of private tests passed", "higher", True),
    Metric("ac", "AC", "share of problems with every private test passed", "higher", True),
)


def metrics_of(evaluation: Mapping[str, Any]) -> list[Metric]:
    """:data:`METRICS` and each pass@k that was asked for."""
    asked = evaluation.get("pass_at")
    ks = [k for k in asked if isinstance(k, int)] if isinstance(asked, list) else []
    meaning = "chance that one of {} sampled programs passes every private test (arXiv 2107.03374)"
    return [*METRICS, *(Metric(f"pass@{k}", f"pass@{k}", meaning.format(k), "higher", True) for k in ks)]


def number(value: Any) -> float | None:
    """A finite float, or None for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value)


def mean(system: Mapping[str, Any], metric: Metric) -> float | None:
    """The mean of a metric, or None where the system has none."""
    value = system.get(metric.key)
    return number(value.get("mean")) if isinstance(value, Mapping) else None


def count(system: Mapping[str, Any], metric: Metric) -> int | None:
    """Problems that the mean is over, or None where that is not known."""
    value = system.get(metric.key)
    found = number(value.get("n")) if isinstance(value, Mapping) else None
    return None if found is None else int(found)


def label(system: Mapping[str, Any]) -> str:
    return str(system.get("label") or system["name"])


def tokens(system: Mapping[str, Any]) -> int:
    """Read and written."""
    return int((system.get("prompt_tokens") or 0) + (system.get("completion_tokens") or 0))


def best(systems: list[dict[str, Any]], metric: Metric) -> list[dict[str, Any]]:
    """The systems with the best mean; several when they tie, none when no system has the metric."""
    scored = [(value, system) for system in systems if (value := mean(system, metric)) is not None]
    if not scored:
        return []
    values = [value for value, _ in scored]
    top = min(values) if metric.better == "lower" else max(values)
    return [system for value, system in scored if value == top]
