"""Reading JSONL files of problems: every error names the file, the line and the field."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from bdc.errors import InputError
from bdc.problems.problem import Problem

Record = Mapping[str, Any]
Parser = Callable[[Record], Problem]

_MAX_LINE = 1 << 28  # bytes; a file without line ends, such as a device, must not fill the memory


def place(path: str, what: str) -> Path:
    """The path of a user's words, whether there is something or not.

    Raises:
        InputError: there can be nothing; says that ``what`` cannot be found.
    """
    if "\0" in path:
        raise InputError(f"{what} {path!r} cannot be found: a path holds no NUL")
    try:
        return Path(path).expanduser()
    except RuntimeError as error:  # ~ of nobody
        raise InputError(f"{what} {path} cannot be found: {error}") from error


def read_problems(path: Path, parse: Parser) -> list[Problem]:
    """Read one problem from each line of a ``.jsonl`` or ``.jsonl.gz`` file; blank lines are skipped.

    Raises:
        InputError: the file cannot be read, holds no problem or repeats an id, or ``parse`` refuses a line.
    """
    problems: list[Problem] = []
    lines: dict[str, int] = {}
    for number, record in read_records(path, "problem file"):
        try:
            problem = read_problem(record, parse)
        except InputError as error:
            raise InputError(f"{path}, line {number}: {error}") from error
        if problem.id in lines:
            raise InputError(f"{path}, line {number}: field 'id' repeats {problem.id!r} of line {lines[problem.id]}")
        lines[problem.id] = number
        problems.append(problem)
    if not problems:
        raise InputError(f"{path} holds no problems; it must have one JSON object per line")
    return problems


def read_problem(record: Record, parse: Parser) -> Problem:
    """What ``parse`` makes of a record.

    Raises:
        InputError: it refuses the record, or the problem could not be stored.
    """
    try:
        problem = parse(record)
        stored = problem.to_json()
        json.dumps(stored, ensure_ascii=False).encode()
        Problem.from_json(stored)  # a set may hold what a run could not read back
    except UnicodeEncodeError as error:
        raise InputError("a text holds half a character (a lone surrogate); write whole characters") from error
    except (RecursionError, MemoryError) as error:
        raise InputError("a value is nested too deeply") from error
    return problem


def read_records(path: Path, what: str) -> Iterator[tuple[int, Record]]:
    """The line number and object of each line of a ``.jsonl`` or ``.jsonl.gz`` file; blank lines are skipped.

    Raises:
        InputError: the file, called ``what``, cannot be read, or a line is no JSON object.
    """
    number = 0
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            while line := file.readline(_MAX_LINE):
                number += 1
                if len(line) == _MAX_LINE:
                    raise InputError(f"{path}, line {number}: it is longer than {_MAX_LINE >> 20} MiB")
                if not line.strip():
                    continue
                record = json.loads(line)
                if not isinstance(record, dict):
                    raise InputError(f"{path}, line {number}: it holds {type(record).__name__}; it must be an object")
                yield number, record
    except OSError as error:
        raise InputError(f"{what} {path} cannot be read: {error.strerror or error}") from error
    except (EOFError, zlib.error) as error:
        raise InputError(f"{what} {path} is damaged after line {number}: {error}") from error
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
