"""Programs against private tests."""

from __future__ import annotations

from collections.abc import Sequence

from bdc.problems import Problem
from bdc.runs import Run
from bdc.sandbox import JudgePool, Limits, Verdict
from bdc.verdicts import Verifier


def judged(
    run: Run, sandbox: JudgePool, limits: Limits, problems: Sequence[Problem], programs: Sequence[str | None]
) -> list[Verdict | None]:
    """The verdict of each program on the private tests; None where there is no program."""
    work = [(problem, program) for problem, program in zip(problems, programs, strict=True) if program is not None]
    verdicts = iter(Verifier(run, sandbox, limits).judge(work, "private"))
    return [None if program is None else next(verdicts) for program in programs]
