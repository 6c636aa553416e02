"""What a test of a program is: the three kinds that problems carry and the sandbox judges.

This module knows nothing of the rest of bdc, so that `bdc.problems` and `bdc.sandbox` share one vocabulary
without knowing each other.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass, field
from typing import Any

from bdc.errors import InputError


@dataclass(frozen=True, slots=True)
class CallTest:
    """Call ``entry_point(*args, **kwargs)`` and compare the result with ``expected``.

    All values are Python literals (what :func:`ast.literal_eval` can read back).
    """

    entry_point: str
    args: tuple[Any, ...]
    expected: Any
    kwargs: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check(self, entry_point=str, args=(tuple, list), kwargs=dict)


@dataclass(frozen=True, slots=True)
class StdinTest:
    """Run the program with ``stdin`` and compare what it prints with ``expected`` (token by token)."""

    stdin: str
    expected: str

    def __post_init__(self) -> None:
        _check(self, stdin=str, expected=str)


@dataclass(frozen=True, slots=True)
class AssertTest:
    """Run ``code`` (assert statements) with ``entry_point`` and ``candidate`` bound to the program's function."""

    code: str
    entry_point: str

    def __post_init__(self) -> None:
        _check(self, code=str, entry_point=str)


def _check(test: object, **kinds: type | tuple[type, ...]) -> None:
    for name, kind in kinds.items():
        value = getattr(test, name)
        if not isinstance(value, kind):
            wanted = " or ".join(k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,)))
            raise InputError(
                f"field {name!r} of a {type(test).__name__} is of type {type(value).__name__}; it must be {wanted}"
            )


Test = CallTest | StdinTest | AssertTest


def dump_test(test: Test) -> dict[str, Any]:
    """Return a JSON-ready dictionary; :func:`load_test` is the inverse."""
    if isinstance(test, CallTest):
        out = {
            "kind": "call",
            "entry_point": test.entry_point,
            "args": repr(test.args),
            "expected": repr(test.expected),
        }
        return out | ({"kwargs": repr(test.kwargs)} if test.kwargs else {})
    if isinstance(test, StdinTest):
        return {"kind": "stdin", "stdin": test.stdin, "expected": test.expected}
    return {"kind": "assert", "code": test.code, "entry_point": test.entry_point}


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
    if not name.isidentifier():
        raise InputError(f"field 'entry_point' is {name!r:.100}; it must be a function's name")
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
    return value
