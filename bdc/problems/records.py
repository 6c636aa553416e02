"""Reading JSONL files of problems: every error names the file, the line and the field."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from bdc.errors import InputError
from bdc.problems.problem import Problem

Record = Mapping[str, Any]


def read_problems(path: Path, parse: Callable[[Record], Problem]) -> list[Problem]:
    """Read one problem from each line of a ``.jsonl`` or ``.jsonl.gz`` file; blank lines are skipped.

    Raises:
        InputError: the file cannot be read, holds no problem or repeats an id, or ``parse`` refuses a line.
    """
    problems: list[Problem] = []
    lines: dict[str, int] = {}
    for number, record in read_records(path, "problem file"):
        try:
            problem = parse(record)
        except InputError as error:
            raise InputError(f"{path}, line {number}: {error}") from error
        if problem.id in lines:
            raise InputError(f"{path}, line {number}: field 'id' repeats {problem.id!r} of line {lines[problem.id]}")
        lines[problem.id] = number
        problems.append(problem)
    if not problems:
        raise InputError(f"{path} holds no problems; it must have one JSON object per line")
    return problems


def read_records(path: Path, what: str) -> Iterator[tuple[int, Record]]:
    """The line number and object of each line of a ``.jsonl`` or ``.jsonl.gz`` file; blank lines are skipped.

    Raises:
        InputError: the file, called ``what``, cannot be read, or a line is no JSON object.
    """
    number = 0
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                record = json.loads(line)
                if not isinstance(record, dict):
                    raise InputError(f"{path}, line {number}: it holds {type(record).__name__}; it must be an object")
                yield number, record
    except (OSError, EOFError) as error:
        raise InputError(f"{what} {path} cannot be read after line {number}: {error}") from error
    except (ValueError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}, line {number}: it is not valid JSON in UTF-8 ({error})") from error


def text(record: Record, name: str, default: str | None = None) -> str:
    """Return the string field ``name``; without a default it must be present and not blank."""
    value = record.get(name)
    if value is None and default is not None:
        return default
    if value is None:
        raise InputError(f"field {name!r} is missing")
    if not isinstance(value, str):
        raise InputError(f"field {name!r} is of type {type(value).__name__}; it must be a string")
    if default is None and not value.strip():
        raise InputError(f"field {name!r} is empty")
    return value


def items(record: Record, name: str, kind: type, *, required: bool = True) -> list[Any]:
    """Return the list field ``name``, all of whose items are of ``kind``; a required one must not be empty."""
    value = record.get(name)
    if value is None and not required:
        return []
    if value is None:
        raise InputError(f"field {name!r} is missing")
    if not isinstance(value, list):
        raise InputError(f"field {name!r} is of type {type(value).__name__}; it must be a list")
    if required and not value:
        raise InputError(f"field {name!r} is empty")
    for position, item in enumerate(value):
        if not isinstance(item, kind):
            raise InputError(
                f"field '{name}[{position}]' is of type {type(item).__name__}; it must be of type {kind.__name__}"
            )
    return value


def identity(record: Record, name: str) -> str:
    """Return the string or whole number in field ``name`` as a string."""
    value = record.get(name)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return text(record, name)
