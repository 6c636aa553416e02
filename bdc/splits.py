"""The problems of a run: a copy of each, in the order of the sources, and the split that it belongs to."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from bdc.errors import InputError
from bdc.problems import Problem
from bdc.runs import Run


def store_problems(run: Run, parts: Mapping[str, Sequence[Problem]], meta: Mapping[str, str]) -> None:
    """Replace the run's problems by these, by split, and set entries of the table ``meta``, all at once."""
    rows = [
        (problem.id, split, problem.source, json.dumps(problem.to_json(), ensure_ascii=False))
        for split, part in parts.items()
        for problem in part
    ]
    with run.transaction() as db:
        db.execute("DELETE FROM problems")
        db.executemany(
            "INSERT INTO problems (position, id, split, source, json) VALUES (?, ?, ?, ?, ?)",
            [(position, *row) for position, row in enumerate(rows)],
        )
        db.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", list(meta.items()))


def stored_problems(run: Run, *splits: str) -> list[tuple[Problem, str]]:
    """The run's problems in these splits, in order, each with its split.

    Raises:
        InputError: a row of the store is damaged.
    """
    marks = ",".join("?" * len(splits))
    found = []
    for row in run.rows(f"SELECT id, split, json FROM problems WHERE split IN ({marks}) ORDER BY position", splits):
        record = run.decode("problems", row["id"], row["json"])
        try:
            found.append((Problem.from_json(record), row["split"]))
        except InputError as error:
            raise run.damage("problems", row["id"], str(error)) from error
    return found
