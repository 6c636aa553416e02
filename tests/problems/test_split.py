from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bdc.errors import InputError
from bdc.problems import Problem, load, normalise, split, without_duplicates
from bdc.testcase import StdinTest


def _ids(parts: dict) -> dict[str, list[str]]:
    return {name: [problem.id for problem in members] for name, members in parts.items()}


def test_deterministic_whatever_the_order() -> None:
    problems = load("mini")
    shuffled = list(problems)
    random.Random(1).shuffle(shuffled)
    first = _ids(split(problems, 0.5, 0.25, 0.25, seed=3))
    assert first == _ids(split(shuffled, 0.5, 0.25, 0.25, seed=3))
    assert first != _ids(split(problems, 0.5, 0.25, 0.25, seed=4))


@pytest.mark.parametrize("sizes", [(0.6, 0.2, 0.2), (48, 16, 32), (0.1, 0.0, 0.9), (7, 0, 3)])
def test_parts_do_not_overlap_and_have_their_sizes(sizes: tuple[float, float, float]) -> None:
    problems = load("mini")
    parts = split(problems, *sizes, seed=0)
    statements = [normalise(p.statement) for members in parts.values() for p in members]
    assert len(statements) == len(set(statements))
    for size, members in zip(sizes, parts.values(), strict=True):
        assert abs(len(members) - (size if max(sizes) > 1 else size * len(problems))) <= 1


_PROBLEMS = st.lists(
    st.builds(
        lambda words, family: (" ".join(words), family),
        st.lists(st.sampled_from(["add", "Add", "a<b", "a>b", "sort", "."]), min_size=1, max_size=3),
        st.sampled_from(["", "x", "y"]),
    ),
    max_size=40,
).map(
    lambda rows: [Problem(f"p{i}", "t", s, None, (), (StdinTest("", ""),), family=f) for i, (s, f) in enumerate(rows)]
)


@settings(max_examples=200, deadline=None)
@given(_PROBLEMS, st.lists(st.floats(0, 1), min_size=3, max_size=3), st.integers(0, 9), st.randoms())
def test_any_problems(problems: list[Problem], weights: list[float], seed: int, shuffler: random.Random) -> None:
    scale = max(1.0, sum(weights))
    sizes = [weight / scale for weight in weights]
    parts = split(problems, *sizes, seed=seed)
    members = [p for part in parts.values() for p in part]
    statements = [normalise(p.statement) for p in members]
    assert len(set(statements)) == len(statements) and set(members) <= set(problems)
    unique = len({normalise(p.statement) for p in problems})
    for size, part in zip(sizes, parts.values(), strict=True):
        assert abs(len(part) - size * unique) <= 1
    shuffled = list(problems)
    shuffler.shuffle(shuffled)
    assert _ids(split(shuffled, *sizes, seed=seed)) == _ids(parts)


def test_copies_with_other_layout_stay_out() -> None:
    problems = load("mini")
    copies = [replace(p, id=f"zz/{p.id}", statement="\n " + p.statement.upper() + "  ") for p in problems]
    parts = split([*copies, *problems], 0.5, 0.25, 0.25, seed=0)
    members = [p for part in parts.values() for p in part]
    assert sorted(p.id for p in members) == sorted(p.id for p in problems)


def test_every_family_is_in_every_large_part() -> None:
    problems = load("mini")
    families = {p.family for p in problems}
    for members in split(problems, 32, 32, 32, seed=5).values():
        counts = [sum(p.family == family for p in members) for family in families]
        assert max(counts) - min(counts) <= 2


def test_normalise_keeps_what_makes_problems_different() -> None:
    assert normalise("Return  A.\n") == normalise("return a")
    assert normalise("Sort `x`, then y: it") == normalise("sort x then Y it.")
    for one, other in (("a < b", "a > b"), ("a != b", "a = b"), ("n!", "n"), ("1.5", "1 5"), ("x\u00b2", "x2")):
        assert normalise(f"Return {one}.") != normalise(f"Return {other}.")
    for one, other in ("',", "';"), ("'_", "' "), ("'.", "':"), ('"!', '"?'):
        assert normalise(f"Remove every {one}{one[0]} from s") != normalise(f"Remove every {other}{other[0]} from s")


def test_one_solution_is_one_problem() -> None:
    base = load("mini")[0]
    again = [replace(base, id=f"z/{i}", statement=f"{base.statement}\nFor instance {i}.") for i in range(3)]
    assert without_duplicates([*again, base]) == [base]
    bare = [replace(problem, solution=None) for problem in again]
    assert without_duplicates([base, *bare]) == [base, *bare]


def test_whole_numbers_are_numbers_of_problems() -> None:
    problems = load("mini")
    assert [len(part) for part in split(problems, 1, 0, 1, seed=0).values()] == [1, 0, 1]
    assert [len(part) for part in split(problems, 1.0, 0.0, 0.0, seed=0).values()] == [len(problems), 0, 0]


@pytest.mark.parametrize("sizes", [(0.9, 0.2, 0.0), (-1, 0, 0), (90, 90, 90), (10, 0.5, 0), (float("nan"), 0, 0)])
def test_impossible_sizes(sizes: tuple[float, float, float]) -> None:
    with pytest.raises(InputError, match="split"):
        split(load("mini"), *sizes, seed=0)


def test_two_problems_with_one_id() -> None:
    first, second = load("mini")[:2]
    with pytest.raises(InputError, match="ids must be unique"):
        split([first, replace(second, id=first.id)], 0.5, 0.5, 0, seed=0)
