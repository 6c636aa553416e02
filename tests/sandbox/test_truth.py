"""The reference solutions of public problem sets. Every disagreement is known by name; docs/judge.md explains each.

Set BDC_TEST_DATA to a folder with the published files (humaneval, mbpp, mbpp_sanitized, apps_original_layout,
codecontests_half, each .jsonl.gz) to judge them all.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from published import published

from bdc.problems import Problem, load
from bdc.sandbox import Limits, Sandbox, Verdict
from bdc.testcase import AssertTest, StdinTest

LIMITS = Limits(cpu_seconds=8.0, wall_seconds=60.0, memory_mb=1024, restarts=50)
UNVERIFIED_MBPP = {"mbpp/367", "mbpp/601", "mbpp/927"}  # their tests build objects of the program's own classes
SEVERAL_ANSWERS = {
    "1041_e_tree_reconstruction_8858", "1076_d_edge_deletion_9486", "1217_d_coloring_edges_7410",
    "1325_c_ehab_and_pathetic_mexs_1064", "136_d_rectangle_and_square_9500", "1391_e_pairs_of_pairs_6690",
    "1521_d_nastia_plays_with_a_tree_11693", "27_b_tournament_1914", "407_a_triangle_11184", "45_h_road_problem_460",
    "464_b_restore_cube__2130", "576_a_vasya_and_petyas_game_7650", "618_c_constellation_3489",
    "680_c_bear_and_prime_100_4430", "749_b_parallelogram_is_back_2975", "963_b_destruction_of_a_tree_65",
}  # fmt: skip
LETTER_CASE = {"791_b_bear_and_friendship_condition_8388"}
MIXED_UP = {
    "1118_f1_tree_cutting_easy_version_12195", "1133_f1_spanning_tree_with_maximum_degree_10945",
    "1176_e_cover_it_10635", "1324_f_maximum_white_subtree_3668",
}  # fmt: skip
WRONG_PROGRAMS = {"1056_d_decorate_apple_tree_1782", "1540_b_tree_array_3053"}
CODECONTESTS = SEVERAL_ANSWERS | LETTER_CASE | MIXED_UP | WRONG_PROGRAMS


def data(source: str) -> list[Problem]:
    """The problems of ``kind:name`` that have a reference solution."""
    kind, _, name = source.partition(":")
    return [problem for problem in load(f"{kind}:{published(name or kind)}") if problem.solution]


def judge_references(problems: list[Problem]) -> dict[str, Verdict]:
    jobs = [(p.solution or "", p.public_tests + p.private_tests) for p in problems]
    with Sandbox() as sandbox:
        return dict(zip((p.id for p in problems), sandbox.judge_many(jobs, LIMITS), strict=True))


@pytest.mark.filterwarnings("ignore:invalid escape sequence")
@pytest.mark.parametrize(
    ("source", "count", "failing", "unverified"),
    [
        ("humaneval", 164, {"HumanEval/47", "HumanEval/116"}, set()),
        ("mbpp:mbpp", 974, set(), UNVERIFIED_MBPP),
        ("mbpp:mbpp_sanitized", 427, set(), UNVERIFIED_MBPP),
        ("apps:apps_original_layout", 5, {"apps/2404"}, set()),
        ("codecontests:codecontests_half", 150, {f"codecontests/{name}" for name in CODECONTESTS}, set()),
    ],
)
def test_reference_solutions(source: str, count: int, failing: set[str], unverified: set[str]) -> None:
    problems = data(source)
    assert len(problems) == count
    verdicts = judge_references(problems)
    wrong = {key: verdict.feedback() for key, verdict in verdicts.items() if not verdict.passed}
    assert set(wrong) == failing, {key: wrong[key] for key in wrong if key not in failing}
    assert {key for key, verdict in verdicts.items() if not verdict.verified} == unverified & set(verdicts)


def test_programs_that_are_wrong_everywhere_fail() -> None:
    problems = data("humaneval")
    jobs = []
    for problem in problems:
        (test,) = problem.private_tests
        assert isinstance(test, AssertTest)
        jobs.append((f"def {test.entry_point}(*a, **k): return object", [test]))
    with Sandbox() as sandbox:
        assert not any(verdict.passed for verdict in sandbox.judge_many(jobs, LIMITS))


@pytest.mark.slow
def test_whole_programs_do_what_they_do_in_a_plain_interpreter(tmp_path: Path) -> None:
    """What a plain interpreter prints with the input as a file is taken as the expected output of every test."""
    jobs, codes = [], []
    source, stdin = tmp_path / "program.py", tmp_path / "stdin"
    for problem in data("codecontests:codecontests_half"):
        source.write_text(problem.solution or "")
        tests, ends = [], []
        for test in problem.public_tests + problem.private_tests:
            assert isinstance(test, StdinTest)
            stdin.write_text(test.stdin)
            with stdin.open() as file:
                done = subprocess.run([sys.executable, source], stdin=file, capture_output=True, text=True, check=False)
            tests.append(StdinTest(test.stdin, done.stdout))
            ends.append(done.returncode)
        jobs.append((source.read_text(), tests))
        codes.append(ends)
    with Sandbox() as sandbox:
        verdicts = sandbox.judge_many(jobs, LIMITS)
    different = [
        (code, result)
        for verdict, ends in zip(verdicts, codes, strict=True)
        for result, code in zip(verdict.results, ends, strict=True)
        if result.status != ("passed" if code == 0 else "runtime_error")
    ]
    assert not different
