"""Loading a problem set by name."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from bdc.errors import InputError
from bdc.problems.problem import Problem
from bdc.problems.records import read_problems


def load(source: str) -> list[Problem]:
    """Return the problems of a set.

    Args:
        source: ``mini`` (the written set shipped with the package), ``jsonl:PATH`` or a bare path that ends in
            ``.jsonl`` or ``.jsonl.gz`` (lines as :meth:`Problem.to_json` writes them).

    Raises:
        InputError: unknown source, or a file, line or field that cannot be read; the message names it.
    """
    if source == "mini":
        with resources.as_file(resources.files("bdc.problems") / "data" / "mini.jsonl") as shipped:
            return read_problems(shipped, Problem.from_json)
    if source.startswith("jsonl:") or source.endswith((".jsonl", ".jsonl.gz")):
        return read_problems(Path(source.removeprefix("jsonl:")).expanduser(), Problem.from_json)
    raise InputError(f"problem source {source!r} is unknown; it must be mini, jsonl:PATH or a path ending in .jsonl")
