"""Splitting problems into training, validation and test sets that cannot leak into each other."""

from __future__ import annotations

import random
import re
import unicodedata
from collections.abc import Sequence
from itertools import pairwise

from bdc.errors import InputError
from bdc.problems.problem import Problem

PARTS = ("train", "validation", "test")


def normalise(statement: str) -> str:
    """Return the statement in the form in which two copies of one problem are equal.

    Letter case is folded, white space becomes single spaces, and the stops and commas after words and the backticks around
    them go. All else stays, since ``a < b`` and ``a > b``, ``','`` and ``';'``, ``n!`` and ``n`` are different problems.
    """
    text = unicodedata.normalize("NFC", statement).casefold()
    text = re.sub(r"(?<!['\"])`(?!['\"])", "", text)
    return " ".join(re.sub(r"(?<=[\w)\]}'\"])[.,;:]+(?=\s|$)", "", text).split())


def split(
    problems: Sequence[Problem], train: float, validation: float, test: float, seed: int
) -> dict[str, list[Problem]]:
    """Split problems into ``train``, ``validation`` and ``test``.

    Deterministic in the problems' contents and the seed (not in their order), stratified by family, without
    duplicates (:func:`without_duplicates`).

    Args:
        problems: any problems; ids must be unique among those that stay.
        train: share (three numbers that add up to at most 1, within rounding, not all of them int) or number of problems
            (three whole numbers, each 0 or more); likewise ``validation`` and ``test``.
        seed: draws the members of each part.

    Raises:
        InputError: negative sizes, shares above 1 in sum, more problems asked for than there are, repeated ids.
    """
    unique = without_duplicates(problems)
    sizes = _sizes((train, validation, test), len(unique))
    families: dict[str, list[Problem]] = {}
    for problem in unique:
        families.setdefault(problem.family, []).append(problem)
    for name, members in families.items():
        random.Random(f"{seed}/{name}").shuffle(members)
    order = _interleave(families, seed)
    parts: dict[str, list[Problem]] = {}
    start = 0
    # The parts are consecutive pieces of the interleaved order, so each holds the families in proportion.
    for part, size in zip(PARTS, sizes, strict=True):
        parts[part] = sorted(order[start : start + size], key=lambda problem: problem.id)
        start += size
    return parts


def without_duplicates(problems: Sequence[Problem]) -> list[Problem]:
    """Of problems with one normalised statement, or one solution but for white space, that with the smallest id; by id.

    Raises:
        InputError: two of those that stay have one id.
    """
    kept: list[Problem] = []
    seen: set[tuple[str, str]] = set()
    for problem in sorted(problems, key=lambda problem: (problem.id, problem.statement)):
        keys = {("statement", normalise(problem.statement))}
        if problem.solution and problem.solution.strip():
            keys.add(("solution", " ".join(problem.solution.split())))
        if seen.isdisjoint(keys):
            kept.append(problem)
        seen |= keys
    for first, second in pairwise(kept):
        if first.id == second.id:
            raise InputError(f"two different problems have the id {first.id!r}; ids must be unique")
    return kept


def _sizes(wanted: tuple[float, float, float], total: int) -> list[int]:
    if any(not 0 <= size < float("inf") for size in wanted):
        raise InputError(f"split sizes {wanted} must be finite and not negative")
    if any(size > 1 for size in wanted) or all(isinstance(size, int) for size in wanted):
        if any(size != int(size) for size in wanted):
            raise InputError(f"split sizes {wanted} mix shares and numbers; give three shares or three whole numbers")
        counts = [int(size) for size in wanted]
    else:
        if sum(wanted) > 1 + 1e-9:
            raise InputError(f"split shares {wanted} add up to {sum(wanted):g}; they must not exceed 1")
        # Rounding the running sums keeps every part within one problem of its share and the total exact.
        edges = [round(total * sum(wanted[:part]) + 1e-9) for part in range(4)]
        counts = [stop - start for start, stop in pairwise(edges)]
    if sum(counts) > total:
        raise InputError(
            f"the split into train, validation and test asks for {sum(counts)} problems, but only {total} different ones were given"
        )
    return counts


def _interleave(families: dict[str, list[Problem]], seed: int) -> list[Problem]:
    """Merge the families so that every stretch of the result holds each in proportion to its size."""
    keyed = []
    for name, members in families.items():
        # A seeded tie-break: else the same families would always fall to the part that ends within a round.
        tie = random.Random(f"{seed}/order/{name}").random()
        keyed += [((place + 0.5) / len(members), tie, problem.id, problem) for place, problem in enumerate(members)]
    return [problem for *_, problem in sorted(keyed, key=lambda item: item[:3])]
