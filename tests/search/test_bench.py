"""`bdc bench search` at its smallest."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bdc.search import bench, bench_calls


def test_grid_is_written_and_cells_of_one_commit_are_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = tmp_path / "search.json"
    for cell in ("4x40", "8x40"):
        assert bench.main(["--cells", cell, "--branching", "4", "--repeats", "1", "--json", str(record)]) == 0
    rows = json.loads(record.read_text())["rows"]
    assert [(row["trees"], row["system"]) for row in rows] == [
        (trees, system) for trees in (4, 8) for system in ("bdc in waves", "plain Python")
    ]
    assert all(row["min"] <= row["median"] <= row["max"] and row["median"] > 0 for row in rows)
    assert "bdc in waves" in capsys.readouterr().out


def test_calls_are_measured() -> None:
    figures = bench_calls.measure(thompson_nodes=(30, 60), snapshot_nodes=2000)
    assert min(figures["us_per_leaf"].values()) > 0
    assert [row["nodes"] for row in figures["thompson"]] == [30, 60, 30, 60]
    assert all(0 < row["root_children"] < row["nodes"] for row in figures["thompson"])
    assert figures["snapshot_ms"]["megabytes"] > 0.05
