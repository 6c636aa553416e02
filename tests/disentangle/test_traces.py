from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bdc.disentangle.traces import read_traces
from bdc.errors import InputError

ROW = {
    "id": "a#1",
    "problem_id": "a",
    "kind": "program",
    "statement": "Add.",
    "messages": json.dumps([{"role": "user", "content": "Add."}]),
    "response": "def add(): ...",
    "split": "train",
}


def write(path: Path, **changed: Any) -> Path:
    pq.write_table(pa.Table.from_pylist([ROW, ROW | changed]), path)
    return path


def test_rows_are_read_in_order(tmp_path: Path) -> None:
    found = read_traces(write(tmp_path / "t.parquet", id="b#1", split="validation"))
    assert [(trace.id, trace.split, trace.response) for trace in found] == [
        ("a#1", "train", "def add(): ..."),
        ("b#1", "validation", "def add(): ..."),
    ]
    assert found[0].messages == ({"role": "user", "content": "Add."},)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"response": None}, "the response of trace 'b' is no text"),
        ({"statement": None}, "the statement of trace 'b' is no text"),
        ({"split": "test"}, "'b' has split 'test'"),
        ({"messages": "[]"}, "'b' has no messages"),
        ({"messages": "{"}, "messages of trace 'b' are no JSON list"),
        ({"messages": "[" * 100_000}, "messages of trace 'b' are no JSON list"),
        ({"messages": json.dumps([{"role": "user", "content": None}])}, "None is no text"),
    ],
)
def test_unreadable_rows_are_named(changed: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=words):
        read_traces(write(tmp_path / "t.parquet", id="b", **changed))
