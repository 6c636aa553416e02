from __future__ import annotations

import json

import pytest

from bdc.problems import Problem, load, normalise
from bdc.sandbox import Sandbox
from bdc.testcase import CallTest


@pytest.fixture(scope="module")
def mini() -> list[Problem]:
    return load("mini")


def test_the_set_has_unique_problems_in_families(mini: list[Problem]) -> None:
    assert len(mini) >= 90
    assert len({problem.id for problem in mini}) == len({normalise(problem.statement) for problem in mini}) == len(mini)
    families = {family: sum(p.family == family for p in mini) for family in {p.family for p in mini}}
    assert len(families) == 8 and min(families.values()) >= 8
    for problem in mini:
        assert problem.id == f"mini/{problem.family}/{problem.entry_point}"
        assert problem.public_tests and len(problem.private_tests) >= 5


def test_private_tests_do_not_repeat_public_ones(mini: list[Problem]) -> None:
    for problem in mini:
        public = {repr(t.args) for t in problem.public_tests if isinstance(t, CallTest)}
        private = [repr(t.args) for t in problem.private_tests if isinstance(t, CallTest)]
        assert public.isdisjoint(private), problem.id


def test_json_round_trip(mini: list[Problem]) -> None:
    for problem in mini:
        assert Problem.from_json(json.loads(json.dumps(problem.to_json()))) == problem


def test_reference_solutions_pass_and_programs_returning_none_fail(mini: list[Problem]) -> None:
    jobs = []
    for problem in mini:
        tests = problem.public_tests + problem.private_tests
        jobs.append((problem.solution or "", tests))
        jobs.append((f"def {problem.entry_point}(*args):\n    return None\n", tests))
    with Sandbox() as sandbox:
        verdicts = sandbox.judge_many(jobs)
    for problem, right, wrong in zip(mini, verdicts[::2], verdicts[1::2], strict=True):
        assert right.passed, (problem.id, right.feedback())
        assert not wrong.passed, problem.id
        # A constant answer must not come near to solving a problem.
        assert wrong.pass_rate < 0.5, (problem.id, wrong.pass_rate)
