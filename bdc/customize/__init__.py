"""Customize: a hypernetwork that weighs the experts' ranks for every problem, and the solver built on it."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from bdc.customize.settings import RELEASE, CustomizeSettings

if TYPE_CHECKING:
    from bdc.customize.customizer import Customizer
    from bdc.customize.solver import ResponseLoss, Solver
    from bdc.customize.storage import SolverParts

# The solver loads on first use: settings alone need no torch.
_LAZY = {"Customizer": "customizer", "ResponseLoss": "solver", "Solver": "solver", "SolverParts": "storage"}

__all__ = ["RELEASE", "CustomizeSettings", "Customizer", "ResponseLoss", "Solver", "SolverParts"]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(f"bdc.customize.{_LAZY[name]}"), name)
    raise AttributeError(f"module 'bdc.customize' has no attribute {name!r}")
