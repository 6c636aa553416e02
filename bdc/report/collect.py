"""Everything the page shows, gathered from a run directory into one JSON-able dictionary."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from bdc import __version__
from bdc.machine import describe_machine
from bdc.report.metrics import OURS, metrics_of, number
from bdc.report.sources import finite, read_json, read_traces
from bdc.report.trees import collect_trees
from bdc.report.verdict import favours, verdicts
from bdc.runs import STAGES, Run


def collect(run: Run, models: Sequence[str] = ()) -> dict[str, Any]:
    """One entry per section; None where the stage that makes its input has not run.

    Args:
        models: of all stages, by name.

    Raises:
        InputError: an artefact is there and cannot be read.
    """
    traces = read_traces(run)
    evaluation = read_json(run.evaluation_path, "evaluate", ("systems",))
    config = run.config_path.read_text("utf-8", "replace") if run.config_path.is_file() else None
    costs = _costs(run, evaluation)
    data = {
        "header": _header(run, traces, evaluation, costs) | {"models": sorted(set(models))},
        "results": _results(evaluation),
        "map": _map(run, traces),
        "trees": collect_trees(run),
        "weights": evaluation.get("rank_weights") if evaluation else None,
        "costs": costs,
        "reproduce": {"config": config, "command": _repeat(run)},
        "commands": {stage: f"bdc {stage} {shlex.quote(str(run.path))}" for stage in STAGES},
    }
    return dict(finite(data))


def _repeat(run: Run) -> str:
    again = run.path.with_name(f"{run.path.resolve().name}-again")
    return f"bdc run {shlex.quote(str(run.config_path))} --dir {shlex.quote(str(again))}"


def _count(run: Run, query: str) -> int:
    return int(run.db.execute(query).fetchone()[0] or 0)


def _when(timestamp: float | None) -> str | None:
    return f"{datetime.fromtimestamp(timestamp, UTC):%Y-%m-%d %H:%M} UTC" if timestamp else None


def _header(
    run: Run,
    traces: list[dict[str, Any]] | None,
    evaluation: dict[str, Any] | None,
    costs: dict[str, Any],
) -> dict[str, Any]:
    first, last = run.db.execute("SELECT min(created), max(created) FROM calls").fetchone()
    ends = [stage["finished"] for stage in costs["stages"] if stage["finished"]]
    ended = max([*ends, *([last] if last else [])], default=None)
    splits = Counter(
        {row["split"]: row["n"] for row in run.rows("SELECT split, count(*) n FROM problems GROUP BY split")}
    )
    calls = costs["calls"]
    return {
        "name": run.path.resolve().name,
        "started": _when(first),
        "ended": _when(ended),
        "machine": (evaluation or {}).get("machine") or describe_machine(),
        "device": (evaluation or {}).get("device"),
        "version": __version__,
        "agents": sorted({row["agent"] for row in calls if row["stage"] == "boost"}),
        "problems": sum(splits.values()),
        "splits": dict(sorted(splits.items())),
        "trees": _count(run, "SELECT count(*) FROM trees"),
        "solved": _count(run, "SELECT count(*) FROM trees WHERE private_pass_rate >= 1"),
        "traces": None if traces is None else len(traces),
        "traced_problems": None if traces is None else len({row["problem_id"] for row in traces}),
        "tokens": costs["tokens"],
        "seconds": costs["seconds"],
    }


def _results(evaluation: dict[str, Any] | None) -> dict[str, Any] | None:
    if evaluation is None:
        return None
    metrics = {metric.key: metric for metric in metrics_of(evaluation)}
    differences = [
        difference | {"favours": favours(difference, metrics[difference["metric"]])}
        for difference in evaluation.get("differences") or ()
        if difference.get("metric") in metrics
    ]
    return {
        "ours": OURS,
        "metrics": [metric.to_json() for metric in metrics.values()],
        "systems": evaluation["systems"],
        "differences": differences,
        "verdicts": verdicts(evaluation),
        "problems": len(evaluation.get("problems") or ()),
        "seed": evaluation.get("seed"),
    }


def _map(run: Run, traces: list[dict[str, Any]] | None) -> dict[str, Any] | None:
    """Points of the t-SNE picture; ids may be of traces, or of problems when whole problems were clustered."""
    path = run.clusters_dir / "clusters.json"
    clusters = read_json(path, "disentangle", ("assignment", "tsne"))
    if clusters is None:
        return None
    by_id: dict[str, dict[str, Any]] = {}
    per_problem = Counter(trace["problem_id"] for trace in traces or ())
    for trace in traces or ():
        by_id[trace["id"]] = trace
        by_id.setdefault(trace["problem_id"], {"problem_id": trace["problem_id"], "split": trace["split"]})
    known = {
        row["id"]: row
        for row in run.rows("SELECT id, split, coalesce(json_extract(json, '$.family'), '') AS family FROM problems")
    }
    given = clusters.get("families") or {}
    points = []
    for key, (x, y) in clusters["tsne"].items():
        if number(x) is None or number(y) is None:
            continue
        trace = by_id.get(key, {})
        problem = trace.get("problem_id", key)
        family = given.get(key) or given.get(problem) or known.get(problem, {}).get("family", "")
        cluster = clusters["assignment"].get(key, clusters["assignment"].get(problem))
        points.append(
            {"id": key, "problem": problem, "family": family, "cluster": cluster, "x": x, "y": y}
            | {"split": trace.get("split") or known.get(problem, {}).get("split"), "traces": per_problem[problem]}
        )
    scores = [
        {"k": int(k), "sse": score.get("sse"), "silhouette": score.get("silhouette")}
        for k, score in (clusters.get("scores") or {}).items()
    ]
    return {
        "k": clusters.get("k"),
        "points": points,
        "terms": clusters.get("terms") or [],
        "scores": sorted(scores, key=lambda score: score["k"]),
    }


def _costs(run: Run, evaluation: dict[str, Any] | None) -> dict[str, Any]:
    calls = list(
        run.rows(
            "SELECT stage, role, agent, count(*) AS calls, sum(prompt_tokens) AS prompt_tokens,"
            " sum(completion_tokens) AS completion_tokens, sum(seconds) AS seconds"
            " FROM calls GROUP BY stage, role, agent ORDER BY stage, role, agent"
        )
    )
    stages = []
    for name in STAGES:
        record = run.stage(name)
        if name != "report":
            finished = record["finished"] if record else None
            seconds = record["seconds"] if record else None
            stages.append({"name": name, "seconds": seconds, "finished": finished, "when": _when(finished)})
    systems = [
        {
            "name": system.get("label") or system["name"],
            "prompt_tokens": system.get("prompt_tokens") or 0,
            "completion_tokens": system.get("completion_tokens") or 0,
            "seconds": system.get("seconds") or 0.0,
        }
        for system in (evaluation or {}).get("systems", ())
    ]
    # Evaluation writes its own token counts; calls that it also logged would count twice.
    logged = [row for row in calls if not (systems and row["stage"] == "evaluate")]
    tokens = sum(row["prompt_tokens"] + row["completion_tokens"] for row in [*logged, *systems])
    return {
        "calls": calls,
        "stages": stages,
        "systems": systems,
        "tokens": tokens,
        "seconds": sum(stage["seconds"] or 0.0 for stage in stages),
    }
