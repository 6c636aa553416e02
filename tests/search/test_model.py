"""Every operation mixed, against a slow, obvious model of the same rules: equal paths and equal statistics, and refused
calls that change nothing."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from model import Model, Node, RefusedError

from bdc.search import PUCB, PUCT, UCT, Forest, ForestError, GumbelRoot, Selection, Thompson, Widening

FIELDS = [
    "id",
    "parent",
    "tree",
    "depth",
    "tag",
    "children",
    "n",
    "visits",
    "pending",
    "reason",
    "refined",
    "prior",
    "value",
    "max",
    "mean",
]
SETTINGS: dict[str, dict[str, Any]] = {
    "pucb-max": {"rule": PUCB()},
    "pucb-mean-loss": {"rule": PUCB(3.0, 1.0), "backup": "mean", "gamma": 1.0, "virtual_loss": 0.7},
    "pucb-widening": {"rule": PUCB(), "widening": Widening(1.3, 0.6)},
    "puct-mean": {"rule": PUCT(fpu=0.4), "backup": "mean", "gamma": 1.0},
    "puct-reduction": {
        "rule": PUCT(19652.0, 2.0, 0.0, 0.3),
        "gamma": 0.95,
        "virtual_loss": 1.0,
        "widening": Widening(0.9, 0.4),
    },
    "uct-mean": {"rule": UCT(), "backup": "mean", "gamma": 1.0},
    "uct-max-loss": {"rule": UCT(0.5), "virtual_loss": 0.2},
    "gumbel-mean": {"rule": GumbelRoot(24, 3), "backup": "mean", "seed": 3},
    "gumbel-max-loss": {"rule": GumbelRoot(16, 8, 20.0, 0.5), "virtual_loss": 0.3, "seed": 1 << 63},
    "thompson-beta": {"rule": Thompson(2), "backup": "mean", "seed": 4},
    "thompson-sharp": {"rule": Thompson(3, "beta", 0.3, 0.4), "gamma": 1.0, "seed": 6},
    "thompson-normal": {"rule": Thompson(1, "normal", 0.5, 2.0), "seed": 5, "widening": Widening(1.0, 0.3)},
}
LARGE_RETURN = 1e9


class Dice:
    """Choices by a seeded generator; `Drawn` offers the same by hypothesis."""

    def __init__(self, seed: str) -> None:
        self.rng = random.Random(seed)

    def integer(self, low: int, high: int) -> int:
        return self.rng.randint(low, high)

    def pick(self, items: Sequence[Any]) -> Any:
        return self.rng.choice(items)

    def real(self) -> float:
        return self.rng.random()


class Drawn:
    def __init__(self, data: st.DataObject) -> None:
        self.data = data

    def integer(self, low: int, high: int) -> int:
        return self.data.draw(st.integers(low, high))

    def pick(self, items: Sequence[Any]) -> Any:
        return items[self.data.draw(st.integers(0, len(items) - 1))]

    def real(self) -> float:
        return self.data.draw(st.floats(0.0, 1.0, allow_subnormal=False))


class Duet:
    """A forest and its model, taken through the same calls."""

    def __init__(self, name: str, folder: Path, threads: int) -> None:
        self.forest, self.model = Forest(**SETTINGS[name], threads=threads), Model(**SETTINGS[name])
        self.file = folder / "forest"
        self.last: Selection | None = None  # of this forest
        rule = self.forest.rule
        self.agents = rule.agents if isinstance(rule, Thompson) else 3
        self.unit = isinstance(rule, Thompson) and rule.posterior == "beta"

    @property
    def trees(self) -> list[int]:
        return [root.id for root in self.model.roots if root is not None]

    def some(self, dice: Dice | Drawn, most: int, kind: Callable[[Node], bool] = lambda node: True) -> list[Node]:
        nodes = [node for node in self.model.nodes.values() if kind(node)]
        return [dice.pick(nodes) for _ in range(dice.integer(1, most))] if nodes else []

    def same(self, ours: Callable[[], Any], theirs: Callable[[], Any]) -> bool:
        """Both calls do it, or both refuse, the forest with nothing changed. `theirs` must check before it acts."""
        try:
            theirs()
        except RefusedError:
            self.refused(ours)
            return False
        ours()
        return True

    def refused(self, call: Callable[[], Any]) -> None:
        before = self.image()
        with pytest.raises(ForestError):
            call()
        assert self.image() == before

    def image(self) -> bytes:
        """The loader writes the lanes that nobody has looked at: a refused call may have looked at some."""
        self.forest.save(self.file)
        Forest.load(self.file).save(self.file)
        return self.file.read_bytes()

    def compare(self) -> None:
        self.forest.check()
        for tree in self.trees:
            self.assert_same(tree)

    def assert_same(self, tree: int) -> None:
        assert self.forest.nodes(tree)[FIELDS].tolist() == self.model.rows(tree)
        assert self.forest.trees.tolist() == self.trees
        assert self.forest.in_flight == len(self.model.tickets)

    # One operation each

    def plant(self, dice: Dice | Drawn) -> None:
        n = dice.integer(1, 2)
        assert self.forest.plant(n).tolist() == self.model.plant(n)

    def select(self, dice: Dice | Drawn) -> None:
        chosen = [dice.pick(self.trees) for _ in range(dice.integer(1, 4))]
        if dice.integer(0, 1):
            chosen = sorted(set(chosen))
        leaves = self.leaves(dice)
        self.selected(self.forest.select(chosen, leaves), chosen, leaves)

    @staticmethod
    def leaves(dice: Dice | Drawn) -> int:
        """Few, and now and then more than a lone tree has under way at once."""
        return dice.integer(4, 40) if dice.integer(0, 15) == 15 else dice.integer(1, 3)

    def selected(self, selection: Selection, chosen: Sequence[int], leaves: int) -> None:
        """The model selects too, and finds the same."""
        self.last = selection
        assert len(selection) == len(chosen) * leaves
        for row in range(len(selection)):
            ticket, leaf, agent = self.model.select(chosen[row // leaves])
            assert selection.path_of(row).tolist() == [node.id for node in leaf.path()]
            assert (selection.ticket[row], selection.leaf[row], selection.agent[row]) == (ticket, leaf.id, agent)
            assert (selection.tree[row], selection.depth[row]) == (chosen[row // leaves], len(leaf.path()) - 1)

    def step(self, dice: Dice | Drawn) -> None:
        """Several in a row, after a selection or whatever has come since, with all its rows or some of them."""
        if self.last is None or dice.integer(0, 2) == 0:
            self.select(dice)
        for _ in range(dice.integer(1, 3)):
            selection = self.last
            if dice.integer(0, 4) == 0:
                selection = selection[[dice.integer(0, len(selection) - 1) for _ in range(dice.integer(1, 3))]]
            self.step_from(dice, selection)

    def step_from(self, dice: Dice | Drawn, selection: Selection) -> None:
        ids, tickets = selection.leaf.tolist(), selection.ticket.tolist()
        given, counts, priors, tags = self.children(dice, len(ids))
        nodes = [self.model.nodes[i] for i in ids if i in self.model.nodes]
        returns = self.returns(dice, ids)
        leaves = self.leaves(dice)
        made: list[Selection] = []
        new: list[int] = []

        def theirs() -> None:
            if len(nodes) < len(ids) or any(node.reason for node in nodes):
                raise RefusedError
            self.model.resolved(nodes, tickets, backup=True)
            new.extend(self.grown(ids, counts, priors, tags))
            self.model.backup(nodes, returns, tickets)

        if self.same(lambda: made.append(self.forest.step(selection, **given, returns=returns, leaves=leaves)), theirs):
            assert made[0].children.tolist() == new
            trees = [*dict.fromkeys(node.path()[0].id for node in nodes)]
            self.selected(made[0], trees, leaves)

    def expand(self, dice: Dice | Drawn) -> list[Node]:
        """Where selections wait, mostly."""
        waiting = [*dict.fromkeys(self.model.tickets.values())]
        nodes = [dice.pick(waiting) for _ in range(dice.integer(1, 3))] if waiting else self.some(dice, 3)
        ids = [node.id for node in nodes]
        given, counts, priors, tags = self.children(dice, len(ids))
        made = self.forest.expand(ids, **given).tolist()
        assert made == self.grown(ids, counts, priors, tags)
        return [self.model.nodes[i] for i in made]

    def children(self, dice: Dice | Drawn, rows: int) -> tuple[dict[str, list[Any]], list[int], list[float], list[int]]:
        """The arguments of a call that adds some at so many nodes, and what they stand for."""
        counts = [dice.pick([0, 1, 2, 3, 5, 9]) for _ in range(rows)]
        if dice.integer(0, 3) == 0:
            priors = [1 / count for count in counts for _ in range(count)]
            return {"counts": counts}, counts, priors, [0] * len(priors)
        priors = [dice.pick([0.0, 0.1, 0.25, 1 / 3, dice.real()]) for _ in range(sum(counts))]
        tags = [dice.integer(0, self.agents - 1) for _ in priors]
        return {"counts": counts, "priors": priors, "tags": tags}, counts, priors, tags

    def grown(self, nodes: list[int], counts: list[int], priors: list[float], tags: list[int]) -> list[int]:
        """The model's new ids."""
        ids, at = [], 0
        for node, count in zip(nodes, counts, strict=True):
            ids += self.model.expand(node, priors[at : at + count], tags[at : at + count])
            at += count
        return ids

    def returns(self, dice: Dice | Drawn, nodes: Sequence[Any]) -> list[float]:
        values = [0.0, 0.5, 1.0, dice.real()]
        if not self.unit:
            values += [-dice.real(), LARGE_RETURN]
        return [dice.pick(values) for _ in nodes]

    def backup(self, dice: Dice | Drawn) -> None:
        """By node: any; by ticket: waiting leaves or their children."""
        if self.model.tickets and dice.integer(0, 1):
            tickets = [dice.pick([*self.model.tickets]) for _ in range(dice.integer(1, 3))]
            nodes = [dice.pick([self.model.tickets[t], *self.model.tickets[t].children]) for t in tickets]
        else:
            tickets, nodes = None, self.some(dice, 4)
        self.resolve_backup(dice, nodes, tickets)

    def resolve_backup(self, dice: Dice | Drawn, nodes: list[Node], tickets: list[int] | None) -> None:
        returns = self.returns(dice, nodes)
        self.same(
            lambda: self.forest.backup([node.id for node in nodes], returns, tickets=tickets),
            lambda: self.model.backup(nodes, returns, tickets),
        )

    def expand_and_backup(self, dice: Dice | Drawn) -> None:
        """As a search does: new children take the returns, and with them their parents' tickets."""
        self.resolve_backup(dice, self.expand(dice), None)

    def abandon(self, dice: Dice | Drawn) -> None:
        if self.model.tickets and dice.integer(0, 3):
            tickets = [dice.pick([*self.model.tickets]) for _ in range(dice.integer(1, 3))]
            nodes = [self.model.tickets[t] for t in tickets]
            given = tickets if dice.integer(0, 1) else None
        else:
            given, nodes = None, self.some(dice, 2)
        self.same(
            lambda: self.forest.abandon([node.id for node in nodes], tickets=given),
            lambda: self.model.abandon(nodes, given),
        )

    def prune(self, dice: Dice | Drawn) -> None:
        nodes, reason = self.some(dice, 4), dice.integer(1, 255)
        found: list[list[int]] = []
        self.same(
            lambda: found.append(self.forest.prune([node.id for node in nodes], reason).tolist()),
            lambda: found.append(self.model.prune(nodes, reason)),
        )
        assert not found or found[0] == found[1]

    def reopen(self, dice: Dice | Drawn) -> None:
        nodes = self.some(dice, 3, lambda node: bool(node.reason)) or self.some(dice, 1)
        self.forest.reopen([node.id for node in nodes])
        self.model.reopen(nodes)

    def refine(self, dice: Dice | Drawn) -> None:
        nodes = self.some(dice, 2, lambda node: not node.children or dice.integer(0, 20) == 0)
        self.same(lambda: self.forest.refine([node.id for node in nodes]), lambda: self.model.refine(nodes))

    def drop(self, dice: Dice | Drawn) -> None:
        roots = [dice.pick(self.trees) for _ in range(dice.integer(1, 2))]
        self.forest.drop(roots)
        self.model.drop(roots)

    def compact(self, dice: Dice | Drawn) -> None:
        drop_pruned = bool(dice.integer(0, 1))
        names: list[list[int]] = []
        self.same(
            lambda: names.append(self.forest.compact(drop_pruned=drop_pruned).tolist()),
            lambda: names.append(self.model.compact(drop_pruned)),
        )
        assert not names or names[0] == names[1]

    def save_and_load(self, dice: Dice | Drawn) -> None:
        self.forest.save(self.file)
        self.forest = Forest.load(self.file, threads=dice.integer(1, 3))

    def look(self, dice: Dice | Drawn) -> None:
        tree = dice.pick(self.trees)
        for by in ("value", "max", "mean", "visits"):
            assert self.forest.best_path(tree, by=by).tolist() == self.model.best_path(tree, by)
        node = dice.pick([*self.model.nodes.values()])
        assert self.forest.children(node.id)["id"].tolist() == [child.id for child in node.children]

    def bad_call(self, dice: Dice | Drawn) -> None:
        """One bad item among good ones."""
        good = [node.id for node in self.some(dice, 3, lambda node: not node.reason)]
        at = dice.integer(0, len(good))
        unknown = dice.pick([-1, self.model.next_id, 1 << 40])
        nodes = [*good[:at], unknown, *good[at:]]
        zeros = [0.0] * len(nodes)
        spoiled = [0.5] * len(good)
        spoiled[dice.integer(0, len(good) - 1)] = dice.pick([float("nan"), float("inf"), -float("inf")])
        forest = self.forest
        calls: list[Callable[[], Any]] = [
            lambda: forest.select([self.trees[0], unknown], 2),
            lambda: forest.select([self.trees[0]], -1),
            lambda: forest.expand(nodes, 2),
            lambda: forest.expand(good, [2] * len(good) + [1]),
            lambda: forest.expand(good, -1),
            lambda: forest.expand(good, 1, [abs(value) if value < 0 else value for value in spoiled]),
            lambda: forest.expand(good, 1, None, [65536] * len(good)),
            lambda: forest.expand(good, 5000),
            lambda: forest.backup(nodes, zeros),
            lambda: forest.backup(good, spoiled),
            lambda: forest.backup(good, [0.0] * (len(good) + 1)),
            lambda: forest.backup(good, [0.0] * len(good), tickets=[self.model.next_ticket] * len(good)),
            lambda: forest.step(forest.select([]), 1, [0.5]),
            lambda: forest.abandon(nodes),
            lambda: forest.prune(nodes),
            lambda: forest.prune([*good, self.trees[0]]),
            lambda: forest.prune(good, 0),
            lambda: forest.reopen(nodes),
            lambda: forest.refine(nodes),
            lambda: forest.drop([self.trees[-1], unknown]),
        ]
        self.refused(dice.pick(calls))


WEIGHTS = {
    Duet.select: 30,
    Duet.step: 12,
    Duet.expand: 5,
    Duet.backup: 18,
    Duet.expand_and_backup: 25,
    Duet.abandon: 8,
    Duet.prune: 5,
    Duet.reopen: 2,
    Duet.refine: 3,
    Duet.plant: 1,
    Duet.drop: 1,
    Duet.compact: 2,
    Duet.save_and_load: 2,
    Duet.look: 3,
    Duet.bad_call: 3,
}


def long_run(name: str, seed: int, steps: int, folder: Path) -> None:
    """Looked at after every step, or rarely: children that nobody looks at stay unwritten."""
    every = 1 if seed % 2 == 0 else 25
    dice = Dice(f"{name}{seed}")
    duet = Duet(name, folder, threads=2)
    duet.forest.plant(4)
    duet.model.plant(4)
    seen = 0
    for done in range(steps):
        (action,) = dice.rng.choices([*WEIGHTS], [*WEIGHTS.values()])
        if action is Duet.drop and len(duet.trees) < 3:
            continue
        action(duet, dice)
        if done % every == 0:
            duet.forest.check()
            duet.assert_same(dice.pick(duet.trees))
        seen = max(seen, len(duet.model.nodes))
    duet.compare()
    assert seen > 50


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("seed", range(2))
def test_long_random_runs_agree(name: str, seed: int, tmp_path: Path) -> None:
    long_run(name, seed, 250, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", SETTINGS)
def test_longer_random_runs_agree(name: str, tmp_path: Path) -> None:
    for seed in range(100, 108):
        long_run(name, seed, 1500, tmp_path)


class Machine(RuleBasedStateMachine):
    """Any order of any calls; hypothesis shrinks what fails."""

    @initialize(name=st.sampled_from([*SETTINGS]), threads=st.integers(1, 3), closely=st.booleans())
    def start(self, name: str, threads: int, closely: bool) -> None:
        self.closely = closely  # children that nobody looks at stay unwritten
        self.folder = tempfile.TemporaryDirectory()
        self.duet = Duet(name, Path(self.folder.name), threads)
        self.duet.forest.plant(2)
        self.duet.model.plant(2)

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            self.duet.compare()
            self.folder.cleanup()

    @rule(data=st.data())
    def plant(self, data: st.DataObject) -> None:
        self.duet.plant(Drawn(data))

    @rule(data=st.data())
    def select(self, data: st.DataObject) -> None:
        self.duet.select(Drawn(data))

    @rule(data=st.data())
    def step(self, data: st.DataObject) -> None:
        self.duet.step(Drawn(data))

    @rule(data=st.data())
    def expand(self, data: st.DataObject) -> None:
        self.duet.expand(Drawn(data))

    @rule(data=st.data())
    def backup(self, data: st.DataObject) -> None:
        self.duet.backup(Drawn(data))

    @rule(data=st.data())
    def expand_and_backup(self, data: st.DataObject) -> None:
        self.duet.expand_and_backup(Drawn(data))

    @rule(data=st.data())
    def abandon(self, data: st.DataObject) -> None:
        self.duet.abandon(Drawn(data))

    @rule(data=st.data())
    def prune(self, data: st.DataObject) -> None:
        self.duet.prune(Drawn(data))

    @rule(data=st.data())
    def reopen(self, data: st.DataObject) -> None:
        self.duet.reopen(Drawn(data))

    @rule(data=st.data())
    def refine(self, data: st.DataObject) -> None:
        self.duet.refine(Drawn(data))

    @precondition(lambda self: len(self.duet.trees) > 2)
    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        self.duet.drop(Drawn(data))

    @rule(data=st.data())
    def compact(self, data: st.DataObject) -> None:
        self.duet.compact(Drawn(data))

    @rule(data=st.data())
    def save_and_load(self, data: st.DataObject) -> None:
        self.duet.save_and_load(Drawn(data))

    @rule(data=st.data())
    def look(self, data: st.DataObject) -> None:
        self.duet.look(Drawn(data))

    @rule(data=st.data())
    def bad_call(self, data: st.DataObject) -> None:
        self.duet.bad_call(Drawn(data))

    @invariant()
    def agree(self) -> None:
        if hasattr(self, "duet") and self.closely:
            self.duet.compare()


HEALTH = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]


def test_state_machine() -> None:
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=60, stateful_step_count=30, deadline=None, derandomize=True, suppress_health_check=HEALTH
        ),
    )


@pytest.mark.slow
def test_state_machine_at_length() -> None:
    run_state_machine_as_test(
        Machine,
        settings=settings(max_examples=1500, stateful_step_count=60, deadline=None, suppress_health_check=HEALTH),
    )


def test_children_and_best_path() -> None:
    forest = Forest(PUCB(), gamma=0.5)
    (root,) = forest.plant(1)
    a, b = forest.expand([root], 2, [0.7, 0.3], [0, 1])
    (c,) = forest.expand([b], 1)
    forest.backup([a, a, c], [0.6, 0.0, 0.8])
    rows = forest.children(root)
    assert rows["id"].tolist() == [a, b]
    assert rows["n"].tolist() == [2, 1]
    np.testing.assert_allclose(rows["value"], [0.6, 0.4])
    np.testing.assert_allclose(rows["mean"], [0.3, 0.4])
    assert forest.rows([root])["visits"][0] == 4  # 1 + two returns through a, one through b
    assert forest.best_path(root).tolist() == [root, a]
    assert forest.best_path(root, by="mean").tolist() == [root, b, c]
    assert forest.best_path(root, by="visits").tolist() == [root, a]
    forest.prune([a])
    assert forest.best_path(root).tolist() == [root, b, c]
