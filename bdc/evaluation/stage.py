"""The evaluate stage: held-out problems, several systems -> evaluation.json."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from bdc.artefacts import atomic_write
from bdc.errors import InputError
from bdc.evaluation.answers import Answer, Respondent, program_prompt
from bdc.evaluation.judging import judged
from bdc.evaluation.metrics import interval, paired_difference
from bdc.evaluation.settings import EvaluateSettings
from bdc.evaluation.systems import OURS, SEARCH, System, Systems, label
from bdc.llm import prompts
from bdc.machine import describe_machine
from bdc.problems import Problem
from bdc.progress import Progress
from bdc.runs import Run
from bdc.sandbox import Limits, Sandbox, Verdict
from bdc.splits import stored_problems

if TYPE_CHECKING:
    from bdc.customize import Solver

FORMAT = 1
_DIGITS = 6


def run(
    run: Run,
    settings: EvaluateSettings,
    base_model: str,
    sandbox: Sandbox,
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
    results = []
    with progress.task("evaluate", total=len(problems) * len(names)) as task:
        for name in names:
            losses: list[float | None] = [None] * len(problems)
            if name == SEARCH:
                answers = _searched(search, problems)
                task.advance(len(problems), name)
            else:
                with systems.open(name, settings.seed) as system:
                    respondent = Respondent(run, system, settings, "/".join((inputs, base_model, dtype)))
                    answers = respondent.programs(problems, task)
                    losses = held_out_loss(system, problems)
            verdicts = judged(run, sandbox, limits, problems, [answer.program for answer in answers])
            results.append(_result(name, problems, answers, losses, verdicts, settings))
    evaluation = {
        "format": FORMAT,
        "seed": settings.seed,
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
                metric: result[metric]["mean"] if result[metric] else None for metric in ("loss", "pass_rate", "ac")
            }
            for result in results
        },
    }


def _searched(search: Callable[[Sequence[Problem]], list[Answer]] | None, problems: Sequence[Problem]) -> list[Answer]:
    if search is None:
        raise InputError(f'evaluate.systems names "{SEARCH}", which needs the agents of a run; bdc evaluate has them')
    return search(problems)


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


def _result(
    name: str,
    problems: Sequence[Problem],
    answers: Sequence[Answer],
    losses: Sequence[float | None],
    verdicts: Sequence[Verdict | None],
    settings: EvaluateSettings,
) -> dict[str, Any]:
    per_problem = [
        {"id": problem.id, "loss": loss}
        | {"pass_rate": verdict.pass_rate if verdict else 0.0, "solved": verdict is not None and verdict.passed}
        | {"verified": verdict is None or verdict.verified}
        for problem, loss, verdict in zip(problems, losses, verdicts, strict=True)
    ]
    return {
        "name": name,
        "label": label(name),
        **{metric: _interval(_values(per_problem, metric), settings) for metric in ("loss", "pass_rate", "ac")},
        "prompt_tokens": sum(answer.prompt_tokens for answer in answers),
        "completion_tokens": sum(answer.completion_tokens for answer in answers),
        "seconds": sum(answer.seconds for answer in answers),
        "unverified": sum(row["solved"] and not row["verified"] for row in per_problem),
        "per_problem": per_problem,
    }


def _values(per_problem: Sequence[dict[str, Any]], metric: str) -> list[float]:
    field = "solved" if metric == "ac" else metric
    return [float(row[field]) for row in per_problem if row[field] is not None]


def _interval(values: Sequence[float], settings: EvaluateSettings) -> dict[str, float] | None:
    return interval(values, settings.bootstrap, settings.seed)._asdict() | {"n": len(values)} if values else None


def differences(results: Sequence[dict[str, Any]], settings: EvaluateSettings) -> list[dict[str, Any]]:
    """BDC minus each other system, per metric, paired by problem; empty when BDC was not evaluated."""
    ours = next((result for result in results if result["name"] == OURS), None)
    if ours is None:
        return []
    out = []
    for other in results:
        for metric in ("loss", "pass_rate", "ac"):
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
