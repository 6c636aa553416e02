"""Trees for viewers: JSON and networkx."""

from __future__ import annotations

import json
from typing import Any

from bdc.errors import MissingExtraError
from bdc.search.forest import Forest

_FIELDS = ("tag", "depth", "n", "visits", "pending", "reason", "refined", "prior", "value", "max", "mean")


def to_json(forest: Forest, tree: int, *, indent: int | None = None) -> str:
    """The tree as `{"root": id, "nodes": [{"id", "parent" (null at the root), statistics...}]}`, breadth first."""
    rows = forest.nodes(tree)
    columns = {name: rows[name].tolist() for name in ("id", "parent", *_FIELDS)}
    nodes = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    nodes[0]["parent"] = None
    return json.dumps({"root": nodes[0]["id"], "nodes": nodes}, indent=indent)


def to_networkx(forest: Forest, tree: int) -> Any:
    """The tree as a `networkx.DiGraph`; nodes carry the statistics of the edge into them."""
    try:
        import networkx
    except ImportError as error:
        raise MissingExtraError("to_networkx needs networkx; run pip install networkx") from error
    graph = networkx.DiGraph()
    for row in forest.nodes(tree):
        graph.add_node(int(row["id"]), **{name: row[name].item() for name in _FIELDS})
        if row["parent"] >= 0:
            graph.add_edge(int(row["parent"]), int(row["id"]))
    return graph
