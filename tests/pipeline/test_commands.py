"""The command line over a whole run: what it prints, what it leaves, what a second call does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from chat_server import ChatServer

from bdc.cli import main
from bdc.runs import STAGES, Run


@pytest.fixture
def finished(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """A finished run directory."""
    directory = tmp_path / "run"
    assert main(["run", str(config), "--dir", str(directory), "--quiet"]) == 0
    out = capsys.readouterr()
    assert out.err == ""
    assert str(directory / "report.html") in out.out
    return directory


def test_a_finished_run_is_whole_and_a_second_call_pays_nothing(
    finished: Path, config: Path, server: ChatServer, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = len(server.bodies)
    assert main(["run", str(config), "--dir", str(finished), "--json"]) == 0
    out = capsys.readouterr()
    results = json.loads(out.out)
    assert list(results["systems"]) == ["zero-shot", "single-lora", "nearest", "uniform", "bdc"]
    assert Path(results["report"]) == finished / "report.html"
    assert [line.split(":")[0] for line in out.err.splitlines()] == list(STAGES)
    assert all("done already" in line for line in out.err.splitlines())
    assert len(server.bodies) == asked
    with Run(finished) as run:
        assert all(run.stage(stage) for stage in STAGES)
        traced = [row["problem_id"] for row in run.rows("SELECT problem_id FROM trees WHERE private_pass_rate = 1")]
        assert len(traced) >= 8
    for name in ("config.toml", "traces.parquet", "preferences.parquet", "evaluation.json", "report.html"):
        assert (finished / name).is_file()
    assert not list(finished.glob(".*.tmp")) and not list(finished.glob(".*.pt"))


def test_each_stage_is_a_command_that_knows_its_inputs(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for stage in STAGES:
        assert main([stage, str(finished), "--json", "--quiet"]) == 0
        assert isinstance(json.loads(capsys.readouterr().out), dict)
    text = (finished / "config.toml").read_text(encoding="utf-8")
    (finished / "config.toml").write_text(text.replace("rank = 2", "rank = 3"), encoding="utf-8")
    assert main(["evaluate", str(finished)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and f"run `bdc customize {finished}` again" in error
    assert main(["disentangle", str(finished), "--quiet"]) == 0


def test_a_run_of_another_format_is_left_alone(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Run(finished) as run, run.transaction() as db:
        db.execute("UPDATE meta SET value = '99' WHERE key = 'format'")
    before = (finished / "run.sqlite").read_bytes()
    assert main(["boost", str(finished)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "run format 99" in error
    assert (finished / "run.sqlite").read_bytes() == before


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('base_model = "', 'base_model = "/nowhere', "/nowhere"),
        ('encoder = "', 'encoder = "/nowhere', "/nowhere"),
        ("problems.jsonl", "missing.jsonl", "missing.jsonl"),
        ("rollouts = 3", "rollouts = -3", "boost.rollouts is -3"),
        ("width = 2", "width = 'two'", "boost.width"),
        ("concurrency = 4", "concurrency = 0", "agent left: concurrency is 0"),
        ("train = 8", "train = 0", "problems.train"),
        ("train = 8", "train = 800", "only 13 different"),
        ('sources = ["jsonl:', 'sources = ["cooking:', "cooking"),
        ('backend = "openai"', 'backend = "local"', "agent left: base_url is given"),
        ("workers = 1", "wall_seconds = -1", "wall"),
        ('[[agents]]\nname = "right"', '[[agents]]\nname = "left"', "agent names must differ"),
        ("\nk = 2", "\nk = 0", "disentangle.k"),
        ("[evaluate]", "[evaluate]\nsystems = ['best']", "best"),
    ],
)
def test_bad_input_is_one_line_before_any_call_is_paid(
    config: Path, tmp_path: Path, server: ChatServer, capsys: pytest.CaptureFixture[str], old: str, new: str, words: str
) -> None:
    text = config.read_text(encoding="utf-8")
    assert old in text
    config.write_text(text.replace(old, new), encoding="utf-8")
    assert main(["run", str(config), "--dir", str(tmp_path / "run"), "--quiet"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("bdc: ") and error.count("\n") == 1 and words in error
    assert not server.bodies


@pytest.mark.parametrize("line", ["not json", '{"id": "p/1"}', '{"id": "p/1", "statement": "s", "private_tests": 3}'])
def test_a_malformed_problem_file_is_named_with_its_line(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], line: str
) -> None:
    problems = tmp_path / "problems.jsonl"
    problems.write_text(problems.read_text(encoding="utf-8") + line + "\n", encoding="utf-8")
    assert main(["run", str(config), "--dir", str(tmp_path / "run"), "--quiet"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "problems.jsonl" in error and "14" in error


def test_a_dead_server_is_a_failure_of_the_work(
    config: Path, tmp_path: Path, server: ChatServer, capsys: pytest.CaptureFixture[str]
) -> None:
    server.faults = [401] * 1000
    assert main(["run", str(config), "--dir", str(tmp_path / "run"), "--quiet"]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "401" in error
    server.faults = []
    assert main(["run", str(config), "--dir", str(tmp_path / "run"), "--quiet"]) == 0
