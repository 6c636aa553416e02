"""Programs that someone wrote for problems, read from JSONL files, Python files or folders of these."""

from __future__ import annotations

import re
import tokenize
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bdc.errors import InputError
from bdc.problems import Problem
from bdc.problems.records import Record, read_records

_PROBLEM_FIELDS = ("problem", "problem_id", "task_id", "id")
_PROGRAM_FIELDS = ("program", "solution", "completion")


@dataclass(frozen=True, slots=True)
class Submission:
    """A program for a problem; ``name`` says where it was read."""

    problem: Problem
    name: str
    program: str


def read_submissions(path: Path, problems: Sequence[Problem]) -> list[Submission]:
    """Read the programs in ``path``; a problem may have any number of them, also none.

    * ``.jsonl`` or ``.jsonl.gz``: one object per line; `problem`, `problem_id`, `task_id` or `id` names the problem;
      `program` or `solution` is a whole program, `completion` goes on where the problem's starter code ends.
    * ``.py``: a program for the problem after which the file is named, or for the only problem.
    * a folder: ``.py`` files, each or its own folder named after a problem (`HumanEval_0.py`, `HumanEval_0/3.py`);
      characters of an id that do not suit a file's name are written as ``_``.

    Raises:
        InputError: a file that cannot be read, a program that is no text, an unknown problem, nothing found.
    """
    if path.is_dir():
        names = _file_names(problems)
        found = [_of_file(file, file.relative_to(path), names) for file in sorted(path.rglob("*.py"))]
    elif path.suffix == ".py":
        single = {path.stem: problems[0]} if len(problems) == 1 else {}
        found = [_of_file(path, Path(path.name), _file_names(problems) | single)]
    else:
        by_id = {problem.id: problem for problem in problems}
        found = [
            _of_record(f"{path}, line {number}", number, row, by_id)
            for number, row in read_records(path, "program file")
        ]
    if not found:
        raise InputError(f"{path} holds no programs")
    return found


def _file_names(problems: Sequence[Problem]) -> dict[str, Problem]:
    names: dict[str, Problem] = {}
    for problem in problems:
        name = re.sub(r"[^\w.-]", "_", problem.id)
        if name in names:
            raise InputError(f"problems {names[name].id!r} and {problem.id!r} share the file name {name!r}; use .jsonl")
        names[name] = problem
    return names


def _of_file(file: Path, relative: Path, names: dict[str, Problem]) -> Submission:
    nested = "_".join(relative.with_suffix("").parts)
    for name in (nested, relative.stem, relative.parent.name):
        if name in names:
            return Submission(names[name], str(relative), _text(file))
    raise InputError(f"{file} is named after no problem; known are {_some(names)}")


def _text(file: Path) -> str:
    try:
        with tokenize.open(file) as text:  # as Python reads it: UTF-8, unless the file declares something else
            return text.read()
    except OSError as error:
        raise InputError(f"program {file} cannot be read: {error.strerror}") from error
    except (SyntaxError, UnicodeError, LookupError) as error:  # the two last: what its `coding` line names
        raise InputError(f"program {file} is not text: {error}") from error


def _of_record(place: str, number: int, row: Record, problems: dict[str, Problem]) -> Submission:
    key = _first(row, _PROBLEM_FIELDS, place)
    problem = problems.get(str(row[key]))
    if problem is None:
        raise InputError(f"{place}: field {key!r} names no problem: {row[key]!r:.100}; known are {_some(problems)}")
    field = _first(row, _PROGRAM_FIELDS, place)
    program = row[field]
    if not isinstance(program, str):
        raise InputError(f"{place}: field {field!r} is of type {type(program).__name__}; a program must be text")
    return Submission(problem, f"line {number}", problem.starter_code + program if field == "completion" else program)


def _first(row: Record, names: Sequence[str], place: str) -> str:
    for name in names:
        if name in row:
            return name
    raise InputError(f"{place}: it has none of the fields {', '.join(names)}")


def _some(names: dict[str, Problem]) -> str:
    return ", ".join(list(names)[:3]) + (", ..." if len(names) > 3 else "")
