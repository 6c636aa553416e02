"""The search trees of a run, small enough to travel inside one page."""

from __future__ import annotations

from typing import Any

from bdc.runs import Run

# A browser parses this much text in about a second; the rest of a very large run stays in run.sqlite.
TEXT_BUDGET = 32 * 2**20

_NODE_COLUMNS = "node, parent, depth, agent, thought, prior, visits, value, q, state, reason, program, pass_rate"


def collect_trees(run: Run, text_budget: int = TEXT_BUDGET) -> dict[str, Any] | None:
    """Every tree with its nodes in problem order, until their texts exceed ``text_budget`` characters.

    Returns:
        ``{"items": [...], "left_out": n}``, or None before any tree was searched.
    """
    problems = {
        row["id"]: row
        for row in run.rows(
            "SELECT id, position, split, coalesce(json_extract(json, '$.statement'), '') AS statement,"
            " coalesce(json_extract(json, '$.family'), '') AS family FROM problems"
        )
    }
    trees = list(run.rows("SELECT * FROM trees"))
    if not trees:
        return None
    trees.sort(key=lambda tree: (problems.get(tree["problem_id"], {}).get("position", 0), tree["problem_id"]))
    items: list[dict[str, Any]] = []
    spent = 0
    for tree in trees:
        problem = problems.get(tree["problem_id"], {})
        query = f"SELECT {_NODE_COLUMNS} FROM nodes WHERE problem_id = ? ORDER BY node"
        nodes = list(run.rows(query, (tree["problem_id"],)))
        spent += sum(len(node["thought"]) + len(node["program"]) + len(node["reason"]) for node in nodes)
        if items and spent > text_budget:
            break
        items.append(
            {
                "problem": tree["problem_id"],
                "statement": problem.get("statement", ""),
                "family": problem.get("family", ""),
                "split": problem.get("split", ""),
                "rollouts": tree["rollouts"],
                "stop": tree["stop"],
                "public_pass_rate": tree["public_pass_rate"],
                "private_pass_rate": tree["private_pass_rate"],
                "solved": tree["private_pass_rate"] >= 1,
                "best_node": tree["best_node"],
                "program": tree["program"] or "",
                "extra": run.decode("trees", tree["problem_id"], tree["json"]),
                "nodes": nodes,
            }
        )
    return {"items": items, "left_out": len(trees) - len(items)}
