from __future__ import annotations

import ast
import doctest
import json

import pytest

from bdc.problems import Problem, load, normalise
from bdc.sandbox import Sandbox
from bdc.testcase import CallTest


@pytest.fixture(scope="module")
def mini() -> list[Problem]:
    return load("mini")


def test_the_set_has_unique_problems_in_families(mini: list[Problem]) -> None:
    assert len(mini) >= 96
    assert len({problem.id for problem in mini}) == len({normalise(problem.statement) for problem in mini}) == len(mini)
    families = {family: sum(p.family == family for p in mini) for family in {p.family for p in mini}}
    assert len(families) == 8 and set(families.values()) == {12}
    for problem in mini:
        assert problem.id == f"mini/{problem.family}/{problem.entry_point}"
        assert problem.public_tests and len(problem.private_tests) >= 6


def test_private_tests_do_not_repeat_public_ones(mini: list[Problem]) -> None:
    for problem in mini:
        public = {repr(t.args) for t in problem.public_tests if isinstance(t, CallTest)}
        private = [repr(t.args) for t in problem.private_tests if isinstance(t, CallTest)]
        assert public.isdisjoint(private), problem.id


def test_json_round_trip(mini: list[Problem]) -> None:
    for problem in mini:
        assert Problem.from_json(json.loads(json.dumps(problem.to_json()))) == problem


def test_statements_are_functions_whose_examples_are_the_public_tests(mini: list[Problem]) -> None:
    for problem in mini:
        (function,) = ast.parse(problem.statement).body
        assert isinstance(function, ast.FunctionDef) and function.name == problem.entry_point
        assert problem.statement.startswith(problem.starter_code), problem.id
        assert problem.solution and problem.solution.startswith(problem.starter_code), problem.id
        shown = doctest.DocTestParser().get_examples(ast.get_docstring(function) or "")
        tests = [test for test in problem.public_tests if isinstance(test, CallTest)]
        calls = [f"{problem.entry_point}({', '.join(map(repr, test.args))})" for test in tests]
        assert [example.source.strip() for example in shown] == calls, problem.id
        assert [ast.literal_eval(example.want) for example in shown] == [test.expected for test in tests], problem.id


def _wrong(problem: Problem) -> list[str]:
    """Programs that miss the point: the first argument, nothing, and each public result as a constant."""
    head = f"def {problem.entry_point}(*args):\n    return "
    constants = [test.expected for test in problem.public_tests if isinstance(test, CallTest)]
    return [f"{head}args[0]\n", *(f"{head}{value!r}\n" for value in [None, *constants])]


def test_reference_solutions_pass_and_wrong_programs_fail(mini: list[Problem]) -> None:
    jobs = [(program, p.private_tests) for p in mini for program in [p.solution or "", *_wrong(p)]]
    with Sandbox() as sandbox:
        verdicts = iter(sandbox.judge_many(jobs))
        public = sandbox.judge_many([(p.solution or "", p.public_tests) for p in mini])
    for problem, shown in zip(mini, public, strict=True):
        right = next(verdicts)
        assert right.passed and shown.passed, (problem.id, right.feedback(), shown.feedback())
        for program in _wrong(problem):
            assert not next(verdicts).passed, (problem.id, program)
