"""What the documentation of `Forest` says, in slow and obvious Python: every return is kept, and every statistic is
computed anew from them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from draws import Stream, finalise, mix

from bdc.search import PUCB, PUCT, UCT, GumbelRoot, Rule, Thompson, Widening


class RefusedError(Exception):
    """The forest must raise ForestError too, and stay as it is."""


@dataclass(eq=False)
class Node:
    """A node and the edge into it."""

    id: int
    parent: Node | None
    prior: float = 1.0
    tag: int = 0
    children: list[Node] = field(default_factory=list)
    returns: list[float] = field(default_factory=list)
    firsts: dict[int, list[float]] = field(default_factory=dict)  # by agent: first returns of the children it made
    visits: int = 1
    pending: int = 0
    reason: int = 0
    refined: int = 0

    def path(self) -> list[Node]:
        return ([] if self.parent is None else self.parent.path()) + [self]

    def subtree(self) -> list[Node]:
        return [self] + [node for child in self.children for node in child.subtree()]

    def pending_below(self) -> int:
        return sum(child.pending for child in self.children)

    def count(self) -> int:
        return len(self.returns) + self.pending

    def total(self) -> int:
        return self.visits + self.pending_below()

    def open(self) -> list[Node]:
        return [child for child in self.children if not child.reason]


def added(values) -> float:
    """From left to right; the builtin compensates for rounding in newer Pythons."""
    total = 0.0
    for value in values:
        total += value
    return total


def beyond_stirling(x: float) -> float:
    """What log Gamma(x) has beyond Stirling's formula."""
    more = 0.0
    while x < 8.0:
        more += (x + 0.5) * math.log1p(1.0 / x) - 1.0
        x += 1.0
    part = 1.0 / (x * x)
    return more + (1.0 / 12.0 - part * (1.0 / 360.0 - part * (1.0 / 1260.0 - part * (1.0 / 1680.0)))) / x


class Model:
    def __init__(
        self,
        rule: Rule,
        backup: str = "max",
        gamma: float = 0.9,
        virtual_loss: float = 0.0,
        seed: int = 0,
        widening: Widening | None = None,
    ) -> None:
        self.rule, self.backup_mode, self.gamma, self.seed = rule, backup, gamma, seed
        self.virtual_loss, self.widening = virtual_loss, widening
        self.nodes: dict[int, Node] = {}
        self.roots: list[Node | None] = []  # by tree, None once dropped
        self.tickets: dict[int, Node] = {}
        self.next_id = self.next_ticket = 0

    # Values and scores

    def value(self, node: Node) -> float:
        if not node.returns:
            return 0.0
        if self.backup_mode == "max":
            return max(node.returns)
        return added(node.returns) / len(node.returns)

    def q(self, edge: Node, unvisited: float = 0.0) -> float:
        q = self.value(edge) if edge.returns else unvisited
        if self.virtual_loss and edge.pending:
            q -= self.virtual_loss * edge.pending / edge.count()
        return q

    def scores(self, node: Node, tree: int) -> dict[Node, float]:
        rule, total = self.rule, node.total()
        if isinstance(rule, UCT):
            width = rule.c * math.sqrt(math.log(total))
            return {e: self.q(e) + width * (1 / math.sqrt(e.count())) if e.count() else math.inf for e in node.children}
        if isinstance(rule, PUCT):
            fpu = rule.fpu
            if rule.fpu_reduction is not None:
                mass = added(child.prior for child in node.children if child.returns)
                fpu = self.value(node) - rule.fpu_reduction * math.sqrt(mass)
            factor = (math.log((total + rule.c_base + 1) / rule.c_base) + rule.c_init) * math.sqrt(total)
            return {e: self.q(e, fpu) + factor * e.prior / (1 + e.count()) for e in node.children}
        if isinstance(rule, PUCB):
            beta = math.log((total + rule.c_base + 1) / rule.c_base) + rule.c
            factor = beta * math.sqrt(math.log(1 + total))
            return {e: self.q(e) + factor * e.prior / (1 + e.count()) for e in node.children}
        if isinstance(rule, GumbelRoot):
            return self.gumbel_scores(node, tree)
        return self.thompson_scores(node, tree)

    def thompson_scores(self, node: Node, tree: int) -> dict[Node, float]:
        """Of many children all but the first are drawn only above the best so far, block by block."""
        scores: dict[Node, float] = {}
        most = floor = -math.inf
        for place, e in enumerate(node.children):
            if place % 8 == 0:
                floor = most
            stream, n, total = Stream(self.key(tree, node, e.id)), len(e.returns), added(e.returns)
            if place < 16 or len(node.children) < 32:
                scores[e] = self.draw(stream, n, total)
            else:
                four = self.key(tree, node, node.children[place - place % 4].id)
                u = ((four >> 16 * (place % 4) & 0xFFFF) + stream.uniform()) / 65536
                scores[e] = self.draw_above(stream, u, n, total, floor)
            if not e.reason:
                most = max(most, scores[e])
        return scores

    def key(self, tree: int, node: Node, what: int) -> int:
        return finalise(mix(self.seed, mix(tree, mix(node.id, node.total()))) ^ what)

    def draw(self, stream: Stream, n: int, total: float) -> float:
        rule = self.rule
        assert isinstance(rule, Thompson)
        if rule.posterior == "beta":
            return stream.beta(rule.a + max(0.0, total), rule.b + max(0.0, n - total))
        return (rule.a + total) / (1.0 + n) + rule.b / math.sqrt(1.0 + n) * stream.normal()

    def draw_above(self, stream: Stream, u: float, n: int, total: float, floor: float) -> float:
        """A draw above the floor, or minus infinity; `u` decides most of them."""
        rule = self.rule
        assert isinstance(rule, Thompson)
        if rule.posterior == "beta":
            hit, miss, rest = rule.a + max(0.0, total), rule.b + max(0.0, n - total), 1.0 - floor
            both, fall = hit + miss, floor * (miss - 1.0) - rest * max(0.0, hit - 1.0)
            if not (floor * both > hit and fall > 0.0):
                return self.draw(stream, n, total)
            if not rest > 0.0:
                return -math.inf
            exponent = hit * math.log(floor * both / hit) + miss * math.log(rest * both / miss)
            height = hit * miss / (2.0 * math.pi * both * fall * fall)
            if math.log(u * u / height) >= 2.0 * exponent:
                return -math.inf
            if not 2.0 * exponent < -math.log(height):
                return self.draw(stream, n, total)
            wait = -math.log(stream.uniform())
            over = wait * floor * rest / fall
            if not over < rest:
                return -math.inf
            kept = wait + (hit - 1.0) * math.log1p(over / floor) + (miss - 1.0) * math.log1p(-over / rest)
            kept += beyond_stirling(both) - beyond_stirling(hit) - beyond_stirling(miss)
            return floor + over if math.log(stream.uniform()) < kept else -math.inf
        scale = rule.b / math.sqrt(1.0 + n)
        z = (floor - (rule.a + total) / (1.0 + n)) / scale
        if not z > 0.5:
            return self.draw(stream, n, total)
        if -math.log(u) <= 0.5 * z * z + math.log(z * 2.5066282746310002):
            return -math.inf
        over = -math.log(stream.uniform()) / z
        return floor + scale * over if stream.uniform() < math.exp(-0.5 * over * over) else -math.inf

    def gumbel_scores(self, node: Node, tree: int) -> dict[Node, float]:
        rule, edges = self.rule, node.children
        assert isinstance(rule, GumbelRoot)
        visits = float(sum(e.count() for e in edges))
        mass = added(e.prior for e in edges if e.returns)
        weighted = added(e.prior * self.q(e) for e in edges if e.returns)
        seen = weighted / mass if mass > 0.0 else 0.0
        mixed = (self.value(node) + visits * seen) / (1.0 + visits)
        scale = (rule.c_visit + max(e.count() for e in edges)) * rule.c_scale
        logits = {e: (math.log(e.prior) if e.prior > 0.0 else -1e9) + scale * self.q(e, mixed) for e in edges}
        if node.parent is None:
            wanted = self.halving(min(rule.considered, len(node.open())))
            done = node.total() - 1
            target = wanted[done] if done < len(wanted) else 0xFFFFFFFF
            nearest = max((e.count() for e in node.open() if e.count() <= target), default=None)
            return {
                e: logits[e] + Stream(mix(self.seed, mix(tree, e.id))).gumbel()
                if nearest is None or e.count() == nearest
                else -math.inf
                for e in edges
            }
        largest = max(logits[e] for e in node.open())
        policy = {e: 0.0 if e.reason else math.exp(logits[e] - largest) for e in edges}
        total = added(policy.values())
        return {e: policy[e] / total - e.count() / (1.0 + visits) for e in edges}

    def halving(self, considered: int) -> list[int]:
        """The paper's schedule: visits of the child that each simulation takes."""
        rule = self.rule
        assert isinstance(rule, GumbelRoot)
        wanted: list[int] = []
        visits = [0] * max(considered, 1)
        rounds = math.ceil(math.log2(considered)) if considered > 1 else 1
        alive = len(visits)
        while len(wanted) < rule.simulations:
            for _ in range(max(1, int(rule.simulations / (rounds * alive)))):
                for i in range(alive):
                    wanted.append(visits[i])
                    visits[i] += 1
            if considered > 1:
                alive = max(2, alive // 2)
        return wanted[: rule.simulations]

    def preference(self, e: Node, agents: int = 1, turn: int = 0) -> tuple:
        """Smaller is better between equal scores: larger prior, smaller n, whose turn it is, lower id."""
        return (-e.prior, e.count(), (e.tag - turn) % agents, e.id)

    # Calls

    def plant(self, n: int) -> list[int]:
        roots = [self.add(None, 1.0, 0) for _ in range(n)]
        self.roots += roots
        return [root.id for root in roots]

    def add(self, parent: Node | None, prior: float, tag: int) -> Node:
        node = self.nodes[self.next_id] = Node(self.next_id, parent, prior, tag)
        self.next_id += 1
        if parent is not None:
            parent.children.append(node)
        return node

    def select(self, root: int) -> tuple[int, Node, int]:
        """Ticket, leaf, agent."""
        node, tree = self.nodes[root], [r.id if r else -1 for r in self.roots].index(root)
        node.pending += 1
        agent = -1
        while agent < 0:
            if node.children and self.wants_width(node):
                break
            scores = self.scores(node, tree) if node.children else {}
            best = max((scores[e] for e in node.open()), default=-math.inf)
            if isinstance(self.rule, Thompson):
                agent = self.generates(node, tree, best)
            if agent >= 0 or not node.children:
                break
            agents = max(child.tag for child in node.children) + 1
            tied = [e for e in node.open() if scores[e] == best]
            turn = node.total() - 1
            node = min(tied, key=lambda e: self.preference(e, agents, turn))
            node.pending += 1
        self.tickets[self.next_ticket] = node
        self.next_ticket += 1
        return self.next_ticket - 1, node, agent

    def wants_width(self, node: Node) -> bool:
        if self.widening is None:
            return False
        coming = node.pending - 1 - node.pending_below()
        wanted = self.widening.c * math.pow(node.total() + coming, self.widening.alpha)
        return len(node.open()) + coming < wanted

    def generates(self, node: Node, tree: int, best: float) -> int:
        assert isinstance(self.rule, Thompson)
        chosen = -1
        for agent in range(self.rule.agents):
            firsts = node.firsts.get(agent, [])
            draw = self.draw(Stream(self.key(tree, node, (1 << 32) + agent)), len(firsts), added(firsts))
            if draw > best:
                best, chosen = draw, agent
        return chosen

    def expand(self, node: int, priors: list[float], tags: list[int]) -> list[int]:
        return [self.add(self.nodes[node], p, tag).id for p, tag in zip(priors, tags, strict=True)]

    def land(self, ticket: int) -> None:
        for node in self.tickets.pop(ticket).path():
            node.pending -= 1

    def tickets_at(self, node: Node | None) -> list[int]:
        return sorted(ticket for ticket, leaf in self.tickets.items() if leaf is node)

    def resolved(self, nodes: list[Node], tickets: list[int] | None, *, backup: bool) -> list[int]:
        """The tickets that a call resolves."""
        taken: list[int] = []
        for i, node in enumerate(nodes):
            if tickets is not None:
                at = self.tickets.get(tickets[i])
                fits = at is node or (backup and at is not None and at is node.parent)
                if not fits or tickets[i] in taken:
                    raise RefusedError
                taken.append(tickets[i])
                continue
            own = [ticket for ticket in self.tickets_at(node) if ticket not in taken]
            if own:
                taken.append(own[0])
            elif not backup:
                raise RefusedError
            elif node.parent is not None:
                taken += [ticket for ticket in self.tickets_at(node.parent) if ticket not in taken]
        return taken

    def backup(self, nodes: list[Node], returns: list[float], tickets: list[int] | None = None) -> None:
        if any(node.reason for node in nodes):
            raise RefusedError
        for ticket in self.resolved(nodes, tickets, backup=True):
            self.land(ticket)
        for node, value in zip(nodes, returns, strict=True):
            if node.parent is not None and not node.returns:
                node.parent.firsts.setdefault(node.tag, []).append(value)
            for step in reversed(node.path()):
                step.returns.append(value)
                if step.parent is not None:
                    step.parent.visits += 1
                value *= self.gamma

    def abandon(self, nodes: list[Node], tickets: list[int] | None = None) -> None:
        for ticket in self.resolved(nodes, tickets, backup=False):
            self.land(ticket)

    def prune(self, nodes: list[Node], reason: int) -> list[int]:
        if any(node.parent is None for node in nodes):
            raise RefusedError
        for node in nodes:
            node.reason = reason
        reopened = []
        for node in nodes:
            siblings = node.parent.children
            if all(sibling.reason for sibling in siblings):
                best = min(siblings, key=lambda e: (-self.value(e), *self.preference(e)))
                best.reason = 0
                reopened.append(best.id)
        return reopened

    def reopen(self, nodes: list[Node]) -> None:
        for node in nodes:
            node.reason = 0

    def refine(self, nodes: list[Node]) -> None:
        if any(node.children for node in nodes):
            raise RefusedError
        for node in nodes:
            node.returns.clear()
            node.refined = min(255, node.refined + 1)

    def drop(self, roots: list[int]) -> None:
        for root in dict.fromkeys(roots):
            gone = set(self.nodes[root].subtree())
            self.tickets = {ticket: leaf for ticket, leaf in self.tickets.items() if leaf not in gone}
            self.nodes = {i: node for i, node in self.nodes.items() if node not in gone}
            self.roots[self.roots.index(next(r for r in self.roots if r is not None and r.id == root))] = None

    def compact(self, drop_pruned: bool) -> list[int]:
        if drop_pruned:
            if any(node.reason for leaf in self.tickets.values() for node in leaf.path()):
                raise RefusedError
            for node in list(self.nodes.values()):
                node.children = node.open()
        kept = sorted(node.id for root in self.roots if root is not None for node in root.subtree())
        names = [-1] * self.next_id
        for new, old in enumerate(kept):
            names[old] = new
        self.nodes = {names[i]: self.nodes[i] for i in kept}
        for i, node in self.nodes.items():
            node.id = i
        self.roots = [root for root in self.roots if root is not None]
        self.next_id = len(kept)
        return names

    # Reading

    def best_path(self, root: int, by: str) -> list[int]:
        def key(e: Node) -> float:
            return {
                "value": self.value(e),
                "max": max(e.returns),
                "mean": added(e.returns) / len(e.returns),
                "visits": len(e.returns),
            }[by]

        path = [self.nodes[root]]
        while edges := [e for e in path[-1].open() if e.returns]:
            path.append(min(edges, key=lambda e: (-key(e), *self.preference(e))))
        return [node.id for node in path]

    def rows(self, root: int) -> list[tuple]:
        """The tree breadth first, in the order of `Forest.nodes`' fields."""
        order = [self.nodes[root]]
        for node in order:
            order += node.children
        depth = {order[0]: 0}
        for node in order[1:]:
            depth[node] = depth[node.parent] + 1
        return [
            (
                node.id,
                -1 if node.parent is None else node.parent.id,
                root,
                depth[node],
                node.tag,
                len(node.children),
                len(node.returns),
                node.visits,
                node.pending,
                node.reason,
                node.refined,
                node.prior,
                self.value(node),
                max(node.returns, default=0.0),
                added(node.returns) / len(node.returns) if node.returns else 0.0,
            )
            for node in order
        ]
