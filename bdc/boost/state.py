"""What the search knows about a tree beside its statistics: thoughts, programs, verdicts."""

from __future__ import annotations

from dataclasses import dataclass, field

from bdc.problems import Problem
from bdc.sandbox import Verdict

ROOT, OPEN, PRUNED, REFINED = "root", "open", "pruned", "refined"


@dataclass(frozen=True, slots=True)
class Program:
    """A program an agent wrote at a node; ``pass_rate`` is its share of public tests passed."""

    agent: int
    source: str
    pass_rate: float
    verified: bool = True


@dataclass(slots=True)
class Node:
    """A problem and an ordered list of thoughts; ``node`` is its id in the forest, ``verdict`` that of its best program
    on the public tests."""

    node: int
    parent: int
    thoughts: tuple[str, ...]
    agent: int
    prior: float
    state: str = OPEN
    reason: str = ""
    value: float | None = None
    programs: tuple[Program, ...] = ()
    verdict: Verdict | None = None
    expanded: bool = False
    dead_end: bool = False  # no agent knew a next thought

    @property
    def depth(self) -> int:
        return len(self.thoughts)

    @property
    def best(self) -> Program | None:
        """The first of the programs with the highest pass rate; verified ones come before others."""
        return max(self.programs, key=lambda program: (program.pass_rate, program.verified), default=None)


@dataclass(slots=True)
class Tree:
    """One problem's search."""

    index: int
    problem: Problem
    root: int
    nodes: dict[int, Node] = field(default_factory=dict)
    rollouts: int = 0
    stop: str = ""
    dropped_proposals: int = 0

    def parent_value(self, node: Node) -> float:
        """Value that a node has to beat; a root, which writes no programs, has 0."""
        return self.nodes[node.parent].value or 0.0

    def ranked(self) -> list[tuple[Node, Program]]:
        """Nodes with their best program, best first: pass rate, verified or not, mutual agreement (node value), age."""
        pairs = [(node, node.best) for node in self.nodes.values() if node.best is not None]
        found = [(node, best) for node, best in pairs if best is not None]
        return sorted(
            found, key=lambda pair: (-pair[1].pass_rate, not pair[1].verified, -(pair[0].value or 0.0), pair[0].node)
        )

    def agents_that_solved(self) -> set[int]:
        """Agents with a program that verifiably passes all public tests anywhere in the tree."""
        return {p.agent for node in self.nodes.values() for p in node.programs if p.pass_rate == 1.0 and p.verified}
