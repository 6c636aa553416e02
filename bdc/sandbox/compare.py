"""Equality of plain values and of printed output, and where two of them first differ."""

from __future__ import annotations

import math
import re
from typing import Any

from bdc.sandbox.inside.assertions import short

_TOLERANCE = 1e-6
_TOKEN = re.compile(r"\S+", re.ASCII)  # str.split parts at control characters, too
_FLOAT = re.compile(r"[+-]?(\d+\.\d*|\.\d+|\d+(?=[eE]))([eE][+-]?\d+)?|[+-]?(inf|nan)", re.ASCII | re.IGNORECASE)
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|[+-]?(inf|nan)", re.ASCII | re.IGNORECASE)


def equal(expected: Any, actual: Any) -> bool:
    """Compare two plain values as ``==`` does, except that NaN equals NaN in the same place.

    Where the comparison itself fails (too deep, a signalling NaN) they differ.
    """
    try:
        return bool(expected == actual) or (_has_nan(expected) and _equal_with_nan(expected, actual))
    except (RecursionError, ArithmeticError):
        return False


def _has_nan(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return any(map(_has_nan, value))
    if isinstance(value, dict):
        return any(map(_has_nan, value.values()))
    return isinstance(value, (float, complex)) and value != value


def _equal_with_nan(a: Any, b: Any) -> bool:
    if isinstance(a, (list, tuple)) and type(a) is type(b):
        return len(a) == len(b) and all(map(_equal_with_nan, a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_equal_with_nan(a[key], b[key]) for key in a)
    return bool(a == b) or (a != a and b != b and type(a) is type(b))


def difference(expected: Any, actual: Any, path: str = "") -> str:
    """Say where two unequal values first differ."""
    if isinstance(expected, (list, tuple)) and type(expected) is type(actual):
        for index, (a, b) in enumerate(zip(expected, actual, strict=False)):
            if not equal(a, b):
                return difference(a, b, f"{path}[{index}]")
        return f"{_at(path)}has {len(actual)} elements instead of {len(expected)}"
    if isinstance(expected, dict) and isinstance(actual, dict):
        for key in expected:
            if key not in actual:
                return f"{_at(path)}lacks the key {short(key):.200}"
            if not equal(expected[key], actual[key]):
                return difference(expected[key], actual[key], f"{path}[{short(key):.80}]")
        return f"{_at(path)}has a key too many"
    if type(expected) is not type(actual) and expected is not None and actual is not None:
        return f"{_at(path)}is of type {type(actual).__name__} instead of {type(expected).__name__}"
    return f"{_at(path)}differs"


def _at(path: str) -> str:
    return f"the result{' at ' + path if path else ''} "


def output_difference(expected: str, actual: str) -> str | None:
    """Compare printed output token by token; None where it agrees.

    Where the expected token is written as a float, a relative or absolute error of 1e-6 is allowed.
    """
    wanted, got = _TOKEN.findall(expected), _TOKEN.findall(actual)
    for index, (a, b) in enumerate(zip(wanted, got, strict=False)):
        if a != b and not _close(a, b):
            return f"token {index + 1} is {b[:200]!r} instead of {a[:200]!r}"
    if len(wanted) != len(got):
        return f"the output has {len(got)} tokens instead of {len(wanted)}"
    return None


def _close(expected: str, actual: str) -> bool:
    if len(actual) > 400 or not (_FLOAT.fullmatch(expected) and _NUMBER.fullmatch(actual)):
        return False
    a, b = float(expected), float(actual)
    if not (math.isfinite(a) and math.isfinite(b)):
        return a == b or (a != a and b != b)
    return abs(a - b) <= _TOLERANCE * max(1.0, abs(a))
