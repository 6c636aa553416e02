"""The search as a solver of its own: for each problem the best program by its public tests, and what finding it took."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bdc.boost.agents import make_agents
from bdc.boost.broker import Broker, Spent
from bdc.boost.search import Search
from bdc.boost.settings import AgentSettings, BoostSettings
from bdc.problems import Problem
from bdc.progress import Progress
from bdc.runs import Run
from bdc.sandbox import JudgePool, Limits
from bdc.verdicts import Verifier


@dataclass(frozen=True, slots=True)
class Found:
    """A problem's program, None where no agent wrote one, and what all its calls took.

    Attributes:
        cut_short: why the search did not run to its end, if it did not: a cap of the budget, or no public tests.
    """

    program: str | None
    spent: Spent
    cut_short: str = ""


def solve(
    run: Run,
    problems: Sequence[Problem],
    settings: BoostSettings,
    agents: Sequence[AgentSettings],
    sandbox: JudgePool,
    limits: Limits,
    progress: Progress,
    *,
    stage: str,
) -> list[Found]:
    """Search as the boost stage does, without distilling; nothing is stored but ``stage``'s calls and verdicts.

    Private tests are not looked at. A problem without public tests, by which a search finds its way, has no program.

    Raises:
        InputError: an unusable agent.
        LLMError: an agent is gone.
    """
    searchable = [problem for problem in problems if problem.public_tests]
    found: dict[str, Found] = {}
    if searchable:
        with Broker(run, make_agents(agents), settings.seed, progress, stage) as broker:
            for tree in Search(searchable, broker, Verifier(run, sandbox, limits), settings, progress).run():
                ranked = tree.ranked()
                program = ranked[0][1].source if ranked else None
                spent = broker.spent_on.get(tree.problem.id, Spent())
                found[tree.problem.id] = Found(program, spent, tree.stop if tree.stop.startswith("budget") else "")
    return [found.get(problem.id, Found(None, Spent(), "no public tests")) for problem in problems]
