"""Reader of CodeContests (Li et al., arXiv 2203.07814) with one merged list of tests, or as on the hub."""

from __future__ import annotations

from typing import Any

from bdc.errors import InputError
from bdc.problems.problem import Problem
from bdc.problems.records import Record, identity, items, text
from bdc.testcase import StdinTest

_PYTHON3 = 3
"""The number of Python 3 among the hub copy's languages."""


def parse(record: Record) -> Problem:
    """Read one record of either layout: ``problem_md`` with merged tests, or the hub's ``description``."""
    return _published(record) if "description" in record else _merged(record)


def _published(record: Record) -> Problem:
    """Public tests stay public; private and generated ones are private (the public ones where there are none)."""
    public, private, generated = (
        tuple(_columns(record, name)) for name in ("public_tests", "private_tests", "generated_tests")
    )
    solutions = record.get("solutions")
    programs = _pairs(solutions, "solutions", "language", "solution") if solutions else []
    return Problem(
        id=f"codecontests/{text(record, 'name')}",
        source="codecontests",
        statement=text(record, "description"),
        entry_point=None,
        public_tests=public,
        private_tests=private + generated or public,
        solution=next((program for language, program in programs if language == _PYTHON3), None),
        difficulty=identity(record, "difficulty") if record.get("difficulty") is not None else "",
    )


def _columns(record: Record, name: str) -> list[StdinTest]:
    tests = []
    for stdin, expected in _pairs(record.get(name) or {}, name, "input", "output"):
        if not isinstance(stdin, str) or not isinstance(expected, str):
            raise InputError(f"field {name!r} holds a test that is not text")
        tests.append(StdinTest(stdin, expected))
    return tests


def _pairs(columns: Any, name: str, left: str, right: str) -> list[tuple[Any, Any]]:
    if not isinstance(columns, dict):
        raise InputError(f"field {name!r} is of type {type(columns).__name__}; it must be an object of two lists")
    first, second = (items(columns, column, object, required=False) for column in (left, right))
    if len(first) != len(second):
        raise InputError(f"field {name!r} has {len(first)} of {left!r} but {len(second)} of {right!r}")
    return list(zip(first, second, strict=True))


def _merged(record: Record) -> Problem:
    """Tests whose input the statement shows are public; failing that, the first half."""
    statement = text(record, "problem_md")
    tests = []
    for item in items(record, "tests", dict):
        tests.append(StdinTest(text(item, "input", ""), text(item, "output", "")))
    shown = " ".join(statement.split())
    public = [test for test in tests if test.stdin.strip() and " ".join(test.stdin.split()) in shown]
    if not public or len(public) == len(tests):
        public = tests[: len(tests) // 2]
    return Problem(
        id=f"codecontests/{identity(record, 'id')}",
        source="codecontests",
        statement=statement,
        entry_point=None,
        public_tests=tuple(public),
        private_tests=tuple(test for test in tests if test not in public) or tuple(tests),
        solution=text(record, "solution", "") or None,
        family=text(record, "cluster", ""),
        difficulty=identity(record, "difficulty") if record.get("difficulty") is not None else "",
    )
