"""The readers on the published files, and the published solutions through the sandbox."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bdc.problems import Problem, load
from bdc.sandbox import Sandbox

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"

# Known faults of the sets: wrong docstring examples, a solution slower than the limit, a missing import.
SETS = [
    ("humaneval", "humaneval", 164, {"HumanEval/47", "HumanEval/116"}),
    ("mbpp", "mbpp_sanitized", 427, {"mbpp/123"}),
    ("mbpp", "mbpp", 974, None),
    ("apps", "apps_original_layout", 5, {"apps/2404"}),
    ("apps", "apps_half", 63, None),
    ("codecontests", "codecontests_half", 150, None),
]


@pytest.mark.parametrize(("kind", "name", "count", "faulty"), SETS)
def test_published_set(kind: str, name: str, count: int, faulty: set[str] | None) -> None:
    path = DATA / f"{name}.jsonl.gz"
    if not path.is_file():
        pytest.skip(f"{path} is not there; put the published file in that place to run this test")
    problems = load(f"{kind}:{path}")
    assert len(problems) == count and all(problem.private_tests for problem in problems)
    for problem in problems:
        assert not {repr(t) for t in problem.public_tests} & {repr(t) for t in problem.private_tests}, problem.id
        assert Problem.from_json(json.loads(json.dumps(problem.to_json()))) == problem
    if faulty is None:
        return
    with Sandbox() as sandbox:
        verdicts = sandbox.judge_many([(p.solution or "", p.public_tests + p.private_tests) for p in problems])
    assert {p.id for p, verdict in zip(problems, verdicts, strict=True) if not verdict.passed} <= faulty
