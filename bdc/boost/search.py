"""MC-Tree-of-Agents (arXiv 2502.12492): all problems advance in waves, and each wave asks each agent once.

A wave is one rollout of every tree still searched: select a leaf; expand it if it has been evaluated before; evaluate the
new node by programs that *every* agent writes from its thoughts; reflect on it once if it is no better than its parent; back up.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bdc.boost.broker import Broker, Call
from bdc.boost.settings import BoostSettings
from bdc.boost.state import OPEN, PRUNED, REFINED, ROOT, Node, Program, Tree
from bdc.llm import prompts
from bdc.llm.parsing import extract_program, parse_proposals, parse_thought, same_thought
from bdc.problems import Problem
from bdc.progress import Progress
from bdc.search import PUCB, Forest
from bdc.verdicts import Verifier

REASON_NOT_BETTER, REASON_NO_PROPOSALS, REASON_NO_ANSWERS = 1, 2, 3
_REOPENED = "; reopened: all its siblings were pruned"


class Search:
    """The search over a list of problems.

    Args:
        problems: each with at least one public test.
        broker: asks the agents.
        verifier: judges programs.
        settings: see :class:`BoostSettings`.
    """

    def __init__(
        self,
        problems: Sequence[Problem],
        broker: Broker,
        verifier: Verifier,
        settings: BoostSettings,
        progress: Progress,
    ) -> None:
        self.broker, self.verifier, self.settings, self.progress = broker, verifier, settings, progress
        self.forest = Forest(
            rule=PUCB(c_base=settings.c_base, c=settings.c),
            backup=settings.backup,
            gamma=settings.gamma,
            seed=settings.seed,
        )
        roots = self.forest.plant(len(problems))
        self.trees = [
            Tree(i, problem, int(root)) for i, (problem, root) in enumerate(zip(problems, roots, strict=True))
        ]
        for tree in self.trees:
            tree.nodes[tree.root] = Node(tree.root, -1, (), -1, 1.0, state=ROOT)

    def run(self) -> list[Tree]:
        """Search until every tree has stopped; ``Tree.stop`` says why."""
        with self.progress.task(f"{self.broker.stage}: rollouts", total=self.settings.rollouts) as task:
            while active := [tree for tree in self.trees if not tree.stop]:
                affordable = self._affordable(active)
                if not affordable:
                    for tree in active:
                        tree.stop = f"budget: {self.broker.exhausted(self.settings.budget) or 'calls'}"
                    break
                self._wave(affordable)
                solved = sum(bool(tree.agents_that_solved()) for tree in self.trees)
                note = f"{solved}/{len(self.trees)} problems have a program that passes the public tests"
                task.update(max(tree.rollouts for tree in self.trees), note)
        return self.trees

    def _affordable(self, active: list[Tree]) -> list[Tree]:
        """The trees whose next rollout the budget allows, those with the fewest first."""
        budget, agents = self.settings.budget, len(self.broker.agents)
        if self.broker.exhausted(budget):
            return []
        if not budget.max_calls:
            return active
        most = 2 * agents * (1 + self.settings.programs_per_agent) + 1  # proposals and programs twice, one reflection
        at_once = int(budget.max_calls - self.broker.calls) // most
        return sorted(active, key=lambda tree: tree.rollouts)[:at_once]

    def _wave(self, active: list[Tree]) -> None:
        leaves = self._select(active)
        self._expand([(tree, node) for tree, node in leaves if self._wants_children(node)])
        fresh = [tree for tree, node in leaves if node.expanded and not tree.stop]
        ended = [(tree, node) for tree, node in leaves if not node.expanded and not tree.stop and node.state != PRUNED]
        chosen = ended + self._select(fresh)
        new = [(tree, node) for tree, node in chosen if node.value is None]
        self._evaluate(new)
        weak = self._reflect([(tree, node) for tree, node in new if node.value is not None])
        for tree, node in new:
            if node.value is None:  # it leaves no trace in the statistics, which would choose it again
                self._mark_pruned(tree, node, REASON_NO_ANSWERS, "no agent answered when asked for programs")
        valued = [(node.node, node.value) for _, node in chosen if node.value is not None]
        if valued:
            ids, values = zip(*valued, strict=True)
            self.forest.backup(np.array(ids), np.array(values, dtype=np.float64))
        self._prune([(tree, node) for tree, node in weak if (node.value or 0.0) <= tree.parent_value(node)])
        for tree in active:
            tree.rollouts += 1
            tree.stop = tree.stop or self._why_stop(tree)

    def _select(self, trees: list[Tree]) -> list[tuple[Tree, Node]]:
        if not trees:
            return []
        selection = self.forest.select(np.array([tree.root for tree in trees]), leaves=1)
        by_root = {tree.root: tree for tree in trees}
        found = [
            (by_root[root], leaf) for root, leaf in zip(selection.tree.tolist(), selection.leaf.tolist(), strict=True)
        ]
        leaves = [(tree, tree.nodes[leaf]) for tree, leaf in found]
        # Waves hold one leaf per tree, so nothing is pending between calls: values are backed up by node.
        self.forest.abandon(selection)
        return leaves

    def _wants_children(self, node: Node) -> bool:
        return (
            (node.state == ROOT or node.value is not None)
            and not node.expanded
            and not node.dead_end
            and node.depth < self.settings.max_depth
        )

    def _expand(self, leaves: list[tuple[Tree, Node]]) -> None:
        agents = range(len(self.broker.agents))
        found: dict[tuple[int, int], list[tuple[str, float]]] = {}
        open_questions = [(tree, node, agent) for tree, node in leaves for agent in agents]
        for attempt in range(2):  # unreadable once: asked once more, then dropped and counted
            calls = [
                Call(
                    agent,
                    "propose",
                    tree.problem.id,
                    prompts.propose(tree.problem.statement, node.thoughts, self.settings.width),
                    self.settings.proposal_tokens,
                    sample=attempt,
                )
                for tree, node, agent in open_questions
            ]
            unread = []
            answers = self.broker.ask(calls, "propose thoughts") if calls else []
            for (tree, node, agent), answer in zip(open_questions, answers, strict=True):
                proposals = parse_proposals(answer.text, self.settings.width) if answer.finish_reason != "error" else []
                if proposals:
                    total = sum(proposal.score for proposal in proposals)
                    shares = [p.score / total if total else 1 / len(proposals) for p in proposals]
                    texts = [proposal.text for proposal in proposals]
                    found[node.node, agent] = list(zip(texts, shares, strict=True))
                else:
                    unread.append((tree, node, agent))
            open_questions = unread
        for tree, _, _ in open_questions:
            tree.dropped_proposals += 1
        self._grow(leaves, found)

    def _grow(self, leaves: list[tuple[Tree, Node]], found: dict[tuple[int, int], list[tuple[str, float]]]) -> None:
        parents: list[int] = []
        counts: list[int] = []
        children: list[tuple[Tree, Node, int, str, float]] = []
        for tree, node in leaves:
            seen: set[str] = set()
            start = len(children)
            for agent in range(len(self.broker.agents)):
                for text, share in found.get((node.node, agent), []):
                    key = same_thought(text)
                    if key not in seen:
                        seen.add(key)
                        children.append((tree, node, agent, text, share / len(self.broker.agents)))
            if len(children) == start:
                self._dead_end(tree, node)
                continue
            node.expanded = True
            parents.append(node.node)
            counts.append(len(children) - start)
        if not parents:
            return
        priors, tags = np.array([child[4] for child in children]), np.array([child[2] for child in children])
        ids = self.forest.expand(np.array(parents), np.array(counts), priors, tags)
        for child, (tree, node, agent, text, prior) in zip(ids.tolist(), children, strict=True):
            tree.nodes[child] = Node(child, node.node, (*node.thoughts, text), agent, prior)

    def _dead_end(self, tree: Tree, node: Node) -> None:
        if node.state == ROOT:
            tree.stop = "no readable thought"
        else:
            node.dead_end = True
            self._mark_pruned(tree, node, REASON_NO_PROPOSALS, "no agent proposed a readable next thought")

    def _evaluate(self, nodes: list[tuple[Tree, Node]]) -> None:
        """Each agent writes programs from the thoughts, whoever proposed them; the value is their mean pass rate."""
        if not nodes:
            return
        slots = [(tree, node, agent) for tree, node in nodes for agent in range(len(self.broker.agents))]
        slots = [slot for slot in slots for _ in range(self.settings.programs_per_agent)]
        calls = [
            Call(
                agent,
                "program",
                tree.problem.id,
                prompts.program(tree.problem.statement, node.thoughts, stdin=tree.problem.entry_point is None),
                self.settings.program_tokens,
                sample=index % self.settings.programs_per_agent,
            )
            for index, (tree, node, agent) in enumerate(slots)
        ]
        answers = self.broker.ask(calls, "write programs")
        sources = [
            extract_program(answer.text, tree.problem.starter_code) if answer.finish_reason != "error" else None
            for (tree, _, _), answer in zip(slots, answers, strict=True)
        ]
        judged = [index for index, source in enumerate(sources) if source is not None]
        verdicts = self.verifier.judge([(slots[i][0].problem, sources[i] or "") for i in judged])
        by_slot = dict(zip(judged, verdicts, strict=True))
        per_node = len(self.broker.agents) * self.settings.programs_per_agent
        for position, (_, node) in enumerate(nodes):
            own = range(position * per_node, (position + 1) * per_node)
            programs = tuple(
                Program(slots[i][2], sources[i] or "", by_slot[i].pass_rate, by_slot[i].verified)
                for i in own
                if i in by_slot
            )
            answered = [i for i in own if answers[i].finish_reason != "error"]
            node.programs = programs
            # A reply without code failed every test; a call that never came back counts for nothing.
            node.value = sum(program.pass_rate for program in programs) / len(answered) if answered else None
            if programs:
                node.verdict = max((by_slot[i] for i in own if i in by_slot), key=lambda verdict: verdict.pass_rate)

    def _reflect(self, nodes: list[tuple[Tree, Node]]) -> list[tuple[Tree, Node]]:
        """Give nodes that are no better than their parent one better last thought; returns the nodes concerned."""
        weak = [(tree, node) for tree, node in nodes if self._is_weak(tree, node)]
        if not self.settings.refine or not weak:
            return weak
        ready = [(tree, node, node.verdict) for tree, node in weak if node.verdict is not None]
        calls = [
            Call(
                node.agent,
                "reflect",
                tree.problem.id,
                prompts.reflect(
                    tree.problem.statement,
                    node.thoughts,
                    verdict.feedback(self.settings.max_failures),
                ),
                self.settings.reflection_tokens,
            )
            for tree, node, verdict in ready
        ]
        answers = self.broker.ask(calls, "reflect") if calls else []
        again: list[tuple[Tree, Node, Node]] = []
        for (tree, node, _), answer in zip(ready, answers, strict=True):
            thought = parse_thought(answer.text) if answer.finish_reason != "error" else None
            if thought and thought != node.thoughts[-1]:
                again.append(
                    (tree, node, Node(node.node, node.parent, (*node.thoughts[:-1], thought), node.agent, node.prior))
                )
        self._evaluate([(tree, candidate) for tree, _, candidate in again])
        for _, node, candidate in again:
            if (candidate.value or 0.0) > (node.value or 0.0):
                node.reason = f"refined from: {node.thoughts[-1]} (value {node.value:.2f})"
                node.thoughts, node.value, node.state = candidate.thoughts, candidate.value, REFINED
                node.programs, node.verdict = candidate.programs, candidate.verdict
        return weak

    def _is_weak(self, tree: Tree, node: Node) -> bool:
        parent = tree.parent_value(node)
        return parent < 1.0 and (node.value or 0.0) <= parent

    def _prune(self, nodes: list[tuple[Tree, Node]]) -> None:
        if not self.settings.prune:
            return
        for tree, node in nodes:
            parent = tree.parent_value(node)
            self._mark_pruned(
                tree,
                node,
                REASON_NOT_BETTER,
                f"value {node.value:.2f} is not above its parent's {parent:.2f}, also after reflection",
            )

    def _mark_pruned(self, tree: Tree, node: Node, code: int, reason: str) -> None:
        reopened = self.forest.prune(np.array([node.node]), code)
        node.state = PRUNED
        if reason not in node.reason:
            node.reason = f"{reason}; {node.reason}" if node.reason else reason
        # The forest reopens the best of a family whose last open member was pruned.
        for sibling in reopened.tolist():
            tree.nodes[sibling].state = OPEN
            if _REOPENED not in tree.nodes[sibling].reason:
                tree.nodes[sibling].reason += _REOPENED

    def _why_stop(self, tree: Tree) -> str:
        if len(tree.agents_that_solved()) >= min(2, len(self.broker.agents)):
            return "solved"
        return "rollouts" if tree.rollouts >= self.settings.rollouts else ""
