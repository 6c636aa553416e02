"""Programs against private tests."""

from __future__ import annotations

from collections.abc import Sequence

from bdc.problems import Problem
from bdc.runs import Run
from bdc.sandbox import Limits, Sandbox
from bdc.verdicts import Verifier


def pass_rates(
    run: Run, sandbox: Sandbox, limits: Limits, problems: Sequence[Problem], programs: Sequence[str | None]
) -> list[float]:
    """Share of private tests that each program passes; 0 where there is no program."""
    work = [(problem, program) for problem, program in zip(problems, programs, strict=True) if program is not None]
    verdicts = iter(Verifier(run, sandbox, limits).judge(work, "private"))
    return [0.0 if program is None else next(verdicts).pass_rate for program in programs]
