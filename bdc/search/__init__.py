"""Tree search: statistics for many trees at once, over LLM-made or any other expansions."""

from __future__ import annotations

from bdc._search import Selection
from bdc.search.errors import ForestError
from bdc.search.export import to_json, to_networkx
from bdc.search.forest import Forest, TreeStats
from bdc.search.rules import PUCB, PUCT, UCT, GumbelRoot, Rule, Thompson, Widening

__all__ = [
    "PUCB",
    "PUCT",
    "UCT",
    "Forest",
    "ForestError",
    "GumbelRoot",
    "Rule",
    "Selection",
    "Thompson",
    "TreeStats",
    "Widening",
    "to_json",
    "to_networkx",
]
