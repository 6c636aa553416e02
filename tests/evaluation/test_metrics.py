"""Metrics against brute force."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from bdc.errors import InputError
from bdc.evaluation import accuracy, interval, paired_difference, pass_at_k, pass_rate


@pytest.mark.parametrize("n", range(1, 8))
def test_pass_at_k_is_the_share_of_draws_with_a_right_program(n: int) -> None:
    for correct in range(n + 1):
        right = [index < correct for index in range(n)]
        for k in range(1, n + 1):
            draws = [any(draw) for draw in combinations(right, k)]
            assert pass_at_k(n, correct, k) == pytest.approx(sum(draws) / len(draws), abs=1e-12)


def test_pass_at_k_of_many_programs_does_not_overflow() -> None:
    assert pass_at_k(5000, 1, 50) == pytest.approx(0.01)


@pytest.mark.parametrize(("n", "correct", "k"), [(5, 6, 1), (5, -1, 1), (5, 2, 6), (5, 2, 0)])
def test_pass_at_k_refuses_what_is_undefined(n: int, correct: int, k: int) -> None:
    with pytest.raises(InputError, match="undefined"):
        pass_at_k(n, correct, k)


def test_rates() -> None:
    rates = [1.0, 0.5, 0.0, 1.0, 0.999]
    assert pass_rate(rates) == pytest.approx(0.6998)
    assert accuracy(rates) == pytest.approx(0.4)


def test_interval_is_the_quantiles_of_all_resamples() -> None:
    """Three values have 27 equally likely resamples; many seeded ones must find their quantiles."""
    values = np.array([0.0, 1.0, 5.0])
    means = [values[[i, j, k]].mean() for i in range(3) for j in range(3) for k in range(3)]
    low, high = np.quantile(means, (0.025, 0.975), method="inverted_cdf")
    found = interval(values.tolist(), 20000, seed=1)
    assert (found.mean, found.low, found.high) == pytest.approx((2.0, low, high))


def test_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(5)
    samples = rng.normal(3.0, 2.0, size=(400, 60))
    covered = [e.low <= 3.0 <= e.high for e in (interval(row.tolist(), 500, seed=i) for i, row in enumerate(samples))]
    assert 0.90 <= np.mean(covered) <= 0.98


def test_intervals_are_seeded() -> None:
    values = np.random.default_rng(0).random(30).tolist()
    assert interval(values, 300, seed=4) == interval(values, 300, seed=4)
    assert interval(values, 300, seed=4) != interval(values, 300, seed=5)


def test_blocks_do_not_change_the_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).random(30).tolist()
    whole = interval(values, 301, seed=4)
    monkeypatch.setattr("bdc.evaluation.metrics._CELLS", 100)
    assert interval(values, 301, seed=4) == whole


def test_pairing_removes_what_the_systems_share() -> None:
    rng = np.random.default_rng(2)
    difficulty = rng.normal(0.0, 10.0, size=50)
    ours, theirs = (difficulty + 1.0 + rng.normal(0, 0.1, 50)).tolist(), difficulty.tolist()
    found = paired_difference(ours, theirs, 1000, seed=0)
    assert 0.9 < found.low < found.mean < found.high < 1.1
    assert paired_difference(theirs, theirs)[:] == (0.0, 0.0, 0.0)


def test_bad_values_are_refused() -> None:
    for bad in ([], [float("nan")]):
        with pytest.raises(InputError, match="at least one"):
            interval(bad)
    with pytest.raises(InputError, match="one of each"):
        paired_difference([1.0], [1.0, 2.0])
