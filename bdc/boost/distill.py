"""Distillation: what the search found becomes training pairs, if the private tests agree (arXiv 2502.12492).

Both pairs of a trace come from the same node. Reflection and search also leave preferences between sibling thoughts.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bdc.boost.settings import BoostSettings
from bdc.boost.state import Node, Program, Tree
from bdc.llm import prompts
from bdc.sandbox import Verdict
from bdc.verdicts import Verifier

TRACE_COLUMNS = ("id", "problem_id", "node", "kind", "statement", "messages", "response", "agent", "value", "split")


def judge_best(
    trees: Sequence[Tree], verifier: Verifier, candidates: int
) -> dict[int, list[tuple[Node, Program, Verdict]]]:
    """Private verdicts of each tree's best candidates, best first: ``{tree index: [(node, program, verdict)]}``.

    Only programs that pass all public tests are candidates, besides the single best program of the tree.
    """
    work = []
    for tree in trees:
        ranked = tree.ranked()
        keep = ranked[:1] + [pair for pair in ranked[1:candidates] if pair[1].pass_rate == 1.0]
        work += [(tree, node, program) for node, program in keep]
    verdicts = verifier.judge([(tree.problem, program.source) for tree, _, program in work], "private")
    found: dict[int, list[tuple[Node, Program, Verdict]]] = {tree.index: [] for tree in trees}
    for (tree, node, program), verdict in zip(work, verdicts, strict=True):
        found[tree.index].append((node, program, verdict))
    return found


def traces(
    trees: Sequence[Tree],
    judged: dict[int, list[tuple[Node, Program, Verdict]]],
    splits: dict[str, str],
    agents: Sequence[str],
    settings: BoostSettings,
) -> list[dict[str, Any]]:
    """Training rows (columns: ``TRACE_COLUMNS``) of every node whose program passed all private tests."""
    rows = []
    for tree in trees:
        seen: set[str] = set()
        for node, program, verdict in judged[tree.index]:
            # An unverified pass rests on the program's own word; no trace is built on that.
            if not (verdict.passed and verdict.verified and program.verified) or program.source in seen:
                continue
            seen.add(program.source)
            rows += [
                {
                    "id": f"{tree.problem.id}#{node.node}/{kind}",
                    "problem_id": tree.problem.id,
                    "node": node.node,
                    "kind": kind,
                    "statement": tree.problem.statement,
                    "messages": json.dumps(messages, ensure_ascii=False),
                    "response": response,
                    "agent": agents[program.agent],
                    "value": float(node.value or 0.0),
                    "split": splits[tree.problem.id],
                }
                for kind, messages, response in _pairs(tree, node, program)
                if kind in settings.pairs
            ]
    return rows


def _pairs(tree: Tree, node: Node, program: Program) -> list[tuple[str, prompts.Messages, str]]:
    statement, stdin = tree.problem.statement, tree.problem.entry_point is None
    response = prompts.program_response(program.source)
    return [
        ("thoughts", prompts.plan(statement), prompts.numbered(node.thoughts)),
        ("program", prompts.program(statement, node.thoughts, stdin=stdin), response),
        ("direct", prompts.program(statement, (), stdin=stdin), response),
    ]


def preferences(trees: Sequence[Tree]) -> list[dict[str, Any]]:
    """Step preferences: a thought above its parent's value against a sibling that is not."""
    rows = []
    for tree in trees:
        families: dict[int, list[Node]] = {}
        for node in tree.nodes.values():
            if node.value is not None and node.parent in tree.nodes:
                families.setdefault(node.parent, []).append(node)
        for parent, family in families.items():
            floor = tree.nodes[parent].value or 0.0
            better = [node for node in family if (node.value or 0.0) > floor]
            worse = [node for node in family if (node.value or 0.0) <= floor]
            rows += [
                {
                    "problem_id": tree.problem.id,
                    "statement": tree.problem.statement,
                    "thoughts": prompts.numbered(tree.nodes[parent].thoughts),
                    "chosen": good.thoughts[-1],
                    "rejected": bad.thoughts[-1],
                    "chosen_value": float(good.value or 0.0),
                    "rejected_value": float(bad.value or 0.0),
                }
                for good in better
                for bad in worse
            ]
    return rows


def write_parquet(path: Path, rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> None:
    """Rows as one Parquet file, whole or not at all; an empty table keeps its columns."""
    import io

    import pyarrow as pa
    import pyarrow.parquet as pq

    from bdc.artefacts import atomic_write

    table = pa.table({name: [row[name] for row in rows] for name in columns})
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    atomic_write(path, buffer.getvalue())
