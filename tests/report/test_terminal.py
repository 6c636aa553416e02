"""The results table as a terminal shows it, and the same figures as JSON."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest

from bdc.report import terminal
from bdc.report.metrics import METRICS
from bdc.report.verdict import verdicts


def system(name: str, loss: float | None, rate: float) -> dict[str, Any]:
    def interval(mean: float) -> dict[str, float]:
        return {"mean": mean, "low": mean - 0.05, "high": mean + 0.05}

    figures = {"loss": None if loss is None else interval(loss), "pass_rate": interval(rate), "ac": interval(rate)}
    costs = {"prompt_tokens": 1000, "completion_tokens": 502, "seconds": 61.5}
    return {"name": name, "label": name.upper(), **figures, **costs, "per_problem": []}


@pytest.fixture
def evaluation() -> dict[str, Any]:
    differences = [
        {"system": "single", "metric": "loss", "mean": -0.2, "low": -0.3, "high": -0.1},
        {"system": "base", "metric": "ac", "mean": 0.2, "low": -0.01, "high": 0.4},
    ]
    systems = [system("base", None, 0.3), system("single", 1.0, 0.4), system("bdc", 0.8, 0.5)]
    return {"seed": 7, "problems": ["a", "b"], "device": "cpu", "systems": systems, "differences": differences}


def printed(evaluation: dict[str, Any], width: int) -> str:
    from rich.console import Console

    out = io.StringIO()
    terminal.print_results(evaluation, Console(file=out, width=width, force_terminal=False))
    return out.getvalue()


@pytest.mark.parametrize("width", [20, 40, 55, 60, 65, 70, 75, 80, 90, 100, 110, 160])
@pytest.mark.parametrize(("rate", "tokens", "seconds"), [(0.5, 1_000, 61.5), (1.0, 105_521, 12_345.6)])
def test_table_holds_every_figure(
    evaluation: dict[str, Any], width: int, rate: float, tokens: int, seconds: float
) -> None:
    top = {"mean": rate, "low": rate, "high": rate}
    evaluation["systems"][0] |= {"label": "Nearest expert", "prompt_tokens": tokens, "seconds": seconds, "ac": top}
    text = printed(evaluation, width)
    assert max(map(len, text.splitlines())) <= width
    flat = " ".join(text.split())
    assert "BDC" in flat and "0.800" in flat and "\u2026" not in flat
    for metric in METRICS:
        assert f"{metric.label}:" in flat
        for measured in evaluation["systems"]:
            assert metric.interval(measured[metric.key]) in flat
    costs = [f"{tokens + 502:,}", f"{seconds:,.1f}", "tokens", "seconds"]
    shown = [cost in flat for cost in costs]
    assert all(shown) if width >= 80 else any(shown) == all(shown)


def test_pass_at_k_has_a_column_where_it_was_asked_for(evaluation: dict[str, Any]) -> None:
    assert "pass@" not in printed(evaluation, 160)
    evaluation["pass_at"] = [10]
    evaluation["systems"][2]["pass@10"] = {"mean": 0.75, "low": 0.6, "high": 0.9}
    for width in (160, 100, 50):
        flat = " ".join(printed(evaluation, width).split())
        assert "pass@10" in flat and "75.0 %" in flat and "[60.0, 90.0]" in flat
    assert "pass@10: BDC measured 75.0 % [60.0, 90.0]." in flat
    assert terminal.results_json(evaluation)["systems"]["bdc"]["pass@10"]["mean"] == 0.75


def test_control_characters_do_not_reach_the_terminal(evaluation: dict[str, Any]) -> None:
    evaluation["systems"][1]["label"] = "[bold]single\x1b[31m\n"
    text = printed(evaluation, 160)
    assert "\x1b" not in text
    assert "[bold]single\\x1b[31m\\x0a" in text


def test_json_of_the_figures(evaluation: dict[str, Any]) -> None:
    evaluation["systems"][0]["seconds"] = float("nan")
    results = terminal.results_json(evaluation)
    assert results["best"] == {"loss": ["bdc"], "pass_rate": ["bdc"], "ac": ["bdc"]}
    assert results["systems"]["base"]["loss"] is None and results["systems"]["base"]["seconds"] is None
    assert results["systems"]["bdc"]["tokens"] == 1502
    json.dumps(results, allow_nan=False)


def test_verdicts_say_ahead_and_open(evaluation: dict[str, Any]) -> None:
    loss, rate, ac = verdicts(evaluation)
    assert loss.startswith("Held-out loss: BDC has the lowest, 0.800 [0.750, 0.850].")
    assert "BDC is better than SINGLE." in loss
    assert rate == "Pass rate: BDC has the highest, 50.0 % [45.0, 55.0]."
    assert "not separated from BASE" in ac


def test_verdicts_say_when_bdc_loses_and_when_all_tie(evaluation: dict[str, Any]) -> None:
    evaluation["systems"][2] = system("bdc", 1.4, 0.3)
    for other in evaluation["systems"]:
        other["ac"] = {"mean": 0.0, "low": 0.0, "high": 0.0}
    evaluation["differences"] = [{"system": "single", "metric": "loss", "mean": 0.4, "low": 0.3, "high": 0.5}]
    loss, _, ac = verdicts(evaluation)
    assert loss.startswith("Held-out loss: SINGLE has the lowest, 1.000") and "BDC is worse than SINGLE." in loss
    assert ac == "AC: all 3 systems measured 0.0 %."


def test_differences_of_few_problems_are_not_judged_and_constant_ones_are(evaluation: dict[str, Any]) -> None:
    constant = {"system": "single", "metric": "loss", "mean": -0.2, "low": -0.2, "high": -0.2}
    evaluation["differences"] = [constant | {"n": 24}]
    assert "BDC is better than SINGLE." in verdicts(evaluation)[0]
    evaluation["differences"] = [constant | {"n": 7}]
    assert verdicts(evaluation)[0].endswith("Too few problems to compare BDC by pairs: 7, of at least 8.")


def test_the_search_is_no_rival(evaluation: dict[str, Any]) -> None:
    before = verdicts(evaluation)
    search = system("search", None, 0.9) | {"label": "Search", "prompt_tokens": 90_000}
    evaluation["systems"].append(search)
    evaluation["differences"].append(
        {"system": "search", "metric": "pass_rate", "mean": -0.4, "low": -0.5, "high": -0.3, "n": 20}
    )
    *others, last = verdicts(evaluation)
    assert others == before
    assert last == (
        "Search, steered by the public tests: Pass rate 90.0 %, AC 90.0 %, with 90,502 tokens (BDC 1,502). "
        "Paired by problem, BDC is worse than Search."
    )
    search["cut_short"] = 1
    assert verdicts(evaluation)[-1].endswith(
        "(BDC 1,502). 1 of 2 searches did not run to their end, for want of budget or of public tests. "
        "Paired by problem, BDC is worse than Search."
    )
    del search["cut_short"]
    evaluation["systems"] = [search]
    assert verdicts(evaluation) == [last.split(" (BDC")[0] + "."]


def test_verdicts_say_what_they_rest_on(evaluation: dict[str, Any]) -> None:
    evaluation["systems"][2]["loss"]["n"] = 1
    evaluation["systems"][1]["unverified"] = 2
    loss, *_, unverified = verdicts(evaluation)
    assert loss.startswith("Held-out loss (of 1 of 2 problems): BDC has the lowest")
    assert unverified.endswith("so unverified: SINGLE 2.")
    evaluation["systems"] = evaluation["systems"][2:]
    assert verdicts(evaluation)[1] == "Pass rate: BDC measured 50.0 % [45.0, 55.0]."
