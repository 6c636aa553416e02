"""The run directory: transactions, stage records, refusals."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from bdc.artefacts import atomic_folder, atomic_write
from bdc.errors import InputError, StaleArtifactError
from bdc.problems import Problem
from bdc.runs import Run, digest
from bdc.splits import store_problems, stored_problems
from bdc.testcase import CallTest


def test_a_finished_stage_is_found_only_for_its_inputs(tmp_path: Path) -> None:
    with Run(tmp_path, create=True) as run:
        run.finish("boost", "one", 1.0, {"n": 3})
        assert run.finished("boost", "one") == {"n": 3}
        assert run.finished("boost", "two") is None
        with pytest.raises(StaleArtifactError, match="bdc boost"):
            run.require("boost", "two", wanted_by="disentangle")
        with pytest.raises(StaleArtifactError, match="needs the results of customize"):
            run.require("customize", "one", wanted_by="evaluate")


def test_the_report_of_a_moved_run_is_where_the_run_is(tmp_path: Path) -> None:
    with Run(tmp_path / "old", create=True) as run:
        run.report_path.touch()
        run.finish("report", "one", 1.0, {"path": str(run.report_path), "bytes": 3})
        (stored,) = run.rows("SELECT summary FROM stages")
        assert json.loads(stored["summary"]) == {"bytes": 3}
    with Run((tmp_path / "old").rename(tmp_path / "new")) as run:
        assert run.finished("report", "one") == {"path": str(tmp_path / "new" / "report.html"), "bytes": 3}


def test_a_failed_transaction_leaves_nothing(tmp_path: Path) -> None:
    with Run(tmp_path, create=True) as run:
        with pytest.raises(RuntimeError), run.transaction() as db:
            db.execute("INSERT INTO meta VALUES ('a', 'b')")
            raise RuntimeError
        assert next(run.rows("SELECT count(*) AS n FROM meta WHERE key='a'"))["n"] == 0


def test_rows_are_found_by_many_keys(tmp_path: Path) -> None:
    with Run(tmp_path, create=True) as run:
        rest = {"problem_id": "p", "program": "", "tests": "public", "level": "L3", "json": "{}"}
        run.insert("verdicts", [{"key": f"k{i}", "pass_rate": i / 2000, **rest} for i in range(1200)])
        found = run.find("verdicts", [f"k{i}" for i in range(1100, 2300)], ("pass_rate", "level"))
        assert found == {f"k{i}": {"pass_rate": i / 2000, "level": "L3"} for i in range(1100, 1200)}
        assert run.find("verdicts", [], ("level",)) == {}


def test_two_processes_cannot_write_one_run(tmp_path: Path) -> None:
    with Run(tmp_path, create=True), pytest.raises(InputError, match="in use"):
        Run(tmp_path)


def test_foreign_missing_and_newer_stores_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a run directory"):
        Run(tmp_path)
    (tmp_path / "run.sqlite").write_bytes(b"hello" * 1000)
    with pytest.raises(InputError, match=r"run\.sqlite cannot be used"):
        Run(tmp_path)
    newer = tmp_path / "newer"
    Run(newer, create=True).close()
    with sqlite3.connect(newer / "run.sqlite") as db:
        db.execute("UPDATE meta SET value='99' WHERE key='format'")
    with pytest.raises(StaleArtifactError, match="format 99"):
        Run(newer)


@pytest.mark.parametrize("name", ["solver/main.py", "experts/0/w.bin", "evaluation.json", "report.html"])
def test_a_folder_with_files_that_a_run_would_replace_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text("mine", encoding="utf-8")
    with pytest.raises(InputError, match=f"holds no run, but {Path(name).parts[0]}, which a run would replace"):
        Run(tmp_path, create=True)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / name]


def test_a_config_of_the_users_is_kept_and_the_same_one_is_no_obstacle(tmp_path: Path) -> None:
    mine = tmp_path / "config.toml"
    mine.write_text("# mine", encoding="utf-8")
    with pytest.raises(InputError, match=r"holds no run, but config\.toml"):
        Run(tmp_path, create=True, config="seed = 1")
    assert [path.name for path in tmp_path.iterdir()] == ["config.toml"] and mine.read_text() == "# mine"
    Run(tmp_path, create=True, config="# mine").close()
    Run(tmp_path, create=True, config="seed = 1").close()  # from here on it is the run's
    assert mine.read_text() == "seed = 1"


@pytest.mark.parametrize("text", ["{bad", b"\xff", "[1]", 5])
def test_a_damaged_row_is_one_sentence(tmp_path: Path, text: object) -> None:
    with Run(tmp_path, create=True) as run:
        run.finish("boost", "one", 1.0, {"n": 3})
        with run.transaction() as db:
            db.execute("UPDATE stages SET summary = ?", (text,))
        with pytest.raises(InputError, match=r"run\.sqlite: the row 'boost' of table stages is damaged: .*; restore"):
            run.finished("boost", "one")


@pytest.mark.parametrize("text", ["{bad", b"\xff\xfe", "[]", "{}", '{"id": 3, "statement": "x", "private_tests": []}'])
def test_a_damaged_problem_is_one_sentence(tmp_path: Path, text: object) -> None:
    tests = (CallTest("f", (1,), 2),)
    kept = [Problem(name, "t", "Do.", "f", tests, tests) for name in "abc"]
    with Run(tmp_path, create=True) as run:
        store_problems(run, {"train": kept[:1], "validation": kept[1:2], "test": kept[2:]}, {})
        assert stored_problems(run, "train", "test") == [(kept[0], "train"), (kept[2], "test")]
        with run.transaction() as db:
            db.execute("UPDATE problems SET json = ? WHERE id = 'b'", (text,))
        assert stored_problems(run, "test") == [(kept[2], "test")]
        with pytest.raises(InputError, match=r"run\.sqlite: the row 'b' of table problems is damaged: "):
            stored_problems(run, "validation")


def test_a_name_that_is_no_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no name in UTF-8"):
        Run(tmp_path / "\udcff", create=True)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("utf_8", ["0", "1"])
def test_a_name_that_the_locale_cannot_hold_needs_utf_8_mode(utf_8: str, tmp_path: Path) -> None:
    script = "import sys; from bdc.runs import Run; Run(sys.argv[1], create=True)"
    settings = os.environ | {"LC_ALL": "C", "PYTHONUTF8": utf_8, "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-c", script, str(tmp_path / "é")]
    done = subprocess.run(command, env=settings, capture_output=True, text=True)
    assert (tmp_path / "é").is_dir() == (done.returncode == 0) == (utf_8 == "1")
    assert utf_8 == "1" or "cannot be read as ascii; set PYTHONUTF8=1" in done.stderr


def test_atomic_write_replaces_whole_files(tmp_path: Path) -> None:
    target = tmp_path / "a" / "b.txt"
    atomic_write(target, "one")
    atomic_write(target, "two")
    assert target.read_text() == "two"
    assert [path.name for path in target.parent.iterdir()] == ["b.txt"]


def test_a_folder_that_cannot_be_filled_leaves_the_old_one(tmp_path: Path) -> None:
    target = tmp_path / "solver"
    with atomic_folder(target) as folder:
        (folder / "a").write_text("old")
    with pytest.raises(InputError, match="solver cannot be written"), atomic_folder(target) as folder:
        save_file({"a": np.zeros(1)}, folder / "nowhere" / "a.safetensors")
    with pytest.raises(RuntimeError), atomic_folder(target):
        raise RuntimeError
    assert [path.name for path in tmp_path.iterdir()] == ["solver"] and (target / "a").read_text() == "old"


def test_a_folder_replaces_a_file_and_a_link(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "kept").touch()
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "file").touch()
    for name in ("link", "file"):
        with atomic_folder(tmp_path / name) as folder:
            (folder / "new").touch()
        assert (tmp_path / name / "new").is_file() and not (tmp_path / name).is_symlink()
    assert [path.name for path in (tmp_path / "elsewhere").iterdir()] == ["kept"]


def test_digest_depends_on_values_only() -> None:
    assert digest({"a": 1, "b": [2]}) == digest({"b": [2], "a": 1})
    assert digest({"a": 1}) != digest({"a": 2})
