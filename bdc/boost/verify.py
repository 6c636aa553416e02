"""Mutual verification: programs run on tests in the sandbox; each verdict is stored once and reused."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict

from bdc.problems import Problem
from bdc.progress import Progress
from bdc.runs import Run, digest
from bdc.sandbox import Limits, Sandbox, Verdict
from bdc.testcase import Test, dump_test


class Verifier:
    """Judges programs of problems, with the run store as memory.

    Args:
        run: the open run.
        sandbox: a started pool.
        limits: per test.
    """

    def __init__(self, run: Run, sandbox: Sandbox, limits: Limits, progress: Progress) -> None:
        self.run, self.sandbox, self.limits, self.progress = run, sandbox, limits, progress
        self._limits = asdict(limits)

    def judge(self, work: Sequence[tuple[Problem, str]], which: str = "public") -> list[Verdict]:
        """Verdicts in the order of ``work``; ``which`` is ``public`` or ``private`` tests."""
        jobs = [(problem, source, _tests(problem, which)) for problem, source in work]
        keys = [digest(source, [dump_test(test) for test in tests], self._limits) for _, source, tests in jobs]
        known: dict[str, Verdict] = {}
        missing: dict[str, int] = {}
        for index, key in enumerate(keys):
            if key in known or key in missing:
                continue
            row = next(self.run.rows("SELECT json FROM verdicts WHERE key=?", (key,)), None)
            if row is not None:
                known[key] = Verdict.from_json(json.loads(row["json"]))
            else:
                missing[key] = index
        if missing:
            verdicts = self.sandbox.judge_many([(jobs[i][1], jobs[i][2]) for i in missing.values()], self.limits)
            rows = []
            for (key, index), verdict in zip(missing.items(), verdicts, strict=True):
                known[key] = verdict
                rows.append(
                    {
                        "key": key,
                        "problem_id": jobs[index][0].id,
                        "program": jobs[index][1],
                        "tests": which,
                        "pass_rate": verdict.pass_rate,
                        "level": verdict.level,
                        "json": json.dumps(verdict.to_json()),
                    }
                )
            self.run.insert("verdicts", rows)
        return [known[key] for key in keys]


def _tests(problem: Problem, which: str) -> tuple[Test, ...]:
    return problem.public_tests if which == "public" else problem.private_tests
