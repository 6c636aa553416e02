"""Boost: several LLM agents search trees of thoughts together and leave verified traces (arXiv 2502.12492)."""

from __future__ import annotations

from bdc.boost.settings import AgentSettings, BoostSettings, BudgetSettings

__all__ = ["AgentSettings", "BoostSettings", "BudgetSettings"]
