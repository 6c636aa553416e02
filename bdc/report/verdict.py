"""Plain sentences that say which system measured best, and whether the paired intervals separate it from BDC."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bdc.report.metrics import METRICS, OURS, Metric, best, label, mean, number


def verdicts(evaluation: dict[str, Any]) -> list[str]:
    """One sentence or two for each metric that any system has.

    Args:
        evaluation: the content of evaluation.json; a difference is BDC minus the other system, paired by problem.
    """
    systems = evaluation["systems"]
    return [_verdict(evaluation, metric) for metric in METRICS if best(systems, metric)]


def _verdict(evaluation: dict[str, Any], metric: Metric) -> str:
    systems = evaluation["systems"]
    top = best(systems, metric)
    value = metric.format(mean(top[0], metric))
    measured = [system for system in systems if mean(system, metric) is not None]
    if len(top) == len(measured) and len(measured) > 1:
        return f"{metric.label}: all {len(measured)} systems measured {value}."
    word = "lowest" if metric.better == "lower" else "highest"
    if len(top) == 1:
        interval = metric.interval(top[0][metric.key])
        sentence = f"{metric.label}: {label(top[0])} has the {word}, {value}{' ' + interval if interval else ''}."
    else:
        sentence = f"{metric.label}: {_join([label(system) for system in top])} tie for the {word}, {value}."
    if not any(system["name"] == OURS for system in measured):
        return sentence
    won = any(system["name"] == OURS for system in top)
    return f"{sentence} {_against(evaluation, metric, None if won else top)}".rstrip()


def _against(evaluation: dict[str, Any], metric: Metric, rivals: Sequence[dict[str, Any]] | None) -> str:
    """How BDC compares: with every other system when it leads (``rivals`` None), else with the leaders."""
    names = {system["name"]: label(system) for system in evaluation["systems"]}
    wanted = None if rivals is None else {system["name"] for system in rivals}
    groups: dict[str, list[str]] = {"ahead": [], "behind": [], "open": []}
    for difference in evaluation.get("differences", ()):
        name = difference["system"]
        if difference["metric"] == metric.key and name in names and (wanted is None or name in wanted):
            side = favours(difference, metric)
            if side is not None:
                groups[side].append(names[name])
    parts = []
    if groups["ahead"]:
        parts.append(f"better than {_join(groups['ahead'])}")
    if groups["behind"]:
        parts.append(f"worse than {_join(groups['behind'])}")
    if groups["open"]:
        parts.append(f"not separated from {_join(groups['open'])} (the interval of the difference includes zero)")
    return f"Paired by problem, BDC is {'; '.join(parts)}." if parts else ""


def favours(difference: dict[str, Any], metric: Metric) -> str | None:
    """ "ahead" or "behind" when the interval of BDC minus the other system excludes zero, "open" when it does not.

    None without an interval; one of no width, as resampling a single problem gives, is none.
    """
    low, high = number(difference.get("low")), number(difference.get("high"))
    if low is None or high is None or low == high != 0:
        return None
    if low <= 0 <= high:
        return "open"
    return "ahead" if (high < 0) == (metric.better == "lower") else "behind"


def _join(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
