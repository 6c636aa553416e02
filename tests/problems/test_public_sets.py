"""The readers on the published files; tests/sandbox/test_truth.py runs the solutions."""

from __future__ import annotations

import json

import pytest
from published import published

from bdc.problems import Problem, load

SETS = [
    ("humaneval", "humaneval", 164),
    ("mbpp", "mbpp_sanitized", 427),
    ("mbpp", "mbpp", 974),
    ("apps", "apps_original_layout", 5),
    ("apps", "apps_half", 63),
    ("codecontests", "codecontests_half", 150),
]


@pytest.mark.parametrize(("kind", "name", "count"), SETS)
def test_published_set(kind: str, name: str, count: int) -> None:
    problems = load(f"{kind}:{published(name)}")
    assert len(problems) == count and all(problem.private_tests for problem in problems)
    for problem in problems:
        assert not {repr(t) for t in problem.public_tests} & {repr(t) for t in problem.private_tests}, problem.id
        assert Problem.from_json(json.loads(json.dumps(problem.to_json()))) == problem
