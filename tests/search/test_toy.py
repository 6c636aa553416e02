"""examples/search_toy.py as a statistical test: every rule finds the known optimum."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "search_toy.py"


@pytest.fixture(scope="module")
def toy() -> ModuleType:
    spec = importlib.util.spec_from_file_location("search_toy", EXAMPLE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["UCT", "PUCT", "PUCB", "GumbelRoot", "Thompson"])
def test_rules_find_the_best_play(toy: ModuleType, name: str) -> None:
    """200 searches, fixed seed. Chance finds the best of 64 plays in 1.6 %; at a true share of 0.8 fewer than 0.65 has a
    probability below 1e-6 (binomial). The regret per simulation falls to a third."""
    regret, share = toy.play(toy.RULES[name], trees=200, simulations=2000, seed=5)
    assert share > 0.65
    assert regret[-200:].mean() < regret[:200].mean() / 3


def test_it_draws_and_prints(toy: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    toy.main(["--trees", "3", "--simulations", "30", "--svg", str(tmp_path / "regret.svg")])
    assert (tmp_path / "regret.svg").read_text().count("<polyline") == len(toy.RULES)
    printed = capsys.readouterr().out
    assert all(name in printed for name in toy.RULES)
