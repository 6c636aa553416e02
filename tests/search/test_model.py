"""Long random runs of every operation against a slow, obvious model of the same rules: equal paths and statistics."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field

import numpy as np
import pytest

from bdc.search import PUCB, PUCT, UCT, Forest, ForestError, Widening


@dataclass(eq=False)
class Node:
    """A node and the edge into it; every return is kept and statistics are recomputed each time."""

    id: int
    parent: Node | None
    prior: float = 1.0
    tag: int = 0
    children: list[Node] = field(default_factory=list)
    returns: list[float] = field(default_factory=list)
    visits: int = 1
    pending: int = 0
    reason: int = 0
    refined: int = 0

    def path(self) -> list[Node]:
        return ([] if self.parent is None else self.parent.path()) + [self]

    def pending_below(self) -> int:
        return sum(child.pending for child in self.children)


class Model:
    """What the documentation says, in Python."""

    def __init__(self, rule, backup, gamma, virtual_loss, widening):
        self.rule, self.backup_mode, self.gamma = rule, backup, gamma
        self.virtual_loss, self.widening = virtual_loss, widening
        self.nodes: list[Node] = []
        self.tickets: dict[int, Node] = {}
        self.next_ticket = 0

    def plant(self, n):
        return [self.add(None, 1.0, 0).id for _ in range(n)]

    def add(self, parent, prior, tag):
        node = Node(len(self.nodes), parent, prior, tag)
        self.nodes.append(node)
        if parent is not None:
            parent.children.append(node)
        return node

    def value(self, node):
        if not node.returns:
            return 0.0
        if self.backup_mode == "max":
            return max(node.returns)
        total = 0.0
        for value in node.returns:
            total += value
        return total / len(node.returns)

    def score(self, parent, edge):
        q, n, flying = self.value(edge), len(edge.returns), edge.pending
        total = parent.visits + parent.pending_below()
        rule = self.rule
        if isinstance(rule, PUCT) and n == 0:
            q = rule.fpu
            if rule.fpu_reduction is not None:
                mass = sum(child.prior for child in parent.children if child.returns)
                q = self.value(parent) - rule.fpu_reduction * math.sqrt(mass)
        if self.virtual_loss and flying:
            q -= self.virtual_loss * flying / (n + flying)
        count = n + flying
        if isinstance(rule, UCT):
            return math.inf if count == 0 else q + rule.c * math.sqrt(math.log(total) / count)
        if isinstance(rule, PUCT):
            factor = math.log((total + rule.c_base + 1) / rule.c_base) + rule.c_init
            return q + factor * edge.prior * math.sqrt(total) / (1 + count)
        beta = math.log((total + rule.c_base + 1) / rule.c_base) + rule.c
        return q + beta * edge.prior * math.sqrt(math.log(1 + total)) / (1 + count)

    def select(self, tree):
        node = self.nodes[tree]
        node.pending += 1
        while node.children:
            below = node.pending_below()
            open_ = [child for child in node.children if not child.reason]
            if self.widening is not None:
                coming = node.pending - 1 - below
                wanted = self.widening.c * (node.visits + below + coming) ** self.widening.alpha
                if len(open_) + coming < wanted:
                    break
            agents = max(child.tag for child in node.children) + 1
            turn = node.visits + below - 1
            node = min(
                open_,
                key=lambda e: (
                    -self.score(node, e),
                    -e.prior,
                    len(e.returns) + e.pending,
                    (e.tag - turn) % agents,
                    e.id,
                ),
            )
            node.pending += 1
        self.tickets[self.next_ticket] = node
        self.next_ticket += 1
        return self.next_ticket - 1, node

    def land(self, ticket):
        for node in self.tickets.pop(ticket).path():
            node.pending -= 1

    def tickets_at(self, node):
        return sorted(ticket for ticket, leaf in self.tickets.items() if leaf is node)

    def backup(self, nodes, returns, tickets=None):
        for i, node in enumerate(nodes):
            if tickets is not None:
                self.land(tickets[i])
            elif own := self.tickets_at(node):
                self.land(own[0])
            elif node.parent is not None:
                for ticket in self.tickets_at(node.parent):
                    self.land(ticket)
        for node, value in zip(nodes, returns, strict=True):
            for step in reversed(node.path()):
                step.returns.append(value)
                if step.parent is not None:
                    step.parent.visits += 1
                value *= self.gamma

    def prune(self, nodes, reason):
        for node in nodes:
            node.reason = reason
        reopened = []
        for node in nodes:
            siblings = node.parent.children
            if all(sibling.reason for sibling in siblings):
                best = min(siblings, key=lambda e: (-self.value(e), -e.prior, len(e.returns) + e.pending, e.id))
                best.reason = 0
                reopened.append(best.id)
        return reopened


def assert_same(forest: Forest, model: Model, tree: int) -> None:
    rows = forest.nodes(tree)
    for row in rows:
        node = model.nodes[row["id"]]
        want = (
            -1 if node.parent is None else node.parent.id,
            len(node.path()) - 1,
            node.tag,
            len(node.children),
            len(node.returns),
            node.visits,
            node.pending,
            node.reason,
            node.refined,
            node.prior,
            model.value(node),
            max(node.returns, default=0.0),
        )
        names = ("parent", "depth", "tag", "children", "n", "visits", "pending", "reason", "refined", "prior")
        assert tuple(row[[*names, "value", "max"]].item()) == want
    assert len(rows) == sum(node.path()[0].id == tree for node in model.nodes)


RULES = {
    "pucb-max": (PUCB(), "max", 0.9, 0.0, None),
    "pucb-mean-loss": (PUCB(3.0, 1.0), "mean", 1.0, 0.7, None),
    "pucb-widening": (PUCB(), "max", 0.9, 0.0, Widening(1.3, 0.6)),
    "puct-mean": (PUCT(fpu=0.4), "mean", 1.0, 0.0, None),
    "puct-reduction": (PUCT(19652.0, 2.0, 0.0, 0.3), "max", 0.95, 1.0, Widening(0.9, 0.4)),
    "uct-mean": (UCT(), "mean", 1.0, 0.0, None),
    "uct-max-loss": (UCT(0.5), "max", 0.9, 0.2, None),
}


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("seed", range(3))
def test_agrees_with_the_model(name: str, seed: int, tmp_path) -> None:
    rule, backup, gamma, loss, widening = RULES[name]
    rng = random.Random(f"{name}{seed}")
    forest = Forest(rule, backup, gamma, loss, widening=widening, threads=2)
    model = Model(*RULES[name])
    trees = forest.plant(4).tolist()
    assert trees == model.plant(4)
    flying = []  # (selection, row)
    for _ in range(400):
        action = rng.random()
        if action < 0.45:
            chosen = [rng.choice(trees) for _ in range(rng.randint(1, 4))]
            leaves = rng.randint(1, 3)
            selection = forest.select(chosen, leaves)
            for row in range(len(selection)):
                ticket, leaf = model.select(chosen[row // leaves])
                assert selection.path_of(row).tolist() == [node.id for node in leaf.path()]
                assert (selection.ticket[row], selection.leaf[row]) == (ticket, leaf.id)
                assert selection.depth[row] == len(leaf.path()) - 1
                flying.append((selection, row))
        elif action < 0.55 and flying:
            selection, row = flying.pop(rng.randrange(len(flying)))
            if selection.ticket[row] in model.tickets:
                forest.abandon(selection[row])
                model.land(int(selection.ticket[row]))
            else:  # landed by a child's backup
                with pytest.raises(ForestError):
                    forest.abandon(selection[row])
        elif action < 0.85 and flying:  # expand the leaves, then use (a) the new children or (b) the leaf itself
            rows = [flying.pop() for _ in range(min(len(flying), rng.randint(1, 3)))]
            rows = [(s, r) for s, r in rows if int(s.ticket[r]) in model.tickets]
            leaves = list(dict.fromkeys(int(s.leaf[r]) for s, r in rows))
            counts = [rng.choice([0, 1, 2, 3, 5]) for _ in leaves]
            priors = [rng.choice([0.0, 0.1, 0.25, 1 / 3, rng.random()]) for _ in range(sum(counts))]
            tags = [rng.randrange(3) for _ in priors]
            new = forest.expand(leaves, counts, priors, tags).tolist()
            at = 0
            for leaf, count in zip(leaves, counts, strict=True):
                for _ in range(count):
                    assert model.add(model.nodes[leaf], priors[at], tags[at]).id == new[at]
                    at += 1
            targets = [model.nodes[i] for i in new]
            tickets = None
            if rng.random() < 0.4 or not new:
                targets = [model.nodes[int(s.leaf[r])] for s, r in rows]
                tickets = [int(s.ticket[r]) for s, r in rows]
            keep = [i for i, node in enumerate(targets) if not node.reason]
            targets = [targets[i] for i in keep]
            tickets = None if tickets is None else [tickets[i] for i in keep]
            returns = [rng.choice([0.0, 0.0, 0.5, 1.0, rng.random(), -rng.random()]) for _ in targets]
            forest.backup([node.id for node in targets], returns, tickets=tickets)
            model.backup(targets, returns, tickets)
        elif action < 0.92:
            victims = [node for node in rng.sample(model.nodes, min(3, len(model.nodes))) if node.parent]
            reason = rng.randint(1, 255)
            assert forest.prune([v.id for v in victims], reason).tolist() == model.prune(victims, reason)
        elif action < 0.95:
            node = rng.choice(model.nodes)
            forest.reopen([node.id])
            node.reason = 0
        elif action < 0.98:
            node = rng.choice(model.nodes)
            if node.children:
                with pytest.raises(ForestError):
                    forest.refine([node.id])
            else:
                forest.refine([node.id])
                node.returns.clear()
                node.refined += 1
        else:  # save, load, continue
            forest.save(tmp_path / "forest")
            forest = Forest.load(tmp_path / "forest", threads=1)
        forest.check()
        assert forest.in_flight == len(model.tickets)
        assert_same(forest, model, rng.choice(trees))
    for tree in trees:
        assert_same(forest, model, tree)
    assert len(model.nodes) > 100


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
