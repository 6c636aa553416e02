"""The boost stage: search every training and validation problem, keep the trees, distil verified traces.

Nothing is stored between start and end but answered calls and verdicts; a killed run replays them from the store and reaches the
same trees.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from bdc.boost.agents import make_agents
from bdc.boost.broker import Broker
from bdc.boost.distill import TRACE_COLUMNS, judge_best, preferences, traces, write_parquet
from bdc.boost.search import Search
from bdc.boost.settings import AgentSettings, BoostSettings
from bdc.boost.state import Tree
from bdc.errors import BdcError, InputError
from bdc.progress import Progress
from bdc.runs import Run
from bdc.sandbox import JudgePool, Limits
from bdc.splits import stored_problems
from bdc.verdicts import Verifier

PREFERENCE_COLUMNS = ("problem_id", "statement", "thoughts", "chosen", "rejected", "chosen_value", "rejected_value")


def run(
    run: Run,
    settings: BoostSettings,
    agents: Sequence[AgentSettings],
    sandbox: JudgePool,
    limits: Limits,
    progress: Progress,
) -> dict[str, Any]:
    """Search, verify, distil; writes ``trees``, ``nodes``, ``traces.parquet`` and ``preferences.parquet``.

    Returns:
        Summary: counts of problems, trees solved, verified traces, and calls: asked, replayed, lost, answered with nothing.

    Raises:
        InputError: no searchable problem, or an unusable agent.
        BdcError: the search left no verified trace.
    """
    chosen = stored_problems(run, "train", "validation")
    searchable = [(problem, split) for problem, split in chosen if problem.public_tests and problem.private_tests]
    if not searchable:
        raise InputError(
            f"{run.path}: none of {len(chosen)} problems has both public and private tests; nothing to search"
        )
    if skipped := len(chosen) - len(searchable):
        progress.say(f"boost: left out for want of public or private tests: {skipped} of {len(chosen)} problems")
    verifier = Verifier(run, sandbox, limits)
    with Broker(run, make_agents(agents), settings.seed, progress) as broker:
        search = Search([problem for problem, _ in searchable], broker, verifier, settings, progress)
        trees = search.run()
    judged = judge_best(trees, verifier, settings.traces_per_problem)
    names = [agent.name for agent in agents]
    splits = {problem.id: split for problem, split in searchable}
    rows = traces(trees, judged, splits, names, settings)
    _store_trees(run, search, judged, names)
    write_parquet(run.traces_path, rows, TRACE_COLUMNS)
    write_parquet(run.preferences_path, preferences(trees), PREFERENCE_COLUMNS)
    with_trace = {row["problem_id"] for row in rows}
    summary = {
        "problems": len(trees),
        "solved_public": sum(bool(tree.agents_that_solved()) for tree in trees),
        "problems_with_trace": len(with_trace),
        "traces": len({(row["problem_id"], row["node"]) for row in rows}),
        "rows": len(rows),
        "skipped_problems": skipped,
        "dropped_proposals": sum(tree.dropped_proposals for tree in trees),
        "calls_asked": broker.asked,
        "calls_replayed": broker.replayed,
        "calls_lost": broker.lost,
        "empty_answers": broker.empty,
    }
    if broker.lost:
        progress.say(f"boost: {broker.lost} calls got no answer; the search went on without them")
    empty = f"{broker.empty} of {broker.calls} answers were empty; a model that thinks first needs more boost.*_tokens"
    if broker.empty:
        progress.say(f"boost: {empty}")
    if not rows:
        stopped = sum(tree.stop.startswith("budget") for tree in trees)
        raise BdcError(
            f"{run.path}: the search of {len(trees)} problems left no verified trace ({stopped} stopped by boost.budget); "
            + (empty if 2 * broker.empty > broker.calls else "use stronger agents, more rollouts, or easier problems")
        )
    return summary


def _store_trees(run: Run, search: Search, judged: dict[int, Any], agents: Sequence[str]) -> None:
    with run.transaction() as db:
        db.execute("DELETE FROM trees")
        db.execute("DELETE FROM nodes")
        for tree in search.trees:
            best = judged[tree.index][0] if judged[tree.index] else None
            extra = {
                "dropped_proposals": tree.dropped_proposals,
                "agents_that_solved": [agents[i] for i in sorted(tree.agents_that_solved())],
            }
            public, private = (best[1].pass_rate, best[2].pass_rate) if best else (0.0, 0.0)
            db.execute(
                "INSERT INTO trees VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    tree.problem.id,
                    tree.rollouts,
                    len(tree.nodes),
                    tree.stop,
                    public,
                    private,
                    best[0].node if best else None,
                    best[1].source if best else None,
                    json.dumps(extra),
                ),
            )
            db.executemany(
                "INSERT INTO nodes VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", _node_rows(tree, search, agents)
            )


def _node_rows(tree: Tree, search: Search, agents: Sequence[str]) -> list[tuple[Any, ...]]:
    rows = []
    for statistics in search.forest.nodes(tree.root):
        node = tree.nodes[int(statistics["id"])]
        best = node.best
        rows.append(
            (
                tree.problem.id,
                node.node,
                node.parent,
                node.depth,
                agents[node.agent] if node.agent >= 0 else "",
                node.thoughts[-1] if node.thoughts else "",
                node.prior,
                int(statistics["visits"]),
                float(node.value or 0.0),
                float(statistics["value"]),
                node.state,
                node.reason,
                best.source if best else "",
                best.pass_rate if best else 0.0,
            )
        )
    return rows
