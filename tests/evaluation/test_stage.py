"""The whole stage on a tiny model in a real sandbox; a kill changes nothing."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bdc.customize import Solver
from bdc.errors import InputError
from bdc.evaluation import EvaluateSettings, stage
from bdc.evaluation.answers import Answer, Respondent
from bdc.evaluation.judging import judged
from bdc.llm import prompts
from bdc.problems import Problem
from bdc.progress import Progress, Task
from bdc.runs import Run
from bdc.sandbox import Limits, Sandbox

LIMITS = Limits(cpu_seconds=0.5, wall_seconds=5.0, memory_mb=256)
SETTINGS = EvaluateSettings(program_tokens=12, thought_tokens=8, batch_size=3, bootstrap=200, seed=1)
NewRun = Callable[[str], Path]


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(workers=1) as pool:
        yield pool


def evaluate(path: Path, tiny: Path, sandbox: Sandbox, settings: EvaluateSettings = SETTINGS) -> dict[str, Any]:
    with Run(path) as run:
        stage.run(run, settings, str(tiny), sandbox, LIMITS, Progress("quiet"), "float32", inputs="x")
        return dict(json.loads(run.evaluation_path.read_text()))


def texts(path: Path) -> list[tuple[Any, ...]]:
    with sqlite3.connect(path / "run.sqlite") as db:
        return list(db.execute("SELECT key, role, problem_id, text, completion_tokens FROM calls ORDER BY key"))


def without_seconds(evaluation: dict[str, Any]) -> dict[str, Any]:
    return evaluation | {"systems": [{**system, "seconds": 0} for system in evaluation["systems"]]}


def test_every_system_is_compared_on_the_test_problems(new_run: NewRun, tiny: Path, sandbox: Sandbox) -> None:
    path = new_run("run")
    found = evaluate(path, tiny, sandbox)
    assert found["format"] == 1 and found["seed"] == 1
    assert found["problems"] == [f"t/{index}" for index in range(7)]
    assert [system["name"] for system in found["systems"]] == list(SETTINGS.systems)
    assert {(row["system"], row["metric"]) for row in found["differences"]} == {
        (name, metric) for name in SETTINGS.systems[:-1] for metric in ("loss", "pass_rate", "ac")
    }
    by_name = {system["name"]: system for system in found["systems"]}
    for system in found["systems"]:
        losses = [row["loss"] for row in system["per_problem"]]
        assert [index for index, loss in enumerate(losses) if loss is None] == [3]
        assert system["loss"]["mean"] == pytest.approx(np.mean([loss for loss in losses if loss is not None]))
        assert 0 < system["completion_tokens"] <= 7 * 12
        assert system["seconds"] > 0 and system["unverified"] == 0
        assert (system["loss"]["n"], system["ac"]["n"]) == (6, 7)
    assert len({round(system["loss"]["mean"], 4) for system in found["systems"]}) >= 4
    for row in found["differences"]:
        ours, other = by_name["bdc"], by_name[row["system"]]
        assert row["mean"] == pytest.approx(ours[row["metric"]]["mean"] - other[row["metric"]]["mean"])
    assert len(texts(path)) == 7 * 5


def test_losses_and_weights_are_the_solvers(new_run: NewRun, tiny: Path, sandbox: Sandbox) -> None:
    path = new_run("run")
    found = evaluate(path, tiny, sandbox, EvaluateSettings(systems=("bdc",), program_tokens=4, bootstrap=100))
    with Run(path) as run:
        problems = stage.held_out(run, 0, Progress("quiet"))
    solver = Solver.from_pretrained(path / "solver", dtype="float32", base_model=tiny)
    loss = solver.loss(
        [prompts.program(problems[0].statement, ())],
        [prompts.program_response(problems[0].solution or "")],
        statements=[problems[0].statement],
    )[0]
    assert found["systems"][0]["per_problem"][0]["loss"] == pytest.approx(loss.per_token, rel=1e-4)
    assert found["differences"] == []
    weights, statements = found["rank_weights"], [problem.statement for problem in problems]
    nearest = np.array(solver.customizer.nearest_experts(statements))
    given = solver.rank_weights(statements).flatten(2).numpy()
    assert weights["layers"] == solver.parts.stack.modules
    for cluster, layers in enumerate(weights["clusters"]):
        assert len(layers) == len(weights["layers"])
        if (nearest == cluster).any():
            np.testing.assert_allclose(layers, given[nearest == cluster].mean(axis=0), atol=1e-5)
        else:
            assert layers == [[]] * len(layers)


def test_a_problem_beyond_the_context_is_not_solved_and_stops_nothing(
    new_run: NewRun, tiny: Path, sandbox: Sandbox
) -> None:
    path = new_run("run")
    with Run(path) as run, run.transaction() as db:
        for index, field in ((1, "statement"), (2, "solution")):
            longer = f"json_set(json, '$.{field}', json_extract(json, '$.{field}') || char(10) || ?)"
            db.execute(f"UPDATE problems SET json = {longer} WHERE id = ?", ("# so on" * 80, f"t/{index}"))
    found = evaluate(path, tiny, sandbox, replace(SETTINGS, systems=("zero-shot", "bdc"), batch_size=1))
    for system in found["systems"]:
        rows = system["per_problem"]
        assert [index for index, row in enumerate(rows) if row["loss"] is None] == [1, 2, 3]
        assert rows[1]["pass_rate"] == 0
    with Run(path) as run:
        silent = [row["problem_id"] for row in run.rows("SELECT * FROM calls WHERE finish_reason = 'error'")]
    assert silent == ["t/1", "t/1"]


SCRIPT = """
import json, sys
from bdc.evaluation import EvaluateSettings, stage
from bdc.evaluation.answers import Answer
from bdc.runs import Run
from bdc.sandbox import Limits, Sandbox
settings, limits = (json.loads(text) for text in sys.argv[3:])
settings["systems"] = tuple(settings["systems"])
with Sandbox(workers=1) as sandbox, Run(sys.argv[1]) as run:
    settings, limits = EvaluateSettings(**settings), Limits(**limits)
    stage.run(run, settings, sys.argv[2], sandbox, limits, None, "float32", inputs="x")
"""


def test_kill_9_changes_nothing(new_run: NewRun, tiny: Path, sandbox: Sandbox) -> None:
    """Killed after the first stored chunk, the run ends with the answers of an uninterrupted one."""
    settings = replace(SETTINGS, protocol="thoughts", temperature=0.9)
    given = [json.dumps(asdict(each)) for each in (settings, LIMITS)]
    whole, killed = new_run("whole"), new_run("killed")
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(killed), str(tiny), *given],
        cwd=Path(__file__).parents[2],
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
    )
    while process.poll() is None and not texts(killed):
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it ended before it could be killed"
    before = texts(killed)
    assert 0 < len(before) < 7 * 5 * 2
    stored = Counter((role, int(problem.removeprefix("t/")) // 3) for _, role, problem, _, _ in before)
    assert all(count % (1 if chunk == 2 else 3) == 0 for (_, chunk), count in stored.items()), "part of a chunk"
    first, second = evaluate(whole, tiny, sandbox, settings), evaluate(killed, tiny, sandbox, settings)
    assert texts(killed) == texts(whole)
    assert set(before) <= set(texts(killed))
    assert len(texts(whole)) == 7 * 5 * 2
    assert without_seconds(second) == without_seconds(first)


def test_merged_experts_are_systems_too(new_run: NewRun, tiny: Path, sandbox: Sandbox) -> None:
    """Merging changes the weights for as long as that system is asked: the base model is itself again after it."""
    path, names = new_run("run"), ("ties", "zero-shot", "dare")
    merged = evaluate(path, tiny, sandbox, replace(SETTINGS, systems=names, program_tokens=2))
    alone = evaluate(path, tiny, sandbox, replace(SETTINGS, systems=("zero-shot",), program_tokens=2))
    ties, zero_shot, dare = (system["loss"]["mean"] for system in merged["systems"])
    assert zero_shot == pytest.approx(alone["systems"][0]["loss"]["mean"], rel=1e-4)
    assert min(abs(ties - zero_shot), abs(dare - zero_shot), abs(ties - dare)) > 1e-3


def test_each_expert_alone_and_what_was_searched(new_run: NewRun, tiny: Path, sandbox: Sandbox) -> None:
    path = new_run("run")
    settings = replace(SETTINGS, systems=("experts", "bdc", "search", "expert-1"), program_tokens=2)
    with pytest.raises(InputError, match='names "search", which needs the agents of a run'):
        evaluate(path, tiny, sandbox, replace(settings, systems=("search",)))

    def search(problems: Sequence[Problem]) -> list[Answer]:
        programs = [f"def f(x):\n    return x + {index % 2}\n" for index in range(len(problems) - 1)]
        return [Answer(program, 10, 5, 0.5) for program in programs] + [Answer(None, 10, 0, 0.5, "budget: calls")]

    with Run(path) as run:
        stage.run(run, settings, str(tiny), sandbox, LIMITS, None, "float32", inputs="x", search=search)
        found = json.loads(run.evaluation_path.read_text())
    systems = {system["name"]: system for system in found["systems"]}
    assert list(systems) == ["expert-0", "expert-1", "bdc", "search"]
    assert [system["label"] for system in found["systems"]] == ["Expert 0", "Expert 1", "BDC", "Search"]
    searched = systems["search"]
    assert [row["pass_rate"] for row in searched["per_problem"]] == [1, 1, 0, 0, 0, 0, 0]
    assert searched["cut_short"] == 1 and searched["per_problem"][-1]["cut_short"] == "budget: calls"
    assert searched["loss"] is None and searched["ac"]["mean"] == pytest.approx(2 / 7)
    assert (searched["prompt_tokens"], searched["completion_tokens"], searched["seconds"]) == (70, 30, 3.5)
    pairs = {(row["system"], row["metric"]) for row in found["differences"]}
    assert ("search", "loss") not in pairs and {("search", "ac"), ("expert-0", "loss")} <= pairs
    solver = Solver.from_pretrained(path / "solver", dtype="float32", base_model=tiny)
    with Run(path) as run:
        problem = stage.held_out(run, 1, Progress("quiet"))[0]
    for index in range(2):
        loss = solver.loss(
            [prompts.program(problem.statement, ())],
            [prompts.program_response(problem.solution or "")],
            statements=[problem.statement],
            weights=index,
        )[0]
        assert systems[f"expert-{index}"]["per_problem"][0]["loss"] == pytest.approx(loss.per_token, rel=1e-4)


def test_several_programs_for_each_problem(
    new_run: NewRun, tiny: Path, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sampled apart, and judged one by one; a kill may fall between the samples of a problem."""
    settings = replace(SETTINGS, systems=("zero-shot", "bdc"), temperature=1.5, samples=4, pass_at=(1, 3), batch_size=5)
    first, again = new_run("first"), new_run("again")
    found = evaluate(first, tiny, sandbox, settings)
    assert len(texts(first)) == 2 * 7 * 4
    by_problem: dict[tuple[str, str], set[str]] = {}
    for _, role, problem, text, _ in texts(first):
        by_problem.setdefault((role, problem), set()).add(text)
    assert all(len(different) > 1 for different in by_problem.values())
    assert without_seconds(evaluate(again, tiny, sandbox, settings)) == without_seconds(found)
    assert texts(again) == texts(first)

    right = "def f(x):\n    return x + {}\n"

    def programs(self: Respondent, problems: Sequence[Problem], task: Task) -> list[list[Answer]]:
        """Of the first two problems three are right, of the third two, of the fourth one; one of each is no program."""
        written = [[right.format(i) if j + i < 4 else "def f(x): ..." for j in range(3)] + [None] for i in range(7)]
        return [[Answer(program, 3, 2, 0.1) for program in own] for own in written]

    monkeypatch.setattr(Respondent, "programs", programs)
    with Run(first) as run:
        searched = [Answer(right.format(index), 9, 9, 0.9) for index in range(7)]
        settings = replace(settings, systems=("zero-shot", "search"))
        summary = stage.run(
            run, settings, str(tiny), sandbox, LIMITS, None, "float32", search=lambda problems: searched
        )
        found = json.loads(run.evaluation_path.read_text())
    system, search = found["systems"]
    counts = [3, 3, 2, 1, 0, 0, 0]
    assert [(row["programs"], row["right"]) for row in system["per_problem"]] == [(4, right) for right in counts]
    assert [row["solved"] for row in system["per_problem"]] == [right > 0 for right in counts]
    assert system["ac"]["mean"] == system["pass@1"]["mean"] == pytest.approx(sum(counts) / 28)
    assert system["pass@3"]["mean"] == pytest.approx((1 + 1 + 1 + 0.75) / 7)
    assert system["per_problem"][3]["pass_rate"] == pytest.approx(1 / 4)
    assert (system["prompt_tokens"], system["completion_tokens"]) == (7 * 4 * 3, 7 * 4 * 2)
    assert search["pass@1"]["mean"] == search["ac"]["mean"] == 1 and search["pass@3"] is None
    assert summary["systems"]["zero-shot"]["pass@3"] == system["pass@3"]["mean"] and found["pass_at"] == [1, 3]


def test_a_second_run_asks_nothing(
    new_run: NewRun, tiny: Path, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = new_run("run")
    settings = EvaluateSettings(systems=("bdc", "uniform"), program_tokens=4, bootstrap=100, max_problems=2)
    first = evaluate(path, tiny, sandbox, settings)
    assert first["problems"] == ["t/0", "t/1"]
    with monkeypatch.context() as patch:
        patch.delattr(Solver, "generate")
        assert evaluate(path, tiny, sandbox, settings) == first
    with Run(path) as run:
        stage.run(run, settings, str(tiny), sandbox, LIMITS, None, "float32", inputs="another solver")
    assert len(texts(path)) == 8


def test_programs_are_judged_on_private_tests_and_stored(new_run: NewRun, sandbox: Sandbox) -> None:
    with Run(new_run("run")) as run:
        problems: list[Problem] = stage.held_out(run, 4, Progress("quiet"))
        programs = ["def f(x):\n    return x\n", "def f(x):\n    return 2 if x == 1 else -1\n", None, "def f(:\n"]
        expected = [1.0, 0.25, None, 0.0]
        verdicts = judged(run, sandbox, LIMITS, problems, programs)
        assert [verdict and verdict.pass_rate for verdict in verdicts] == expected
        rows = list(run.rows("SELECT problem_id, tests, pass_rate FROM verdicts ORDER BY problem_id"))
        assert [(row["problem_id"], row["tests"], row["pass_rate"]) for row in rows] == [
            ("t/0", "private", 1.0),
            ("t/1", "private", 0.25),
            ("t/3", "private", 0.0),
        ]
        closed = Sandbox(workers=1)
        closed.close()
        assert judged(run, closed, LIMITS, problems, programs) == verdicts


def test_bad_input_is_named(new_run: NewRun, tiny: Path, sandbox: Sandbox, tmp_path: Path) -> None:
    with Run(tmp_path / "empty", create=True) as run, pytest.raises(InputError, match="private tests"):
        stage.run(run, SETTINGS, str(tiny), sandbox, LIMITS)
    with pytest.raises(InputError, match="no-such-system"):
        evaluate(new_run("run"), tiny, sandbox, EvaluateSettings(systems=("no-such-system",)))
    with pytest.raises(InputError, match="samples is 2, all alike at temperature 0"):
        EvaluateSettings(samples=2)
    for pass_at in ((0,), (3,), (1, 1)):
        with pytest.raises(InputError, match=r"pass_at is .* from 1 to evaluate.samples, 2"):
            EvaluateSettings(samples=2, temperature=1.0, pass_at=pass_at)
    with pytest.raises(InputError, match="batch_size"):
        EvaluateSettings(batch_size=0)
    with pytest.raises(InputError, match="each once"):
        EvaluateSettings(systems=("bdc", "bdc"))
