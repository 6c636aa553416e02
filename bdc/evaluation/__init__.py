"""Comparison of solvers on held-out problems."""

from __future__ import annotations

from bdc.evaluation.metrics import Estimate, accuracy, interval, paired_difference, pass_at_k, pass_rate
from bdc.evaluation.settings import EvaluateSettings

__all__ = [
    "Estimate",
    "EvaluateSettings",
    "accuracy",
    "interval",
    "paired_difference",
    "pass_at_k",
    "pass_rate",
]
