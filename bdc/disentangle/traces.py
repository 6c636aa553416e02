"""Training pairs as the search stage distilled them (columns: docs/run-directory.md)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bdc.errors import InputError

_COLUMNS = ("id", "problem_id", "kind", "statement", "messages", "response", "split")


@dataclass(frozen=True, slots=True)
class Trace:
    """One supervised pair: chat messages up to the user's turn, and the response to learn."""

    id: str
    problem_id: str
    kind: str
    statement: str
    messages: tuple[dict[str, str], ...]
    response: str
    split: str


def read_traces(path: Path) -> list[Trace]:
    """All rows of a traces.parquet, in the file's order.

    Raises:
        InputError: no such file, a missing column, an unreadable row, or no row with split "train".
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not path.is_file():
        raise InputError(f"{path} does not exist; run `bdc boost {path.parent}` first")
    try:
        table = pq.read_table(path, columns=list(_COLUMNS))
    except (OSError, ValueError, pa.ArrowException) as error:
        raise InputError(f"{path} cannot be read as traces: {error}") from error
    missing = set(_COLUMNS) - set(table.column_names)
    if missing:
        raise InputError(f"{path} has no column {min(missing)!r}; run `bdc boost` again")
    traces = [_trace(row, path) for row in table.to_pylist()]
    if not any(trace.split == "train" for trace in traces):
        raise InputError(
            f"{path} has no training trace: the search solved no training problem on its private tests; "
            "raise boost.rollouts, add a stronger agent, or choose easier problems"
        )
    return traces


def _trace(row: dict[str, Any], path: Path) -> Trace:
    try:
        messages = tuple({part: _text(m[part]) for part in ("role", "content")} for m in json.loads(row["messages"]))
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise InputError(
            f"{path}: the messages of trace {row['id']!r} are no JSON list of chat messages: {error!r}"
        ) from error
    if not messages:
        raise InputError(f"{path}: trace {row['id']!r} has no messages")
    if row["split"] not in ("train", "validation"):
        raise InputError(f"{path}: trace {row['id']!r} has split {row['split']!r}; it must be train or validation")
    rest = {name: row[name] for name in _COLUMNS if name != "messages"}
    if wrong := [name for name, value in rest.items() if not isinstance(value, str)]:
        raise InputError(f"{path}: the {wrong[0]} of trace {row['id']!r} is no text")
    return Trace(messages=messages, **rest)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.100} is no text")
    return value


def by_split(traces: Sequence[Trace], split: str) -> list[Trace]:
    """The traces of one split, in order."""
    return [trace for trace in traces if trace.split == split]
