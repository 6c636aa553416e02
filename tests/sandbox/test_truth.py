"""The reference solutions of public problem sets, where the files are at hand."""

from __future__ import annotations

import ast
import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from bdc.sandbox import Limits, Sandbox
from bdc.testcase import AssertTest

DATA = Path(__file__).parents[3] / "shared" / "data"
LIMITS = Limits(cpu_seconds=8.0, wall_seconds=60.0)


def rows(name: str) -> list[dict[str, Any]]:
    path = DATA / name
    if not path.exists():
        pytest.skip(f"{path} is absent; put the file there to judge its reference solutions")
    with gzip.open(path, "rt") as file:
        return [json.loads(line) for line in file]


def test_humaneval() -> None:
    problems = rows("humaneval.jsonl.gz")
    jobs = [(p["prompt"] + p["canonical_solution"], [AssertTest(p["test"], p["entry_point"])]) for p in problems]
    with Sandbox() as sandbox:
        verdicts = sandbox.judge_many(jobs, LIMITS)
    failed = [(p["task_id"], v.feedback()) for p, v in zip(problems, verdicts, strict=True) if not v.passed]
    assert not failed
    unverified = [p["task_id"] for p, v in zip(problems, verdicts, strict=True) if not v.verified]
    assert unverified == [f"HumanEval/{n}" for n in (32, 38, 50)]  # their tests use a function that the prompt defines


def entry_point(problem: dict[str, Any]) -> str:
    defined = {n.name for n in ast.walk(ast.parse(problem["code"])) if isinstance(n, ast.FunctionDef)}
    called = (n.func for n in ast.walk(ast.parse(problem["test_list"][0])) if isinstance(n, ast.Call))
    return next(f.id for f in called if isinstance(f, ast.Name) and f.id in defined)


@pytest.mark.filterwarnings("ignore:invalid escape sequence")
def test_mbpp() -> None:
    problems = rows("mbpp.jsonl.gz")
    jobs = [
        (p["code"], [AssertTest(f"{p['test_setup_code']}\n{t}", entry_point(p)) for t in p["test_list"]])
        for p in problems
    ]
    with Sandbox() as sandbox:
        verdicts = sandbox.judge_many(jobs, LIMITS)
    failed = [(p["task_id"], v.feedback()) for p, v in zip(problems, verdicts, strict=True) if not v.passed]
    assert not failed
    assert sum(not verdict.verified for verdict in verdicts) <= 4


def test_wrong_programs_of_humaneval_fail() -> None:
    problems = rows("humaneval.jsonl.gz")
    jobs = [
        (f"def {p['entry_point']}(*a, **k): return object", [AssertTest(p["test"], p["entry_point"])]) for p in problems
    ]
    with Sandbox() as sandbox:
        assert not any(verdict.passed for verdict in sandbox.judge_many(jobs, LIMITS))
