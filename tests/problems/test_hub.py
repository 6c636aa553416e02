"""Sets without a path: the rows as the hub publishes them, and `datasets` on a local repository of the same form."""

from __future__ import annotations

import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bdc.errors import InputError, MissingExtraError
from bdc.problems import apps, codecontests, hub, humaneval, load
from bdc.testcase import CallTest, StdinTest

APPS = {
    "problem_id": 7,
    "question": "Double a number.",
    "solutions": json.dumps(["def f(x):\n    return 2 * x"]),
    "input_output": json.dumps({"fn_name": "f", "inputs": [[1], [2]], "outputs": [2, 4]}),
    "difficulty": "interview",
    "url": "",
    "starter_code": "def f(x):\n\t",
}
CODECONTESTS = {
    "name": "1_A. Echo",
    "description": "Echo a line.",
    "public_tests": {"input": ["1\n"], "output": ["1\n"]},
    "private_tests": {"input": ["2\n"], "output": ["2\n"]},
    "generated_tests": {"input": ["3\n"], "output": ["3\n"]},
    "solutions": {"language": [2, 3], "solution": ["int main() {}", "print(input())"]},
    "difficulty": 7,
}


def test_apps_row() -> None:
    problem = apps.parse(APPS)
    assert (problem.id, problem.entry_point, problem.difficulty) == ("apps/7", "f", "interview")
    assert problem.solution == "def f(x):\n    return 2 * x"
    assert problem.public_tests == (CallTest("f", (1,), 2),)
    assert problem.private_tests == (CallTest("f", (2,), 4),)
    assert apps.parse(APPS | {"solutions": ""}).solution is None


def test_codecontests_row() -> None:
    problem = codecontests.parse(CODECONTESTS)
    assert (problem.id, problem.difficulty, problem.solution) == ("codecontests/1_A. Echo", "7", "print(input())")
    assert problem.public_tests == (StdinTest("1\n", "1\n"),)
    assert problem.private_tests == (StdinTest("2\n", "2\n"), StdinTest("3\n", "3\n"))


@pytest.mark.parametrize("field", ["name", "description", "public_tests", "private_tests", "solutions"])
def test_bad_codecontests_fields_are_named(field: str) -> None:
    with pytest.raises(InputError, match=f"field '{field}"):
        codecontests.parse(CODECONTESTS | {field: 1.5})


@pytest.mark.parametrize("kind", sorted(hub.SETS))
def test_without_datasets_the_extra_is_named(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    monkeypatch.setattr(humaneval, "installed", lambda: None)
    with pytest.raises(MissingExtraError, match=rf"bdc\[hub\].*{kind}:PATH"):
        load(kind)


def _repository(folder: Path, splits: dict[str, list[dict[str, Any]]]) -> Path:
    if importlib.util.find_spec("datasets") is None:
        pytest.skip("datasets is not installed; `pip install 'bdc[hub]'` runs this test")
    import pyarrow as pa
    import pyarrow.parquet as pq

    (folder / "data").mkdir(parents=True)
    for split, rows in splits.items():
        pq.write_table(pa.Table.from_pylist(rows), folder / "data" / f"{split}-00000-of-00001.parquet")
    return folder


def test_rows_without_tests_and_unreadable_rows_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    rows = [APPS, APPS | {"problem_id": 8, "input_output": ""}, APPS | {"problem_id": 9, "input_output": "{"}]
    place = _repository(tmp_path / "apps", {"train": rows, "test": [APPS]})
    monkeypatch.setitem(hub.SETS, "apps", replace(hub.SETS["apps"], name=str(place), load={}))
    with pytest.warns(UserWarning, match=r"1 rows were left out.*\(train\), row 3: field 'input_output'"):
        problems = load("apps")
    assert [problem.id for problem in problems] == ["apps/7", "apps/7@test"]


def test_all_splits_of_codecontests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    splits = {name: [CODECONTESTS | {"name": name}] for name in ("train", "valid", "test")}
    place = _repository(tmp_path / "codecontests", splits)
    monkeypatch.setitem(hub.SETS, "codecontests", replace(hub.SETS["codecontests"], name=str(place)))
    problems = load("codecontests")
    assert [problem.id for problem in problems] == [f"codecontests/{name}" for name in splits]
    assert problems[0].private_tests == codecontests.parse(CODECONTESTS).private_tests


def test_unreachable_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if importlib.util.find_spec("datasets") is None:
        pytest.skip("datasets is not installed; `pip install 'bdc[hub]'` runs this test")
    monkeypatch.setitem(hub.SETS, "mbpp", replace(hub.SETS["mbpp"], name=str(tmp_path / "none")))
    with pytest.raises(InputError, match="cannot be read from the hub"):
        load("mbpp")
