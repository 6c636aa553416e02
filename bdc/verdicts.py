"""Programs judged on the tests of problems: each verdict is stored in the run once and reused by every stage.

One that was found under weaker isolation than the sandbox has now is not reused but replaced, since that program could have
read its answers from the machine; so is one that cannot be read.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict

from bdc.problems import Problem
from bdc.runs import Run, digest
from bdc.sandbox import JudgePool, Limits, Verdict
from bdc.testcase import Test, dump_test

_CHUNK = 64  # programs judged between two writes to the store, at least; a cluster has more at work
_PER_WORKER = 8


class Verifier:
    """Judges programs of problems, with the run store as memory.

    Args:
        run: the open run.
        sandbox: a started pool.
        limits: per test.
    """

    def __init__(self, run: Run, sandbox: JudgePool, limits: Limits) -> None:
        self.run, self.sandbox, self.limits = run, sandbox, limits

    def judge(self, work: Sequence[tuple[Problem, str]], which: str = "public") -> list[Verdict]:
        """Verdicts in the order of ``work``; ``which`` is ``public`` or ``private`` tests."""
        limits = asdict(self.limits)
        jobs = {}
        keys = []
        for problem, program in work:
            tests = problem.public_tests if which == "public" else problem.private_tests
            keys.append(digest(program, [dump_test(test) for test in tests], limits))
            jobs[keys[-1]] = (problem, program, tests)
        stored = self.run.find("verdicts", list(jobs), ("json",))
        known = {key: verdict for key, row in stored.items() if (verdict := self._usable(row["json"])) is not None}
        missing = [key for key in jobs if key not in known]
        chunk = max(_CHUNK, _PER_WORKER * self.sandbox.workers)
        for start in range(0, len(missing), chunk):
            part = missing[start : start + chunk]
            known |= self._judge({key: jobs[key] for key in part}, which)
        return [known[key] for key in keys]

    def _usable(self, text: str) -> Verdict | None:
        """A stored verdict; None for one that was found under weaker isolation, or is damaged."""
        try:
            verdict = Verdict.from_json(json.loads(text))
            return verdict if verdict.level >= self.sandbox.level else None
        except (ValueError, TypeError):
            return None

    def _judge(self, jobs: dict[str, tuple[Problem, str, tuple[Test, ...]]], which: str) -> dict[str, Verdict]:
        verdicts = self.sandbox.judge_many([(program, tests) for _, program, tests in jobs.values()], self.limits)
        found = dict(zip(jobs, verdicts, strict=True))
        rows = [
            {
                "key": key,
                "problem_id": problem.id,
                "program": program,
                "tests": which,
                "pass_rate": found[key].pass_rate,
                "level": found[key].level,
                "json": json.dumps(found[key].to_json()),
            }
            for key, (problem, program, _) in jobs.items()
        ]
        with self.run.transaction() as db:
            db.executemany("DELETE FROM verdicts WHERE key = ?", [(key,) for key in jobs])
        self.run.insert("verdicts", rows)
        return found
