"""`bdc bench search` at its smallest."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bdc.errors import InputError
from bdc.search import UCT, Forest, bench, bench_calls, bench_scaling


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


@pytest.mark.skipif(shutil.which("c++") is None, reason="needs a C++ compiler (apt install g++)")
def test_bare_arrays_search_the_same_trees(tmp_path: Path) -> None:
    plain, source = tmp_path / "plain_bench", Path(__file__).parents[2] / "benchmarks" / "peers" / "plain.cpp"
    subprocess.run(["c++", "-std=c++20", "-O1", str(source), "-o", str(plain)], check=True)
    record = tmp_path / "search.json"
    command = ["--cells", "64x300", "--branching", "3", "--repeats", "1", "--plain", str(plain), "--json", str(record)]
    assert bench.main(command) == 0
    rows = {row["system"]: row for row in json.loads(record.read_text())["rows"]}
    depth, in_waves = (rows[name]["mean_depth"] for name in ("plain C++", "plain C++ in waves"))
    assert depth == in_waves  # trees do not touch each other
    forest = Forest(UCT(), "mean", threads=1)
    wave = forest.select(forest.plant(64))
    depths = []
    for _ in range(100):
        depths.append(wave.depth.mean())
        wave = forest.step(wave, 3, np.full(64, 0.5))
    assert depth == pytest.approx(np.mean(depths), abs=0.06)  # it prints one digit


def test_plain_python_is_timed_after_a_search_that_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, searches = [0.0], []

    def search(*cell: int) -> None:
        searches.append(cell)
        clock[0] += 9.0 if len(searches) == 1 else 0.04

    monkeypatch.setattr(bench, "plain_search", search)
    monkeypatch.setattr(bench.time, "process_time", lambda: clock[0])
    assert bench.plain_python(2, 30, 3)["per_cpu_second"] == pytest.approx(20 / 0.04)
    assert searches == [(2, 30, 3)] * 4  # three make 0.1 s


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo first >&2; echo no tree >&2; exit 3", "failed with exit code 3: no tree"),
        ("exit 1", "failed with exit code 1: it said nothing"),
        ("echo hello", "is no JSON with a rate"),
        ("echo '[1]'", "is no JSON with a rate"),
        ("echo '{}'", "is no JSON with a rate"),
        ("", "is no JSON with a rate"),
    ],
)
def test_a_program_that_fails_is_refused_in_a_sentence(tmp_path: Path, script: str, said: str) -> None:
    plain = tmp_path / "plain_bench"
    plain.write_text(f"#!/bin/sh\n{script}\n")
    plain.chmod(0o755)
    with pytest.raises(InputError, match=said):
        bench.main(["--cells", "2x40", "--branching", "4", "--repeats", "1", "--plain", str(plain)])


def test_what_cannot_become_a_record_is_refused_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("mine")
    with pytest.raises(InputError, match="no record of this benchmark"):
        bench.main(["--json", str(tmp_path / "notes")])
    with pytest.raises(InputError, match="notes cannot be made"):
        bench.main(["--json", str(tmp_path / "notes" / "search.json")])
    assert (tmp_path / "notes").read_text() == "mine"


def test_calls_are_measured() -> None:
    figures = bench_calls.measure(thompson_nodes=(30, 60), snapshot_nodes=2000)
    assert min(figures["us_per_leaf"].values()) > 0
    assert [row["nodes"] for row in figures["thompson"]] == [30, 60, 30, 60]
    assert all(0 < row["root_children"] < row["nodes"] for row in figures["thompson"])
    assert figures["snapshot_ms"]["megabytes"] > 0.05


def test_threads_are_compared_with_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = tmp_path / "new" / "scaling.json"
    command = ["--scaling", "--cells", "4x40", "--branching", "4", "--repeats", "2", "--json", str(record)]
    assert bench.main(command) == 0
    figures = json.loads(record.read_text())
    assert figures["threads"] == 2
    assert [row["what"] for row in figures["rows"]] == ["2 threads copy memory", "in waves, 2 threads"]
    copying, waves = figures["rows"]
    for found in (copying, waves, waves["by_steps"]):
        assert 0 < found["low"] <= found["ratio"] <= found["high"]
    assert len(waves["pairs"]) == 2
    assert "by_steps" not in copying  # it has none
    assert "2 over one" in capsys.readouterr().out


def test_a_comparison_is_the_median_of_its_turns() -> None:
    ones = iter([{"per_second": 2.0, "median_per_second": 4.0}] * 3)
    twos = iter(
        {"per_second": mean, "median_per_second": 8.0, "lost": lost, "line_ns": 70}
        for mean, lost in ((2.0, 0.0), (4.0, 0.3), (3.0, 0.1))
    )
    row = bench_scaling.compare(ones.__next__, twos.__next__, 3)
    assert (row["low"], row["ratio"], row["high"]) == (1.25, 1.5, 1.75)
    assert row["by_steps"] == {"ratio": 2.0, "low": 2.0, "high": 2.0}
    assert row["pairs"][0] == {"per_second": 1.0, "median_per_second": 2.0, "lost": 0.0, "line_ns": 70}
    assert row["lost"] == 0.1
    assert "70" in bench_scaling.line("2 threads", {"trees": 4}, row)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--cells", "64"], "'64' is not TREESxNODES"),
        (["--cells", "0x100"], "'0x100' is not TREESxNODES"),
        (["--cells", "4x40", "--branching", "3", "50"], "--branching has 50"),
        (["--branching", "0"], "--branching has 0"),
        (["--repeats", "0"], "--repeats is 0"),
        (["--threads", "-1"], "--threads is -1"),
    ],
)
def test_bad_options_are_refused_in_a_sentence(words: list[str], said: str) -> None:
    root = Path(__file__).parents[2]
    for command in (["bdc.cli", "bench", "search"], ["benchmarks.search"]):
        done = subprocess.run([sys.executable, "-m", *command, *words], capture_output=True, text=True, cwd=root)
        assert done.returncode == 2
        assert said in done.stderr
        assert "Traceback" not in done.stderr
