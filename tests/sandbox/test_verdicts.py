"""Verdicts in a run: found again, unless the isolation was weaker then."""

from __future__ import annotations

from pathlib import Path

import pytest

from bdc.problems import Problem
from bdc.runs import Run
from bdc.sandbox import Limits, Sandbox
from bdc.testcase import CallTest
from bdc.verdicts import Verifier

PROBLEM = Problem("a", "test", "Count.", "f", (), (CallTest("f", ({"a", "b", "c"},), 3),))


@pytest.mark.parametrize(("first", "then", "level"), [("L1", "L2", "L2"), ("L2", "L1", "L2"), ("L2", "L2", "L2")])
def test_a_verdict_of_a_weaker_level_is_replaced(tmp_path: Path, first: str, then: str, level: str) -> None:
    with Run(tmp_path / "run", create=True) as run:
        for name in (first, then, then):
            with Sandbox(workers=1, level=name) as sandbox:
                (verdict,) = Verifier(run, sandbox, Limits()).judge([(PROBLEM, "f = len")], "private")
                assert verdict.passed
        assert verdict.level == level
        assert [row["level"] for row in run.rows("SELECT level FROM verdicts")] == [level]


@pytest.mark.parametrize(
    "text", ["{bad", b"\xff", "[]", "{}", '{"results": [], "level": 3, "verified": true, "seconds": 0}']
)
def test_a_damaged_verdict_is_found_anew(tmp_path: Path, text: object) -> None:
    with Run(tmp_path / "run", create=True) as run, Sandbox(workers=1, level="L1") as sandbox:
        verifier = Verifier(run, sandbox, Limits())
        (expected,) = verifier.judge([(PROBLEM, "f = len")], "private")
        with run.transaction() as db:
            db.execute("UPDATE verdicts SET json = ?", (text,))
        (verdict,) = verifier.judge([(PROBLEM, "f = len")], "private")
        assert verdict.passed and verdict.level == expected.level
        assert next(run.rows("SELECT json FROM verdicts"))["json"] != text
