"""Plain sentences that say which system measured best, and whether the paired intervals separate it from BDC."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bdc.report.metrics import METRICS, OURS, UPPER, Metric, best, count, label, mean, metrics_of, number, tokens

FEWEST = 8
"""Pairs of values below which bootstrap intervals are much too narrow: of normal ones, 95 % cover 74 % at 3, 84 % at 5, 90 % at 8."""


def verdicts(evaluation: dict[str, Any]) -> list[str]:
    """One sentence or two for each metric that any system has, and one on passes that nobody could verify.

    Args:
        evaluation: the content of evaluation.json; a difference is BDC minus the other system, paired by problem.
    """
    systems = evaluation["systems"]
    solvers = {**evaluation, "systems": [system for system in systems if system["name"] != UPPER]}
    found = [_verdict(solvers, metric) for metric in metrics_of(evaluation) if best(solvers["systems"], metric)]
    found += [_upper_line(evaluation, system) for system in systems if system["name"] == UPPER]
    unverified = [f"{label(system)} {system['unverified']}" for system in systems if system.get("unverified")]
    if unverified:
        found.append(f"Solved by tests that rest on the program's own objects, so unverified: {', '.join(unverified)}.")
    return found


def _upper_line(evaluation: dict[str, Any], search: dict[str, Any]) -> str:
    """What the search reaches, and what it takes."""
    measured = [metric for metric in METRICS if mean(search, metric) is not None]
    reached = [f"{metric.label} {metric.format(mean(search, metric))}" for metric in measured]
    ours = [f" (BDC {tokens(system):,})" for system in evaluation["systems"] if system["name"] == OURS]
    said = f"{label(search)}, steered by the public tests: {', '.join(reached)}, with {tokens(search):,} tokens{''.join(ours)}."
    if short := search.get("cut_short"):
        said += f" {short} of {len(evaluation.get('problems') or ())} searches did not run to their end, for want of budget or of public tests."
    return f"{said} {_against(evaluation, measured[0], [search]) if measured and ours else ''}".rstrip()


def _verdict(evaluation: dict[str, Any], metric: Metric) -> str:
    systems = evaluation["systems"]
    top = best(systems, metric)
    value = metric.format(mean(top[0], metric))
    measured = [system for system in systems if mean(system, metric) is not None]
    interval = metric.interval(top[0][metric.key])
    measurement = f"{value}{' ' + interval if interval else ''}"
    problems, over = len(evaluation.get("problems") or ()), count(top[0], metric)
    name = metric.label if over in (None, problems) else f"{metric.label} (of {over} of {problems} problems)"
    if len(measured) == 1:
        return f"{name}: {label(top[0])} measured {measurement}."
    if len(top) == len(measured):
        return f"{name}: all {len(measured)} systems measured {value}."
    word = "lowest" if metric.better == "lower" else "highest"
    if len(top) == 1:
        sentence = f"{name}: {label(top[0])} has the {word}, {measurement}."
    else:
        sentence = f"{name}: {_join([label(system) for system in top])} tie for the {word}, {value}."
    if not any(system["name"] == OURS for system in measured):
        return sentence
    won = any(system["name"] == OURS for system in top)
    return f"{sentence} {_against(evaluation, metric, None if won else top)}".rstrip()


def _against(evaluation: dict[str, Any], metric: Metric, rivals: Sequence[dict[str, Any]] | None) -> str:
    """How BDC compares: with every other system when it leads (``rivals`` None), else with the leaders."""
    names = {system["name"]: label(system) for system in evaluation["systems"]}
    wanted = None if rivals is None else {system["name"] for system in rivals}
    groups: dict[str, list[str]] = {"ahead": [], "behind": [], "open": []}
    few = None
    for difference in evaluation.get("differences", ()):
        name = difference["system"]
        if difference["metric"] == metric.key and name in names and (wanted is None or name in wanted):
            side = favours(difference, metric)
            if side is not None:
                groups[side].append(names[name])
            elif _is_few(difference):
                few = difference["n"]
    parts = []
    if groups["ahead"]:
        parts.append(f"better than {_join(groups['ahead'])}")
    if groups["behind"]:
        parts.append(f"worse than {_join(groups['behind'])}")
    if groups["open"]:
        parts.append(f"not separated from {_join(groups['open'])} (the interval of the difference includes zero)")
    if not parts and few is not None:
        return f"Too few problems to compare BDC by pairs: {few}, of at least {FEWEST}."
    return f"Paired by problem, BDC is {'; '.join(parts)}." if parts else ""


def favours(difference: dict[str, Any], metric: Metric) -> str | None:
    """ "ahead" or "behind" when the interval of BDC minus the other system excludes zero, "open" when it does not.

    None without an interval, or with one of fewer than :data:`FEWEST` problems.
    """
    low, high = number(difference.get("low")), number(difference.get("high"))
    if low is None or high is None or _is_few(difference):
        return None
    if low <= 0 <= high:
        return "open"
    return "ahead" if (high < 0) == (metric.better == "lower") else "behind"


def _is_few(difference: dict[str, Any]) -> bool:
    return number(difference.get("n")) is not None and difference["n"] < FEWEST


def _join(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
