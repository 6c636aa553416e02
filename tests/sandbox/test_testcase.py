"""Tests of programs are stored and read back unchanged, or refused in words."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bdc.errors import InputError
from bdc.testcase import AssertTest, CallTest, StdinTest, Test, dump_test, load_test

numbers = st.integers() | st.floats(allow_nan=False) | st.complex_numbers(allow_nan=False)
scalars = st.none() | st.booleans() | numbers | st.text() | st.binary()
literals = st.recursive(
    scalars | st.sets(scalars),
    lambda inner: st.lists(inner) | st.tuples(inner) | st.tuples(inner, inner) | st.dictionaries(scalars, inner),
    max_leaves=15,
)


def stored(test: Test) -> Test:
    return load_test(json.loads(json.dumps(dump_test(test))))


@given(st.lists(literals), literals, st.dictionaries(st.sampled_from(["a", "b_2"]), literals))
def test_round_trip(args: list[Any], expected: Any, kwargs: dict[str, Any]) -> None:
    test = CallTest("f", tuple(args), expected, kwargs)
    assert stored(test) == test
    assert CallTest("f", args, expected, kwargs) == test  # type: ignore[arg-type]


@pytest.mark.parametrize("test", [StdinTest("a\n\udcff", ""), AssertTest("assert f() == 1", "f")])
def test_round_trip_of_text(test: Test) -> None:
    assert stored(test) == test


@pytest.mark.parametrize(
    "text", ["1e999", "-1e999", "[{1: (1e999,)}]", "{-1e999}", "(1+1e999j)", "1e999-1e999j", "set()"]
)
def test_infinity_is_stored_as_it_was_written(text: str) -> None:
    test = load_test({"kind": "call", "entry_point": "f", "args": f"({text},)", "expected": text})
    assert stored(test) == test


def test_long_ints_are_stored() -> None:
    for value in (10**5000, -(10**5000), [{10**4300: 1}], 10**4000, 1 - 10**4000):
        equal = stored(CallTest("f", (value,), value)) == CallTest("f", (value,), value)
        assert equal  # Python cannot write what differs


@pytest.mark.parametrize("depth", [150, 188])
def test_deep_values_are_stored(depth: int) -> None:
    value: Any = 1j
    for _ in range(depth):
        value = [value]
    test = CallTest("f", (value,), value)
    assert stored(test) == test


def deep() -> Any:
    value: Any = []
    for _ in range(300):
        value = [value]
    return value


NO_LITERALS = [float("nan"), [complex(1, float("nan"))], frozenset([1]), {frozenset()}, range(3), bytearray(b"x"), ...]


@pytest.mark.parametrize("value", [*NO_LITERALS, (...,), Decimal(1), Counter("a"), deep(), object()])
def test_what_is_no_literal_is_refused(value: Any) -> None:
    for test in (CallTest("f", (value,), 1), CallTest("f", (), value), CallTest("f", (), 1, {"a": value})):
        with pytest.raises(InputError, match="cannot be stored"):
            dump_test(test)


@pytest.mark.parametrize("text", ["[" * 194 + "]" * 194, "(...,)", "[{'a': ...}]"])
def test_what_could_not_be_stored_again_is_not_loaded(text: str) -> None:
    good = {"kind": "call", "entry_point": "f", "args": "()", "expected": "1"}
    for bad in ({"args": f"({text},)"}, {"expected": text}, {"kwargs": f"{{'a': {text}}}"}):
        with pytest.raises(InputError, match=r"cannot be stored"):
            load_test(good | bad)


def test_sets_are_stored_alike_in_every_process() -> None:
    code = "from bdc.testcase import *; print(dump_test(CallTest('f', ({'a', 'b', 'c', 'd'},), {'x', 'y', ('z', 1)})))"
    outputs = {
        subprocess.run([sys.executable, "-c", code], env=os.environ | {"PYTHONHASHSEED": seed}, stdout=-1).stdout
        for seed in "123456"
    }
    assert len(outputs) == 1
    assert b"'z'" in outputs.pop()


@pytest.mark.parametrize(
    ("kind", "values", "words"),
    [
        (CallTest, ("a b", (), 1), "entry_point"),
        (CallTest, ("class", (), 1), "entry_point"),
        (AssertTest, ("", ""), "entry_point"),
        (CallTest, ("f", (), 1, {1: 2}), "must be names"),
        (CallTest, ("f", (), 1, {"a b": 2}), "must be names"),
        (StdinTest, ("\ud800", ""), "half a character"),
    ],
)
def test_tests_that_cannot_be_run_are_refused(kind: type, values: tuple[Any, ...], words: str) -> None:
    with pytest.raises(InputError, match=words):
        kind(*values)
