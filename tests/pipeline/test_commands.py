"""The command line over a whole run: what it prints, what it leaves, what a second call does."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from chat_server import ChatServer

from bdc.cli import main
from bdc.pipeline import Pipeline
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
    compared = ["zero-shot", "single-lora", "nearest", "uniform", "bdc", "expert-0", "expert-1", "search"]
    assert list(results["systems"]) == compared
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


def test_the_search_is_compared_by_what_it_solves_and_costs(finished: Path) -> None:
    evaluation = json.loads((finished / "evaluation.json").read_text(encoding="utf-8"))
    systems = {system["name"]: system for system in evaluation["systems"]}
    search, base = systems["search"], systems["zero-shot"]
    assert search["loss"] is None and base["loss"]["n"] == len(evaluation["problems"]) == 3
    assert search["ac"]["mean"] == 1.0 > base["ac"]["mean"]  # the agents know the answers, the tiny model does not
    with Run(finished) as run:
        roles = "('propose', 'program', 'reflect')"
        asked = list(run.rows(f"SELECT * FROM calls WHERE stage = 'evaluate' AND role IN {roles}"))
        split = {row["id"]: row["split"] for row in run.rows("SELECT id, split FROM problems")}
    assert {split[row["problem_id"]] for row in asked} == {"test"}
    for kind in ("prompt_tokens", "completion_tokens"):
        assert search[kind] == sum(row[kind] for row in asked)
    assert {row["metric"] for row in evaluation["differences"] if row["system"] == "search"} == {"pass_rate", "ac"}
    assert "Search" in (finished / "report.html").read_text(encoding="utf-8")


def test_a_search_that_was_cut_short_says_so(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = (finished / "config.toml").read_text(encoding="utf-8")
    with Run(finished) as run, run.transaction() as db:
        db.execute("UPDATE problems SET json = json_set(json, '$.public_tests', json('[]')) WHERE id = 'p/11'")
        db.execute("UPDATE problems SET split = 'test' WHERE id = 'p/11'")
    (finished / "config.toml").write_text(config + "max_problems = 0\nseed = 7\n", encoding="utf-8")
    assert main(["evaluate", str(finished), "--quiet"]) == 0
    evaluation = json.loads((finished / "evaluation.json").read_text(encoding="utf-8"))
    search = next(system for system in evaluation["systems"] if system["name"] == "search")
    assert search["cut_short"] == 1
    assert {row["id"]: row.get("cut_short") for row in search["per_problem"]}["p/11"] == "no public tests"


def test_each_stage_is_a_command_that_knows_its_inputs(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for stage in STAGES:
        assert main([stage, str(finished), "--json", "--quiet"]) == 0
        assert isinstance(json.loads(capsys.readouterr().out), dict)
    text = (finished / "config.toml").read_text(encoding="utf-8")
    (finished / "config.toml").write_text(text.replace("rank = 2", "rank = 3"), encoding="utf-8")
    assert main(["evaluate", str(finished)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and f"run `bdc disentangle {finished}` again" in error
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
        ('systems = ["zero-shot"', 'systems = ["best"', "best"),
        ('systems = ["zero-shot"', 'systems = ["expert-2"', "expert-2"),
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


@pytest.mark.parametrize("field", ["base_model", "encoder"])
def test_a_damaged_model_or_one_of_the_other_kind_is_refused_before_any_call_is_paid(
    field: str,
    config: Path,
    tmp_path: Path,
    tiny: Path,
    tiny_encoder: Path,
    server: ChatServer,
    capsys: pytest.CaptureFixture[str],
) -> None:
    right, other = (tiny, tiny_encoder) if field == "base_model" else (tiny_encoder, tiny)
    cut = Path(shutil.copytree(right, tmp_path / "cut"))
    (cut / "model.safetensors").write_bytes((cut / "model.safetensors").read_bytes()[:-100])
    text = config.read_text(encoding="utf-8")
    for model, words in ((other, "which is not"), (cut, "is cut or damaged")):
        config.write_text(text.replace(f'{field} = "{right}"', f'{field} = "{model}"'), encoding="utf-8")
        assert main(["run", str(config), "--dir", str(tmp_path / "run"), "--quiet"]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and str(model) in error and words in error
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


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES: list[tuple[str, str, Callable[[Path], object]]] = [
    ("boost", "traces.parquet", Path.unlink),
    ("boost", "traces.parquet", _cut),
    ("boost", "preferences.parquet", Path.unlink),
    ("disentangle", "clusters", shutil.rmtree),
    ("disentangle", "clusters/centroids.npy", _flip),
    ("disentangle", "clusters/clusters.json", _cut),
    ("disentangle", "experts", shutil.rmtree),
    ("disentangle", "experts/0/adapter_model.safetensors", _cut),
    ("disentangle", "experts/1/training.json", Path.unlink),
    ("disentangle", "experts/single/adapter_model.safetensors", _flip),
    ("customize", "solver", shutil.rmtree),
    ("customize", "solver/hypernetwork.safetensors", _flip),
    ("customize", "solver/bdc_config.json", _cut),
    ("evaluate", "evaluation.json", _cut),
    ("report", "report.html", Path.unlink),
]


def test_what_is_missing_or_damaged_is_made_again_and_nothing_is_paid_again(
    finished: Path, config: Path, server: ChatServer, capsys: pytest.CaptureFixture[str]
) -> None:
    def weights() -> dict[Path, bytes]:
        kinds = ("*.safetensors", "*.npy", "*.parquet")
        return {path: path.read_bytes() for kind in kinds for path in finished.rglob(kind)}

    expected, asked = weights(), len(server.bodies)
    for stage, name, damage in DAMAGES:
        damage(finished / name)
        if stage != "report":  # the stage after it says what to do, and its advice works
            following = STAGES[STAGES.index(stage) + 1]
            with Run(finished) as run, run.transaction() as db:
                db.execute("DELETE FROM stages WHERE name = ?", (following,))
            assert main([following, str(finished), "--quiet"]) == 2, (name, damage)
            error = capsys.readouterr().err
            assert error.count("\n") == 1 and name in error and f"run `bdc {stage} {finished}`" in error
        assert main([stage, str(finished), "--quiet"]) == 0, (name, damage)
        assert main(["run", str(config), "--dir", str(finished), "--quiet"]) == 0
        assert weights() == expected, (name, damage)
        with Run(finished) as run:
            assert [run.damaged(stage) for stage in STAGES] == [None] * len(STAGES)
    assert len(server.bodies) == asked


def test_a_changed_problem_file_is_noticed_and_one_that_is_gone_is_not_missed(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    problems = tmp_path / "problems.jsonl"
    text = problems.read_text(encoding="utf-8")
    problems.unlink()
    for stage in STAGES:
        assert main([stage, str(finished)]) == 0
        assert "done already" in capsys.readouterr().err
    (finished / "traces.parquet").unlink()
    for stage in ("boost", "disentangle"):
        assert main([stage, str(finished), "--quiet"]) == 0
    problems.write_text(text.replace('x plus 3"', 'x plus 3 in all"'), encoding="utf-8")
    (finished / "evaluation.json").unlink()
    assert main(["evaluate", str(finished), "--quiet"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and f"run `bdc boost {finished}` again" in error
    assert main(["boost", str(finished)]) == 0
    assert "boost: started" in capsys.readouterr().err


def test_a_change_that_was_begun_and_taken_back_leaves_no_trace(
    finished: Path, config: Path, server: ChatServer, capsys: pytest.CaptureFixture[str]
) -> None:
    def tables() -> dict[str, list[tuple[object, ...]]]:
        with Run(finished) as run:
            return {
                name: run.db.execute(f"SELECT * FROM {name} ORDER BY 1, 2").fetchall()
                for name in ("problems", "trees", "nodes")
            }

    expected, evaluation = tables(), (finished / "evaluation.json").read_bytes()
    text = config.read_text(encoding="utf-8")
    config.write_text(text.replace("[boost]", "[boost]\nseed = 7").replace("train = 8", "seed = 9\ntrain = 8"))
    server.faults = [401] * 1000  # the changed run ends at its first question
    assert main(["run", str(config), "--dir", str(finished), "--quiet"]) == 1
    assert tables()["problems"] != expected["problems"]
    config.write_text(text, encoding="utf-8")
    (finished / "evaluation.json").unlink()
    assert main(["run", str(config), "--dir", str(finished), "--quiet"]) == 0
    assert tables() == expected
    assert (finished / "evaluation.json").read_bytes() == evaluation


def test_a_damaged_store_is_said_in_one_line(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = finished / "run.sqlite"
    content = bytearray(store.read_bytes())
    for start in range(24 * 4096, len(content), 4096):  # the pages before hold the roots of all tables
        if content[start] == 0x0D:  # a page of rows
            content[start : start + 4096] = b"\x55" * 4096
    store.write_bytes(content)
    (finished / "traces.parquet").unlink()
    assert main(["boost", str(finished), "--quiet"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "run.sqlite" in error and "malformed" in error


@pytest.mark.parametrize(
    ("setting", "words"),
    [('sources = ["jsonl:nowhere.jsonl"]', "nowhere.jsonl"), ("train = 500", "asks for 505 problems")],
)
def test_problems_are_read_before_models_are_fetched(
    setting: str,
    words: str,
    config: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(Pipeline, "_find_models", lambda self: pytest.fail("asked for models"))
    text, count = re.subn(rf"(?m)^{setting.split()[0]} = .*$", setting, config.read_text(encoding="utf-8"))
    assert count == 1
    config.write_text(text, encoding="utf-8")
    assert main(["run", str(config), "--dir", str(tmp_path / "run"), "--quiet"]) == 2
    assert words in capsys.readouterr().err


def test_a_run_without_its_config_names_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Run(tmp_path / "run", create=True):
        pass
    assert main(["evaluate", str(tmp_path / "run")]) == 2
    assert f"bdc run CONFIG --dir {tmp_path / 'run'} writes it" in capsys.readouterr().err
