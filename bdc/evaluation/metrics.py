"""Metrics over problems, with bootstrap intervals. Rates are shares, 0 to 1."""

from __future__ import annotations

from collections.abc import Sequence
from math import comb
from typing import NamedTuple

import numpy as np

from bdc.errors import InputError

_CELLS = 4_000_000  # numbers in one block of resamples


class Estimate(NamedTuple):
    """A mean and its 95 % interval."""

    mean: float
    low: float
    high: float


def pass_rate(rates: Sequence[float]) -> float:
    """Mean share of tests passed per problem."""
    return float(np.mean(_checked(rates)))


def accuracy(rates: Sequence[float]) -> float:
    """AC: share of problems whose program passes every test."""
    return float(np.mean(_checked(rates) == 1.0))


def pass_at_k(n: int, correct: int, k: int) -> float:
    """Unbiased probability that one of k programs, drawn without replacement from n, is right (arXiv 2107.03374).

    Raises:
        InputError: not 0 <= correct <= n or not 1 <= k <= n.
    """
    if not (0 <= correct <= n and 1 <= k <= n):
        raise InputError(
            f"pass@{k} of {n} programs with {correct} right is undefined; give 0 <= correct <= n, 1 <= k <= n"
        )
    return 1.0 - comb(n - correct, k) / comb(n, k)


def interval(values: Sequence[float], resamples: int = 2000, seed: int = 0) -> Estimate:
    """Mean over problems with the 95 % percentile interval of a seeded bootstrap over problems.

    Raises:
        InputError: there are no values, or one of them is not finite.
    """
    array = _checked(values)
    rng = np.random.default_rng(seed)
    means = []
    step = max(1, _CELLS // array.size)
    for start in range(0, resamples, step):
        rows = min(step, resamples - start)
        means.append(array[rng.integers(0, array.size, size=(rows, array.size))].mean(axis=1))
    low, high = np.quantile(np.concatenate(means), (0.025, 0.975))
    return Estimate(float(array.mean()), float(low), float(high))


def paired_difference(
    values: Sequence[float], others: Sequence[float], resamples: int = 2000, seed: int = 0
) -> Estimate:
    """``values`` minus ``others``, paired by problem: both are resampled together.

    Raises:
        InputError: the lengths differ, or as for :func:`interval`.
    """
    if len(values) != len(others):
        raise InputError(
            f"{len(values)} values against {len(others)}; a paired difference needs one of each per problem"
        )
    return interval(_checked(values) - _checked(others), resamples, seed)


def _checked(values: Sequence[float]) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64)
    if array.size == 0 or not np.isfinite(array).all():
        raise InputError(f"metric of {array.size} values: there must be at least one, and all finite")
    return array
