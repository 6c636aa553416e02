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


def load_test(data: dict[str, Any]) -> Test:
    """Read what :func:`dump_test` wrote.

    Raises:
        InputError: unknown kind, missing field, or a value that is no Python literal.
    """
    try:
        kind = data["kind"]
        if kind == "call":
            kwargs = ast.literal_eval(data.get("kwargs", "{}"))
            args, expected = ast.literal_eval(data["args"]), ast.literal_eval(data["expected"])
            args = tuple(args) if isinstance(args, list) else args
            return CallTest(data["entry_point"], args, expected, kwargs)
        if kind == "stdin":
            return StdinTest(data["stdin"], data["expected"])
        if kind == "assert":
            return AssertTest(data["code"], data["entry_point"])
    except (KeyError, ValueError, SyntaxError, TypeError) as error:
        raise InputError(f"test {data!r:.200} cannot be read: {error!r}") from error
    raise InputError(f"test kind {kind!r} is unknown; it must be call, stdin or assert")
