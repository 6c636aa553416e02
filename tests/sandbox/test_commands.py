"""`bdc judge` and `bdc sandbox check`: what they print, what they exit with, and one sentence for bad input."""

from __future__ import annotations

import gzip
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from bdc.cli import main
from bdc.problems import load

ADD = "def add(a, b):\n    return a + b\n"
PROBLEM = {
    "id": "mine/add",
    "statement": "add two numbers",
    "entry_point": "add",
    "public_tests": [{"kind": "call", "entry_point": "add", "args": "(1, 2)", "expected": "3"}],
    "private_tests": [{"kind": "assert", "entry_point": "add", "code": "assert add(2, 2) == 4"}],
    "starter_code": "def add(a, b):\n",
}
ECHO = {
    "id": "mine/echo",
    "statement": "echo",
    "private_tests": [{"kind": "stdin", "stdin": "hi\n", "expected": "hi"}],
}


@pytest.fixture
def problems(tmp_path: Path) -> Path:
    return write(tmp_path / "problems.jsonl", PROBLEM, ECHO)


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def judge(problems: object, programs: object, *options: str) -> int:
    return main(["judge", "--problems", str(problems), "--programs", str(programs), "--quiet", *options])


def test_lines_of_every_convention(problems: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {"problem": "mine/add", "program": ADD},
        {"id": "mine/add", "solution": ADD.replace("+", "-")},
        {"task_id": "mine/add", "completion": "    return a + b\n"},
        {"problem_id": "mine/echo", "program": "print(input())", "anything": "else"},
    ]
    assert judge(problems, write(tmp_path / "programs.jsonl", *rows), "--json") == 1
    report = json.loads(capsys.readouterr().out)
    assert (report["programs"], report["passed"], report["unverified"]) == (4, 3, 0)
    assert [row["passed"] for row in report["verdicts"]] == [True, False, True, True]
    assert [row["name"] for row in report["verdicts"]] == ["line 1", "line 2", "line 3", "line 4"]
    assert report["verdicts"][1]["results"][0]["actual"] == "-1"
    assert report["level"] in ("L3", "L2", "L1")
    packed = tmp_path / "programs.jsonl.gz"
    packed.write_bytes(gzip.compress((tmp_path / "programs.jsonl").read_bytes()))
    assert judge(problems, packed, "--feedback") == 1
    out = capsys.readouterr().out
    assert "FAIL  mine/add  line 2  0/2  wrong answer: add(1, 2): the result differs" in out
    assert "    0 of 2 tests passed." in out
    assert "3 of 4 programs passed every test" in out


def test_python_files(problems: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "programs"
    for name, text in {"mine_add.py": ADD, "mine_add/0.py": ADD, "mine/echo.py": "print(input())"}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    assert judge(problems, folder) == 0
    assert "3 of 3 programs passed" in capsys.readouterr().out
    single = tmp_path / "any name.py"
    single.write_text(ADD)
    assert judge(write(tmp_path / "one.jsonl", PROBLEM), single) == 0
    assert judge(problems, folder / "mine_add.py", "--tests", "public") == 0
    assert judge(problems, single) == 2
    assert "named after no problem" in capsys.readouterr().err


def test_python_files_are_read_as_python_reads_them(problems: Path, tmp_path: Path) -> None:
    name = "f\u00fcnf"
    program = f"def add(a, b):\r\n    {name} = a + b\r\n    return {name}\r\n"
    file = tmp_path / "mine_add.py"
    for data in (program.encode("utf-8-sig"), f"# -*- coding: latin-1 -*-\n{program}".encode("latin-1")):
        file.write_bytes(data)
        assert judge(problems, file) == 0
    file.write_bytes(program.encode("latin-1"))
    assert judge(problems, file) == 2


def test_what_a_coding_line_names_is_one_sentence(
    problems: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mine_add.py"
    for coding in ("hex", "rot13", "idna", "undefined", "no-such"):
        file.write_bytes(f"# coding: {coding}\n".encode() + ADD.encode() + b"# \xff")
        assert judge(problems, file) == 2
        captured = capsys.readouterr()
        assert "is not text" in captured.err
        assert (captured.err.count("\n"), captured.out) == (1, "")


def test_names_of_files_are_printed_escaped(problems: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "mine_add"
    folder.mkdir()
    for name in (b"\x1b[2J.py", b"\xff.py"):
        (folder / os.fsdecode(name)).write_text(ADD)
    assert judge(problems, tmp_path) == 0
    out = capsys.readouterr().out
    assert "\\x1b[2J.py" in out and "\\udcff.py" in out
    assert out.replace("\n", "").isprintable()


def test_the_reference_solutions_of_the_written_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"problem": problem.id, "program": problem.solution} for problem in load("mini")]
    assert judge("mini", write(tmp_path / "programs.jsonl", *rows)) == 0
    assert f"{len(rows)} of {len(rows)} programs passed" in capsys.readouterr().out


def test_interpreter_and_modules(problems: Path, tmp_path: Path) -> None:
    pytest.importorskip("numpy", reason="numpy is not installed; install it to try an extra module")
    row = {"problem": "mine/add", "program": "import numpy\ndef add(a, b): return int(numpy.add(a, b))"}
    programs = write(tmp_path / "programs.jsonl", row)
    assert judge(problems, programs, "--python", sys.executable) == 1
    assert judge(problems, programs, "--python", sys.executable, "--allow-module", "numpy") == 0


GOOD = {"problem": "mine/add", "program": ADD}
BAD_OPTIONS = {
    "cpu_seconds": ["--cpu-seconds", "-1"],
    "memory_mb": ["--memory-mb", "0"],
    "cpu_seconds is nan": ["--cpu-seconds", "nan"],
    "below cpu_seconds": ["--cpu-seconds", "5", "--wall-seconds", "1"],
    "0 workers": ["--workers", "0"],
    "99999999999 workers": ["--workers", "99999999999"],
    "'L9' is unknown": ["--level", "L9"],
    "/nonexistent/python": ["--python", "/nonexistent/python"],
    "'/bin/true' cannot serve": ["--python", "/bin/true"],
    "no_such_module": ["--allow-module", "no_such_module"],
    "cannot import an allowed module: ''": ["--allow-module", ""],
    "memory_mb is 99999999999999999999": ["--memory-mb", "99999999999999999999"],
    "cpu_seconds is 1e+300": ["--cpu-seconds", "1e300"],
    "output_kb": ["--output-kb", "99999999999999999"],
    "no public tests": ["--tests", "public"],
}


@pytest.mark.parametrize("words", BAD_OPTIONS)
def test_bad_options_are_one_sentence(
    problems: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: str
) -> None:
    programs = write(tmp_path / "programs.jsonl", GOOD, {"problem": "mine/echo", "program": "print(input())"})
    assert judge(problems, programs, *BAD_OPTIONS[words]) == 2
    captured = capsys.readouterr()
    assert words in captured.err
    assert (captured.err.count("\n"), captured.out) == (1, "")


BAD_PROGRAMS = {
    "not valid JSON": b"{",
    "must be an object": b"[1]",
    "must be text": b'{"problem": "mine/add", "program": 7}',
    "is of type NoneType": b'{"problem": "mine/add", "program": null}',
    "names no problem": b'{"problem": "mine/sub", "program": "x"}',
    "none of the fields program": b'{"problem": "mine/add"}',
    "none of the fields problem": b'{"program": "x"}',
    "holds no programs": b"\n",
    "not valid JSON in UTF-8": b"\xff\xfe",
}


@pytest.mark.parametrize("words", BAD_PROGRAMS)
def test_bad_program_files_are_one_sentence(
    problems: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: str
) -> None:
    programs = tmp_path / "programs.jsonl"
    programs.write_bytes(BAD_PROGRAMS[words])
    assert judge(problems, programs) == 2
    captured = capsys.readouterr()
    assert words in captured.err and str(programs) in captured.err
    assert (captured.err.count("\n"), captured.out) == (1, "")


def test_other_bad_input_is_one_sentence(problems: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    programs = write(tmp_path / "programs.jsonl", GOOD)
    binary = tmp_path / "mine_add.py"
    binary.write_bytes(b"\x7fELF\xff")
    untested = write(tmp_path / "untested.jsonl", PROBLEM | {"public_tests": [], "private_tests": []})
    alike = write(tmp_path / "alike.jsonl", PROBLEM, PROBLEM | {"id": "mine_add"})
    (tmp_path / "empty").mkdir()
    for arguments, words in {
        (problems, binary): "is not text",
        (untested, programs): "has no tests",
        (problems, tmp_path / "empty"): "holds no programs",
        (problems, tmp_path / "absent.jsonl"): "cannot be read",
        (problems, tmp_path / "absent.py"): "cannot be read",
        (tmp_path / "absent.jsonl", programs): "cannot be read",
        (problems, "~nobody-of-this-name/a.py"): "cannot be found",
        (alike, binary): "share the file name",
    }.items():
        if words == "cannot be read" and arguments[1] == tmp_path / "absent.py":
            arguments = (write(tmp_path / "one.jsonl", PROBLEM), arguments[1])
        assert judge(*arguments) == 2
        captured = capsys.readouterr()
        assert words in captured.err
        assert (captured.err.count("\n"), captured.out) == (1, "")


BAD_TESTS = {
    "entry_point": {"kind": "call", "entry_point": 5, "args": "(1,)", "expected": "1"},
    "args": {"kind": "call", "entry_point": "f", "args": "5", "expected": "1"},
    "kwargs": {"kind": "call", "entry_point": "f", "args": "()", "expected": "1", "kwargs": "5"},
    "no Python literal": {"kind": "call", "entry_point": "f", "args": "(open,)", "expected": "1"},
    "stdin": {"kind": "stdin", "stdin": 5, "expected": "1"},
    "code": {"kind": "assert", "code": None, "entry_point": "f"},
    "'magic' is unknown": {"kind": "magic"},
}


@pytest.mark.parametrize("words", BAD_TESTS)
def test_a_test_that_cannot_be_read_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: str
) -> None:
    bad = write(tmp_path / "problems.jsonl", PROBLEM | {"private_tests": [BAD_TESTS[words]]})
    assert judge(bad, write(tmp_path / "programs.jsonl", GOOD)) == 2
    captured = capsys.readouterr()
    assert words in captured.err and "line 1" in captured.err
    assert (captured.err.count("\n"), captured.out) == (1, "")


def test_sandbox_check(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sandbox", "check", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["level"] == "L3" and report["held"] and not report["missing"]
    assert all(attempt["held"] for attempt in report["attempts"]) and len(report["attempts"]) >= 8
    assert main(["sandbox", "check", "--level", "L2"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("L2: Landlock and seccomp\n") and "ESCAPED" not in out
    assert main(["sandbox", "check", "--level", "L9"]) == 2


def test_sandbox_check_says_what_escapes_where_nothing_isolates(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sandbox", "check", "--level", "L1"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert any(line.split()[0] == "ESCAPED" and "read a file of this user" in line for line in lines)
    assert any(line.split()[0] == "held" and "run for ever" in line for line in lines)
