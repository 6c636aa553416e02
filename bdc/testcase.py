"""What a test of a program is: the three kinds that problems carry and the sandbox judges.

This module knows nothing of the rest of bdc, so that `bdc.problems` and `bdc.sandbox` share one vocabulary
without knowing each other.
"""

from __future__ import annotations

import ast
import math
from dataclasses import dataclass, field
from keyword import iskeyword
from typing import Any

from bdc.errors import InputError


@dataclass(frozen=True, slots=True)
class CallTest:
    """Call ``entry_point(*args, **kwargs)`` and compare the result with ``expected``.

    Values are plain data. Of these :func:`dump_test` writes Python literals alone (what :func:`ast.literal_eval` can read
    back), so a test with another one, such as NaN or a Fraction, can be judged and not stored.
    """

    entry_point: str
    args: tuple[Any, ...]
    expected: Any
    kwargs: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check(self, entry_point=str, args=(tuple, list), kwargs=dict)
        _check_name(self.entry_point)
        if not all(isinstance(key, str) and key.isidentifier() for key in self.kwargs):
            raise InputError(f"field 'kwargs' of a CallTest is {self.kwargs!r:.100}; its keys must be names")
        object.__setattr__(self, "args", tuple(self.args))


@dataclass(frozen=True, slots=True)
class StdinTest:
    """Run the program with ``stdin`` and compare what it prints with ``expected`` (token by token).

    ``stdin`` is given as UTF-8; bytes that are none stand in it as `surrogateescape` has them.
    """

    stdin: str
    expected: str

    def __post_init__(self) -> None:
        _check(self, stdin=str, expected=str)
        try:
            self.stdin.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError as error:
            half = self.stdin[error.start]
            raise InputError(
                f"field 'stdin' of a StdinTest holds {half!r}, half a character; no input has it"
            ) from error


@dataclass(frozen=True, slots=True)
class AssertTest:
    """Run ``code`` (assert statements) with ``entry_point`` and ``candidate`` bound to the program's function."""

    code: str
    entry_point: str

    def __post_init__(self) -> None:
        _check(self, code=str, entry_point=str)
        _check_name(self.entry_point)


def _check(test: object, **kinds: type | tuple[type, ...]) -> None:
    for name, kind in kinds.items():
        value = getattr(test, name)
        if not isinstance(value, kind):
            wanted = " or ".join(k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,)))
            raise InputError(
                f"field {name!r} of a {type(test).__name__} is of type {type(value).__name__}; it must be {wanted}"
            )


def _check_name(name: str) -> None:
    if not name.isidentifier() or iskeyword(name):
        raise InputError(f"field 'entry_point' is {name!r:.100}; it must be a function's name")


Test = CallTest | StdinTest | AssertTest


def dump_test(test: Test) -> dict[str, Any]:
    """Return a JSON-ready dictionary, the same in every process; :func:`load_test` is the inverse.

    Raises:
        InputError: a value is no Python literal.
    """
    if isinstance(test, CallTest):
        out = {
            "kind": "call",
            "entry_point": test.entry_point,
            "args": _source(test.args),
            "expected": _source(test.expected),
        }
        return out | ({"kwargs": _source(test.kwargs)} if test.kwargs else {})
    if isinstance(test, StdinTest):
        return {"kind": "stdin", "stdin": test.stdin, "expected": test.expected}
    return {"kind": "assert", "code": test.code, "entry_point": test.entry_point}


def _source(value: Any, depth: int = 0) -> str:
    """The text that :func:`_literal` reads back as ``value``; InputError where there is none."""
    kind = type(value)
    if value is None or kind in (bool, str, bytes):
        return repr(value)
    if kind is int:
        return repr(value) if abs(value) < _LONG_INT else hex(value)
    if kind is float and not math.isnan(value):
        return _float_source(value)
    if kind is complex and not (math.isnan(value.real) or math.isnan(value.imag)):
        sign = "-" if math.copysign(1.0, value.imag) < 0 else "+"
        return f"({_float_source(value.real)}{sign}{_float_source(abs(value.imag))}j)"
    if kind in (tuple, list, set, dict):
        if depth == _MAX_DEPTH:
            raise InputError(f"a test holds a value nested deeper than {_MAX_DEPTH}, which cannot be stored")
        return _collection_source(value, depth + 1)
    raise InputError(f"a test holds {_named(value)}, which is no Python literal and cannot be stored")


def _collection_source(value: Any, depth: int) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_source(key, depth)}: {_source(item, depth)}" for key, item in value.items()) + "}"
    texts = [_source(item, depth) for item in value]
    if isinstance(value, set):  # whose own order is another in each process
        return "{" + ", ".join(sorted(texts)) + "}" if texts else "set()"
    if isinstance(value, list):
        return "[" + ", ".join(texts) + "]"
    return "(" + ", ".join(texts) + (",)" if len(texts) == 1 else ")")


def _float_source(value: float) -> str:
    return repr(value).replace("inf", "1e999")


def _named(value: Any) -> str:
    return "NaN" if isinstance(value, (float, complex)) else f"a value of type {type(value).__name__}"


_LONG_INT = 10**4000  # Python reads and writes more than 4300 digits in base 16 alone
_MAX_DEPTH = 190  # Python reads 200
_FIELDS = {
    "call": ("entry_point", "args", "expected", "kwargs"),
    "stdin": ("stdin", "expected"),
    "assert": ("code", "entry_point"),
}


def load_test(data: dict[str, Any]) -> Test:
    """Read what :func:`dump_test` wrote.

    Raises:
        InputError: unknown kind, a missing or unknown field, or a value that is no Python literal of the right type.
    """
    kind = data.get("kind")
    if not isinstance(kind, str) or kind not in _FIELDS:
        raise InputError(f"test kind {kind!r:.100} is unknown; it must be call, stdin or assert")
    if unknown := set(data) - {"kind", *_FIELDS[kind]}:
        raise InputError(f"field {min(unknown)!r:.100} is unknown; a {kind} test has {', '.join(_FIELDS[kind])}")
    if kind == "stdin":
        return StdinTest(_text(data, "stdin"), _text(data, "expected"))
    name = _text(data, "entry_point")
    _check_name(name)
    if kind == "assert":
        return AssertTest(_text(data, "code"), name)
    args, kwargs = _literal(data, "args"), _literal(data, "kwargs") if "kwargs" in data else {}
    if not isinstance(args, tuple | list):
        raise InputError(
            f"field 'args' is {data['args']!r:.100}; it must be a tuple as text, such as \"(1, 'a')\" or \"(1,)\""
        )
    if not isinstance(kwargs, dict) or not all(isinstance(key, str) and key.isidentifier() for key in kwargs):
        raise InputError(f"field 'kwargs' is {data['kwargs']!r:.100}; it must be a dictionary of names as text")
    return CallTest(name, tuple(args), _literal(data, "expected"), kwargs)


def _text(data: dict[str, Any], name: str) -> str:
    if name not in data:
        raise InputError(f"field {name!r} is missing")
    value = data[name]
    if not isinstance(value, str):
        raise InputError(f"field {name!r} is of type {type(value).__name__}; it must be a string")
    return value


def _literal(data: dict[str, Any], name: str) -> Any:
    """The value of a Python literal that is written as text, as in ``"expected": "2"`` or ``"expected": "'two'"``."""
    given = data.get(name, "")
    if not isinstance(given, str):
        right = tuple(given) if name == "args" and isinstance(given, list) else given
        raise InputError(
            f'field {name!r} is of type {type(given).__name__}; it must be a Python literal as text: "{right!r:.80}"'
        )
    source = _text(data, name)
    try:
        value = ast.literal_eval(source)
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError) as error:
        raise InputError(f"field {name!r} is no Python literal: {source!r:.100}") from error
    if value is ...:
        raise InputError(f"field {name!r} is an ellipsis, which no function gets or returns as data")
    _source(value)  # what cannot be stored again is refused now
    return value
