"""Reader of CodeContests (Li et al., arXiv 2203.07814) with one merged list of tests."""

from __future__ import annotations

from bdc.problems.problem import Problem
from bdc.problems.records import Record, identity, items, text
from bdc.testcase import StdinTest


def parse(record: Record) -> Problem:
    """Read one line: tests whose input the statement shows are public; failing that, the first half."""
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
        difficulty=identity(record, "difficulty") if "difficulty" in record else "",
    )
