"""Programs against private tests, each verdict stored once."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict

from bdc.problems import Problem
from bdc.runs import Run, digest
from bdc.sandbox import Limits, Sandbox, Verdict
from bdc.testcase import dump_test

_CHUNK = 64  # programs judged between two writes to the store


def pass_rates(
    run: Run, sandbox: Sandbox, limits: Limits, problems: Sequence[Problem], programs: Sequence[str | None]
) -> list[float]:
    """Share of private tests that each program passes; 0 where there is no program."""
    keys = [
        None
        if program is None
        else digest(program, [dump_test(test) for test in problem.private_tests], asdict(limits))
        for problem, program in zip(problems, programs, strict=True)
    ]
    known: dict[str, float] = {}
    missing: dict[str, tuple[Problem, str]] = {}
    for key, problem, program in zip(keys, problems, programs, strict=True):
        if key is None or program is None or key in known or key in missing:
            continue
        row = next(run.rows("SELECT json FROM verdicts WHERE key=?", (key,)), None)
        if row is not None:
            known[key] = Verdict.from_json(json.loads(row["json"])).pass_rate
        else:
            missing[key] = (problem, program)
    todo = list(missing.items())
    for start in range(0, len(todo), _CHUNK):
        part = todo[start : start + _CHUNK]
        verdicts = sandbox.judge_many([(program, problem.private_tests) for _, (problem, program) in part], limits)
        rows = []
        for (key, (problem, program)), verdict in zip(part, verdicts, strict=True):
            known[key] = verdict.pass_rate
            rows.append(
                {
                    "key": key,
                    "problem_id": problem.id,
                    "program": program,
                    "tests": "private",
                    "pass_rate": verdict.pass_rate,
                    "level": verdict.level,
                    "json": json.dumps(verdict.to_json()),
                }
            )
        run.insert("verdicts", rows)
    return [0.0 if key is None else known[key] for key in keys]
