"""The evaluate stage: held-out problems, several systems -> evaluation.json."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from bdc.artefacts import atomic_write
from bdc.errors import InputError
from bdc.evaluation.answers import Answer, Respondent, program_prompt
from bdc.evaluation.judging import judged
from bdc.evaluation.metrics import interval, paired_difference, pass_at_k
from bdc.evaluation.settings import EvaluateSettings
from bdc.evaluation.systems import OURS, SEARCH, System, Systems, label
from bdc.llm import prompts
from bdc.machine import describe_machine
from bdc.problems import Problem
from bdc.progress import Progress
from bdc.runs import Run
from bdc.sandbox import JudgePool, Limits, Verdict
from bdc.splits import stored_problems

if TYPE_CHECKING:
    from bdc.customize import Solver

FORMAT = 1
_DIGITS = 6


def run(
    run: Run,
    settings: EvaluateSettings,
    base_model: str,
    sandbox: JudgePool,
    limits: Limits,
    progress: Progress | None = None,
    dtype: str = "auto",
    *,
    inputs: str = "",
    search: Callable[[Sequence[Problem]], list[Answer]] | None = None,
) -> dict[str, Any]:
    """Let every system solve the held-out problems and compare them; writes ``evaluation.json``.

    Args:
        inputs: digest of what the solver was made from. Stored answers of other inputs are not used.
        search: what the system "search" answers, one program per problem.

    Returns:
        Summary: number of problems, and per system the means of the metrics.

    Raises:
        InputError: there are no held-out problems, an artefact is missing, or a system's name is unknown.
    """
    progress = progress or Progress("quiet")
    problems = held_out(run, settings.max_problems, progress)
    systems = Systems(run, base_model, dtype)
    names = systems.named(settings.systems)
    if SEARCH in names and search is None:
        raise InputError(f'evaluate.systems names "{SEARCH}", which needs the agents of a run; bdc evaluate has them')
    results = []
    with progress.task("evaluate", total=len(problems) * settings.samples * len(names)) as task:
        for name in names:
            losses: list[float | None] = [None] * len(problems)
            if name == SEARCH and search is not None:
                answers = [[answer] for answer in search(problems)]
                task.advance(len(problems) * settings.samples, name)
            else:
                with systems.open(name, settings.seed) as system:
                    respondent = Respondent(run, system, settings, "/".join((inputs, base_model, dtype)))
                    answers = respondent.programs(problems, task)
                    losses = held_out_loss(system, problems)
            asked = [problem for problem, own in zip(problems, answers, strict=True) for _ in own]
            verdicts = judged(run, sandbox, limits, asked, [answer.program for own in answers for answer in own])
            results.append(_result(name, problems, answers, losses, verdicts, settings))
    evaluation = {
        "format": FORMAT,
        "seed": settings.seed,
        "pass_at": list(settings.pass_at),
        "problems": [problem.id for problem in problems],
        "machine": describe_machine(),
        "device": _device(systems.solver),
        "systems": results,
        "differences": differences(results, settings),
        "rank_weights": rank_weights(systems.solver, problems),
    }
    atomic_write(run.evaluation_path, json.dumps(evaluation, ensure_ascii=False, allow_nan=False))
    return {
        "problems": len(problems),
        "systems": {
            result["name"]: {
                metric: result[metric]["mean"] if result[metric] else None for metric in _metrics(settings)
            }
            for result in results
        },
    }


def held_out(run: Run, limit: int, progress: Progress) -> list[Problem]:
    """The first ``limit`` (0: all) test problems that have private tests.

    Raises:
        InputError: there are none.
    """
    found = [problem for problem, _ in stored_problems(run, "test")]
    usable = [problem for problem in found if problem.private_tests]
    if not usable:
        raise InputError(
            f"{run.path}: none of {len(found)} test problems has private tests; give the test split some problems"
        )
    if len(usable) < len(found):
        progress.say(
            f"evaluate: left out for want of private tests: {len(found) - len(usable)} of {len(found)} problems"
        )
    return usable[:limit] if limit else usable


def held_out_loss(system: System, problems: Sequence[Problem]) -> list[float | None]:
    """Nats per response token of each reference solution; None for a problem without one, or beyond the context."""
    solver = system.solver
    chosen, asked, responses = [], [], []
    for problem in problems:
        if problem.solution:
            prompt, response = program_prompt(problem, ()), prompts.program_response(problem.solution)
            if solver.fits(prompt, response):
                chosen.append(problem)
                asked.append(prompt)
                responses.append(response)
    if not chosen:
        return [None] * len(problems)
    statements = [problem.statement for problem in chosen]
    losses = solver.loss(asked, responses, statements=statements, weights=system.weights)
    by_id = {problem.id: loss.per_token for problem, loss in zip(chosen, losses, strict=True)}
    return [by_id.get(problem.id) for problem in problems]


def _metrics(settings: EvaluateSettings) -> list[str]:
    return ["loss", "pass_rate", "ac", *(f"pass@{k}" for k in settings.pass_at)]


def _result(
    name: str,
    problems: Sequence[Problem],
    answers: Sequence[Sequence[Answer]],
    losses: Sequence[float | None],
    verdicts: Sequence[Verdict | None],
    settings: EvaluateSettings,
) -> dict[str, Any]:
    left = iter(verdicts)
    per_problem = [
        {"id": problem.id, "loss": loss}
        | _judged([next(left) for _ in own])
        | ({"cut_short": own[0].cut_short} if own[0].cut_short else {})
        for problem, own, loss in zip(problems, answers, losses, strict=True)
    ]
    all_answers = [answer for own in answers for answer in own]
    return {
        "name": name,
        "label": label(name),
        **{metric: _interval(_values(per_problem, metric), settings) for metric in _metrics(settings)},
        "prompt_tokens": sum(answer.prompt_tokens for answer in all_answers),
        "completion_tokens": sum(answer.completion_tokens for answer in all_answers),
        "seconds": sum(answer.seconds for answer in all_answers),
        "cut_short": sum(bool(answer.cut_short) for answer in all_answers),
        "unverified": sum(row["solved"] and not row["verified"] for row in per_problem),
        "per_problem": per_problem,
    }


def _judged(verdicts: Sequence[Verdict | None]) -> dict[str, Any]:
    """What a problem's programs reach: one that passes all tests solves it, and the pass is verified if one of these is."""
    found = [verdict for verdict in verdicts if verdict is not None]
    right = [verdict for verdict in found if verdict.passed]
    return {
        "pass_rate": sum(verdict.pass_rate for verdict in found) / len(verdicts),
        "solved": bool(right),
        "verified": not found or any(verdict.verified for verdict in right or found),
        "programs": len(verdicts),
        "right": len(right),
    }


def _value(row: dict[str, Any], metric: str) -> float | None:
    """Of one problem; None where the system has too few programs for a pass@k, or the problem has no solution for a loss."""
    if metric == "ac":
        return float(row["right"] / row["programs"])
    if metric.startswith("pass@"):
        k = int(metric.removeprefix("pass@"))
        return pass_at_k(row["programs"], row["right"], k) if k <= row["programs"] else None
    found: float | None = row[metric]
    return found


def _values(per_problem: Sequence[dict[str, Any]], metric: str) -> list[float]:
    return [value for row in per_problem if (value := _value(row, metric)) is not None]


def _interval(values: Sequence[float], settings: EvaluateSettings) -> dict[str, float] | None:
    return interval(values, settings.bootstrap, settings.seed)._asdict() | {"n": len(values)} if values else None


def differences(results: Sequence[dict[str, Any]], settings: EvaluateSettings) -> list[dict[str, Any]]:
    """BDC minus each other system, per metric, paired by problem; empty when BDC was not evaluated."""
    ours = next((result for result in results if result["name"] == OURS), None)
    if ours is None:
        return []
    out = []
    for other in results:
        for metric in _metrics(settings):
            mine, theirs = (_values(result["per_problem"], metric) for result in (ours, other))
            # Which problems have a loss is a matter of the problems; the search has none at all.
            if other is not ours and mine and theirs:
                found = paired_difference(mine, theirs, settings.bootstrap, settings.seed)
                out.append({"system": other["name"], "metric": metric, **found._asdict(), "n": len(mine)})
    return out


def rank_weights(solver: Solver, problems: Sequence[Problem]) -> dict[str, Any]:
    """Mean hypernetwork weights per cluster and layer, expert-major; empty per layer where a cluster has no problem."""
    statements = [problem.statement for problem in problems]
    given = solver.rank_weights(statements).flatten(2)  # [N, L, K*r]
    clusters = solver.customizer.nearest_experts(statements)
    stack = solver.parts.stack
    means: list[list[list[float]]] = []
    for cluster in range(stack.k):
        members = [index for index, found in enumerate(clusters) if found == cluster]
        mean: list[list[float]] = given[members].mean(dim=0).tolist() if members else [[] for _ in stack.modules]
        means.append([[round(value, _DIGITS) for value in row] for row in mean])
    return {"layers": list(stack.modules), "clusters": means, "experts": stack.k, "rank": stack.rank}


def _device(solver: Solver) -> str:
    import torch

    device = solver.model.device
    return f"{device.type} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device.type)
