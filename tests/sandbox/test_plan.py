"""Assertions read as calls: the same verdicts as by execution, and nothing that needs execution is taken."""

from __future__ import annotations

from typing import Any

import pytest

from bdc.sandbox import Limits, Sandbox, judge
from bdc.sandbox.plan import plan
from bdc.testcase import AssertTest

SIMPLE = [
    "assert f(1) == 2",
    "assert f(1) == 3, 'message'",
    "assert candidate(-1, b=[2]) == (1, {2: {3}})",
    "assert f(1)",
    "assert not f(0)",
    "assert f(None) is None",
    "assert f(1) is True",
    "assert 2 == f(1)",
    "import math\nassert f(1) == 2.0",
    "METADATA = {'a': 1}\n\ndef check(candidate):\n    'doc'\n    assert True, 'x'\n"
    "    assert candidate(1) == 2\n    assert candidate(9) == 9\n",
    "def check(g):\n    assert g(1) == 2\n\ncheck(f)",
]
NOT_SIMPLE = [
    "assert abs(f(1) - 2) < 1e-6",
    "assert f(x) == 1",
    "x = 1\nassert f(x) == 1",
    "for i in range(3):\n    assert f(i) == i",
    "assert f(1) == 2 == 2",
    "assert f(1) != 2",
    "assert f(1) is 2",
    "assert f(*[1]) == 2",
    "assert f(**{'a': 1}) == 2",
    "assert g(1) == 2",
    "assert f(1) == 2, print('x')",
    "f = 1\nassert f(1) == 2",
    "from x import *\nassert f(1) == 2",
    "from os import path as f\nassert f(1) == 2",
    "def check(candidate, other):\n    assert candidate(1) == 2",
    "def check(candidate):\n    assert candidate(1) == 2\ncheck(print)",
    "@print\ndef check(candidate):\n    assert candidate(1) == 2",
    "assert f(lambda: 1) == 2",
    "assert f(...) == 2",
    "",
    "pass",
    "assert f(",
    "assert f(" + "(" * 5000,
]


@pytest.mark.parametrize("code", SIMPLE)
def test_simple_assertions_are_read(code: str) -> None:
    assert plan(code, "f")


@pytest.mark.parametrize("code", NOT_SIMPLE)
def test_anything_else_is_left_to_the_referee(code: str) -> None:
    assert plan(code, "f") is None


PROGRAMS = [
    "def f(a, b=0): return a + 1",
    "def f(a, b=0): return a",
    "def f(a, b=0): return True",
    "def f(a, b=0): return (1, {2: {3}})",
    "def f(a, b=0): raise ValueError('no')",
    "def f(a, b=0): return None",
    "def f(a, b=0): return object()",
    "def f(a, b=0):\n    while True: pass",
    "def g(): pass",
]


def test_both_ways_give_the_same_verdicts(isolated: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    limits = Limits(cpu_seconds=0.1, wall_seconds=5.0, restarts=20)
    jobs = [(program, [AssertTest(code, "f") for code in SIMPLE]) for program in PROGRAMS]
    read = isolated.judge_many(jobs, limits)
    nothing: Any = lambda code, entry_point: None  # noqa: E731
    monkeypatch.setattr(judge, "plan", nothing)
    executed = isolated.judge_many(jobs, limits)
    for (program, _), first, second in zip(jobs, read, executed, strict=True):
        assert [r.status for r in first.results] == [r.status for r in second.results], program
        # Whether an object is true needs no object to travel, so reading verifies more than execution.
        assert all(a.verified >= b.verified for a, b in zip(first.results, second.results, strict=True)), program
