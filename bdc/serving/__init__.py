"""Serving: a solver inside vLLM, each request under its own rank weights (``bdc serve``)."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bdc.serving.gate import Gate
    from bdc.serving.middleware import Middleware

# They load on first use: neither the command line nor vLLM's workers need both.
_LAZY = {"Gate": "gate", "Middleware": "middleware"}

__all__ = ["Gate", "Middleware"]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(f"bdc.serving.{_LAZY[name]}"), name)
    raise AttributeError(f"module 'bdc.serving' has no attribute {name!r}")
