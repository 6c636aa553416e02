"""The one record that every stage reads: a programming problem with public and private tests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bdc.errors import InputError
from bdc.testcase import StdinTest, Test, dump_test, load_test

_TEXT_FIELDS = ("source", "starter_code", "family", "difficulty")


@dataclass(frozen=True, slots=True)
class Problem:
    """A programming problem.

    Attributes:
        id: unique name, by convention ``source/...``.
        source: the problem set it comes from.
        statement: what a model reads.
        entry_point: the function to write; None asks for a program that reads stdin and writes stdout.
        public_tests: what the search may look at.
        private_tests: what decides whether a solution counts.
        starter_code: the lines a solution starts with (a signature), or empty.
        solution: a reference program, or None.
        family: topic, by which :func:`bdc.problems.split` stratifies, or empty.
        difficulty: the set's own word for it, or empty.
    """

    id: str
    source: str
    statement: str
    entry_point: str | None
    public_tests: tuple[Test, ...]
    private_tests: tuple[Test, ...]
    starter_code: str = ""
    solution: str | None = None
    family: str = ""
    difficulty: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary: one line of a plain JSONL problem file."""
        return {
            "id": self.id,
            "source": self.source,
            "statement": self.statement,
            "entry_point": self.entry_point,
            "public_tests": [dump_test(test) for test in self.public_tests],
            "private_tests": [dump_test(test) for test in self.private_tests],
            "starter_code": self.starter_code,
            "solution": self.solution,
            "family": self.family,
            "difficulty": self.difficulty,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Problem:
        """Read what :meth:`to_json` wrote. ``id``, ``statement`` and ``private_tests`` are required.

        Raises:
            InputError: a field is missing, unknown or of the wrong type; the message names it.
        """
        unknown = set(data) - set(cls.__slots__)
        if unknown:
            raise InputError(f"field {min(unknown)!r:.100} is unknown; known are {', '.join(cls.__slots__)}")
        texts = {name: _typed(data, name, str, "") for name in _TEXT_FIELDS}
        problem = cls(
            id=_typed(data, "id", str),
            statement=_typed(data, "statement", str),
            entry_point=_typed(data, "entry_point", str | None, None),
            solution=_typed(data, "solution", str | None, None),
            public_tests=_tests(data, "public_tests", []),
            private_tests=_tests(data, "private_tests"),
            **texts,
        )
        problem._check_tests()
        return problem

    def _check_tests(self) -> None:
        """A model is asked for what `entry_point` says, so tests of anything else could never pass."""
        for place in ("public_tests", "private_tests"):
            for position, test in enumerate(getattr(self, place)):
                wanted = None if isinstance(test, StdinTest) else test.entry_point
                if wanted != self.entry_point:
                    does = "reads stdin" if wanted is None else f"calls {wanted!r}"
                    asked = "missing" if self.entry_point is None else repr(self.entry_point)
                    raise InputError(
                        f"field '{place}[{position}]' {does}, but the problem's entry_point is {asked}; they must agree"
                    )


_REQUIRED: Any = object()


def _typed(data: Mapping[str, Any], name: str, kind: Any, default: Any = _REQUIRED) -> Any:
    value = data.get(name, default)
    if value is _REQUIRED:
        raise InputError(f"field {name!r} is missing")
    if not isinstance(value, kind):
        raise InputError(
            f"field {name!r} is of type {type(value).__name__}; it must be {getattr(kind, '__name__', kind)}"
        )
    if name in ("id", "statement") and not value.strip():
        raise InputError(f"field {name!r} is empty")
    return value


def _tests(data: Mapping[str, Any], name: str, default: Any = _REQUIRED) -> tuple[Test, ...]:
    tests = []
    for position, item in enumerate(_typed(data, name, list, default)):
        try:
            if not isinstance(item, dict):
                raise InputError(f"it is of type {type(item).__name__}; it must be an object")
            tests.append(load_test(item))
        except InputError as error:
            raise InputError(f"field '{name}[{position}]': {error}") from error
    return tuple(tests)
