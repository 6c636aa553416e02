"""The search loop on real problems with a scripted agent: what is asked, what is counted, what is kept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
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
from bdc.testcase import AssertTest, CallTest
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


def test_a_cap_on_calls_is_kept(tmp_path: Path, sandbox: Sandbox) -> None:
    for cap, rollouts in ((4, 0), (5, 1), (8, 1), (9, 2)):
        with Run(tmp_path / f"run{cap}", create=True) as run:
            search, broker, _ = _search(
                run, sandbox, [Scripted("a", learns=False)], budget=BudgetSettings(max_calls=cap)
            )
            (tree,) = search.run()
            assert (tree.stop, tree.rollouts) == ("budget: calls", rollouts)
            assert broker.calls <= cap and broker.replayed == 0


class Mute(Scripted):
    """It has a first thought or two, half a program for them, and no second thought."""

    def __init__(self, thoughts: str, *, refused: str = "no such prompt") -> None:
        super().__init__("a")
        self.thoughts, self.refused = thoughts, refused

    def _answer(self, prompt: str) -> str:
        if "Suggest" in prompt:
            return self.thoughts if "Steps so far" not in prompt else "I cannot:"
        return "No:" if "Rewrite step" in prompt else WRONG.replace("x * x", "2 * x if x == 1 else 0")

    async def complete(self, requests: Sequence[Request]) -> list[Completion]:
        answers = await super().complete(requests)
        prompts = [request.messages[-1]["content"] for request in requests]
        return [
            Completion("too long", 0, 0, "error", 0.0) if self.refused in prompt and "Complete" in prompt else answer
            for prompt, answer in zip(prompts, answers, strict=True)
        ]


TWO = "1. Multiply the number by itself. (9)\n2. Compare it with one. (5)"


@pytest.mark.parametrize(("thoughts", "pruned"), [(TWO, True), (TWO.partition("\n")[0], False)], ids=["two", "one"])
def test_a_dead_end_ends_there_and_not_the_search(
    thoughts: str, pruned: bool, tmp_path: Path, sandbox: Sandbox
) -> None:
    with Run(tmp_path / "run", create=True) as run:
        agent = Mute(thoughts)
        (tree,) = _search(run, sandbox, [agent], rollouts=6)[0].run()
    assert (tree.stop, tree.rollouts) == ("rollouts", 6)
    dead = [node for node in tree.nodes.values() if node.dead_end]
    assert dead and tree.dropped_proposals == len(dead)
    assert all(node.reason.count("no agent proposed") == 1 for node in dead)
    assert any(node.state == PRUNED for node in dead) == pruned  # the last open one of a family is opened again


def test_a_node_whose_calls_are_refused_leaves_the_others_their_turn(tmp_path: Path, sandbox: Sandbox) -> None:
    with Run(tmp_path / "run", create=True) as run:
        (tree,) = _search(run, sandbox, [Mute(TWO, refused="Multiply the number")], rollouts=3, prune=False)[0].run()
    refused, other = (node for node in tree.nodes.values() if len(node.thoughts) == 1)
    assert (refused.value, refused.state) == (None, PRUNED) and "no agent answered" in refused.reason
    assert other.value == 0.5


def test_an_unverified_program_solves_nothing(tmp_path: Path, sandbox: Sandbox) -> None:
    lie = "```python\nclass E:\n    def __eq__(s, o):\n        return True\n\ndef double(x):\n    return E()\n```"

    class Lying(Scripted):
        def _answer(self, prompt: str) -> str:
            return lie if "Complete" in prompt else super()._answer(prompt)

    test = AssertTest("class P:\n    pass\n\nassert double(P()) == 1", "double")
    with Run(tmp_path / "run", create=True) as run:
        search, _, _ = _search(run, sandbox, [Lying("a")], rollouts=2)
        search.trees[0].problem = replace(PROBLEM, public_tests=(test,))
        (tree,) = search.run()
    found = [program for node in tree.nodes.values() for program in node.programs]
    assert found and all(program.pass_rate == 1.0 and not program.verified for program in found)
    assert tree.stop == "rollouts" and not tree.agents_that_solved()


def test_an_agent_that_never_answers_is_named(tmp_path: Path, sandbox: Sandbox) -> None:
    with Run(tmp_path / "run", create=True) as run, pytest.raises(LLMError, match=r"agent a .* answered none"):
        _search(run, sandbox, [Scripted("a", fails=True)])[0].run()


def _picture(trees: Sequence[Tree]) -> list[tuple[object, ...]]:
    return [(n.node, n.parent, n.thoughts, n.state, n.value, n.reason) for tree in trees for n in tree.nodes.values()]
