"""The search loop on real problems with a scripted agent: what is asked, what is counted, what is kept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from bdc.boost.broker import Agent, Broker
from bdc.boost.distill import judge_best, preferences, traces
from bdc.boost.search import Search
from bdc.boost.settings import AgentSettings, BoostSettings, BudgetSettings
from bdc.boost.state import PRUNED, REFINED, Tree
from bdc.errors import LLMError
from bdc.llm import Completion, Request
from bdc.problems import Problem
from bdc.progress import Progress
from bdc.runs import Run
from bdc.sandbox import Limits, Sandbox
from bdc.testcase import CallTest
from bdc.verdicts import Verifier

RIGHT = "```python\ndef double(x):\n    return 2 * x\n```"
WRONG = "```python\ndef double(x):\n    return x * x\n```"
PROBLEM = Problem(
    id="t/double",
    source="t",
    statement='def double(x: int) -> int:\n    """Return twice x."""',
    entry_point="double",
    public_tests=(CallTest("double", (1,), 2), CallTest("double", (3,), 6)),
    private_tests=(CallTest("double", (5,), 10), CallTest("double", (-1,), -2)),
)


class Scripted:
    """An agent that squares until it is told to add, and counts what it is asked."""

    batch_size: int | None = 4

    def __init__(self, name: str, *, learns: bool = True, fails: bool = False) -> None:
        self.name, self.learns, self.fails, self.asked = name, learns, fails, 0

    async def complete(self, requests: Sequence[Request]) -> list[Completion]:
        self.asked += len(requests)
        if self.fails:
            raise LLMError("the server is gone")
        return [Completion(self._answer(r.messages[-1]["content"]), 10, 5, "stop", 0.1) for r in requests]

    def _answer(self, prompt: str) -> str:
        if "Rewrite step" in prompt:
            return "Add the number to itself." if self.learns else "Square it once more, please."
        if "Suggest" in prompt:
            return "1. Multiply the number by itself. (9)\n2. Square the number. (5)"
        return RIGHT if "Add the number" in prompt else WRONG

    async def close(self) -> None:
        return None


_opened: list[Broker] = []


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    yield
    while _opened:
        _opened.pop().close()


def _search(run: Run, sandbox: Sandbox, agents: list[Scripted], **settings: object) -> tuple[Search, Broker, Verifier]:
    chosen = BoostSettings(**({"rollouts": 4, "width": 2, "programs_per_agent": 1} | settings))  # type: ignore[arg-type]
    quiet = Progress("quiet")
    broker = Broker(run, [Agent(a.name, a, AgentSettings(a.name, "scripted")) for a in agents], 0, quiet)
    _opened.append(broker)
    verifier = Verifier(run, sandbox, Limits())
    return Search([PROBLEM], broker, verifier, chosen, quiet), broker, verifier


@pytest.fixture(scope="module")
def sandbox() -> Sandbox:
    with Sandbox(workers=1) as pool:
        yield pool


def test_reflection_finds_the_program_and_both_agents_verify_it(tmp_path: Path, sandbox: Sandbox) -> None:
    with Run(tmp_path / "run", create=True) as run:
        search, _, verifier = _search(run, sandbox, [Scripted("a"), Scripted("b")])
        (tree,) = search.run()
        assert tree.stop == "solved" and tree.rollouts == 1
        refined = [node for node in tree.nodes.values() if node.state == REFINED]
        assert [node.thoughts for node in refined] == [("Add the number to itself.",)]
        assert refined[0].value == 1.0 and refined[0].reason.startswith("refined from")
        judged = judge_best([tree], verifier, 2)
        rows = traces([tree], judged, {PROBLEM.id: "train"}, ["a", "b"], BoostSettings())
        assert [row["kind"] for row in rows] == ["thoughts", "program"]
        assert len({row["node"] for row in rows}) == 1


def test_a_thought_that_stays_wrong_is_pruned_and_never_distilled(tmp_path: Path, sandbox: Sandbox) -> None:
    with Run(tmp_path / "run", create=True) as run:
        search, _, verifier = _search(run, sandbox, [Scripted("a", learns=False)], max_depth=2)
        (tree,) = search.run()
        assert tree.stop == "rollouts"
        assert any(node.state == PRUNED and "not above" in node.reason for node in tree.nodes.values())
        assert traces([tree], judge_best([tree], verifier, 2), {PROBLEM.id: "train"}, ["a"], BoostSettings()) == []
        assert preferences([tree]) == []


def test_a_restart_replays_the_same_tree_and_asks_nothing(tmp_path: Path, sandbox: Sandbox) -> None:
    with Run(tmp_path / "run", create=True) as run:
        first = _search(run, sandbox, [Scripted("a"), Scripted("b")])[0].run()
    with Run(tmp_path / "run") as run:
        agents = [Scripted("a"), Scripted("b")]
        search, broker, _ = _search(run, sandbox, agents)
        assert _picture(search.run()) == _picture(first)
        assert broker.asked == 0 and broker.replayed > 0
        assert [agent.asked for agent in agents] == [0, 0]


def test_budget_stops_the_search(tmp_path: Path, sandbox: Sandbox) -> None:
    with Run(tmp_path / "run", create=True) as run:
        agents = [Scripted("a", learns=False)]
        (tree,) = _search(run, sandbox, agents, budget=BudgetSettings(max_tokens=1))[0].run()
        assert tree.stop == "budget: tokens" and tree.rollouts == 1


def test_an_agent_that_never_answers_is_named(tmp_path: Path, sandbox: Sandbox) -> None:
    with Run(tmp_path / "run", create=True) as run, pytest.raises(LLMError, match=r"agent a .* answered none"):
        _search(run, sandbox, [Scripted("a", fails=True)])[0].run()


def _picture(trees: Sequence[Tree]) -> list[tuple[object, ...]]:
    return [(n.node, n.parent, n.thoughts, n.state, n.value, n.reason) for tree in trees for n in tree.nodes.values()]
