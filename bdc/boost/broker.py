"""The broker: sends each agent all calls of a wave together, and stores every answer before anyone uses it.

A call is identified by what was asked (agent, messages, sampling, seed), so a run that starts again replays its stored answers
without paying. A local model answers in chunks whose composition is a function of the wave alone; a chunk is stored
whole, so that a killed run continues with the same chunks and therefore the same bits.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import get_type_hints

from bdc.boost.settings import AgentSettings, BudgetSettings
from bdc.errors import LLMError
from bdc.llm import LLM, Completion, Request
from bdc.progress import Progress, Task
from bdc.runs import Run, digest, seed_of

_LOST_IN_A_ROW = 3  # calls after which an agent that had answered counts as gone
_COLUMNS = get_type_hints(Completion)  # what the store keeps of a call's answer


@dataclass(frozen=True, slots=True)
class Agent:
    """A named model taking part in the search."""

    name: str
    llm: LLM
    settings: AgentSettings


@dataclass(frozen=True, slots=True)
class Call:
    """One question to one agent; ``sample`` tells apart repeated questions."""

    agent: int
    role: str
    problem_id: str
    messages: tuple[dict[str, str], ...]
    max_tokens: int
    sample: int = 0


@dataclass(slots=True)
class Spent:
    """What answers to one problem's calls took: tokens read and written, and seconds of the agents."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0

    def add(self, answer: Completion) -> None:
        self.prompt_tokens += answer.prompt_tokens
        self.completion_tokens += answer.completion_tokens
        self.seconds += answer.seconds


class Broker:
    """Asks agents and remembers the answers in the run store; a context manager that closes the agents.

    Agents keep their models and connections, and the event loop these belong to, from the first question to the end.

    Args:
        run: the open run.
        agents: who can be asked.
        seed: base of every sampling seed.
        stage: whose calls they are in the store, and in what progress says.

    Attributes:
        spent_on: what each problem cost so far.
    """

    def __init__(self, run: Run, agents: Sequence[Agent], seed: int, progress: Progress, stage: str = "boost") -> None:
        self.run, self.agents, self.seed, self.progress, self.stage = run, agents, seed, progress, stage
        self.replayed = self.asked = self.empty = 0
        # Calls that each agent has lost since its last answer, in this start or an earlier one; none before the first.
        self._lost_since: dict[int, int] = {}
        self._lost: set[str] = set()  # keys of calls that failed for good, as opposed to those that were refused
        self._asked_now: set[str] = set()  # keys
        self._spent = {"calls": 0, "tokens": 0, "seconds": 0.0, "usd": 0.0}
        self.spent_on: dict[str, Spent] = {}  # by problem id, answers of an earlier start included
        self._paid: set[str] = set()  # keys
        self._runner = asyncio.Runner()

    def __enter__(self) -> Broker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close every agent; the broker is not used afterwards."""
        with self._runner:
            self._runner.run(self._close_agents())

    async def _close_agents(self) -> None:
        await asyncio.gather(*(agent.llm.close() for agent in self.agents))

    def key(self, call: Call) -> str:
        agent = self.agents[call.agent]
        sampling = (agent.settings.temperature, agent.settings.top_p, call.max_tokens, self.seed, call.sample)
        return digest(agent.name, agent.llm.name, call.role, call.messages, sampling)

    @property
    def lost(self) -> int:
        """Calls that failed for good."""
        return len(self._lost)

    @property
    def calls(self) -> int:
        """Answers used by this search so far, replayed ones included."""
        return int(self._spent["calls"])

    def exhausted(self, budget: BudgetSettings) -> str:
        """Name of the first cap that is reached, or an empty string.

        Counts the answers used by this search so far, replayed ones included, so that a resumed run stops where an uninterrupted one does.
        """
        caps = {
            "calls": budget.max_calls,
            "tokens": budget.max_tokens,
            "usd": budget.max_usd,
            "seconds": budget.max_seconds,
        }
        return next((name for name, cap in caps.items() if cap and self._spent[name] >= cap), "")

    def ask(self, calls: Sequence[Call], label: str) -> list[Completion]:
        """Answers in the order of ``calls``.

        Raises:
            LLMError: an agent answered none of its first calls, or lost several in a row and answered none of these; single
                failures come back with ``finish_reason == "error"``, and so do refusals (a prompt beyond the context) by
                an agent that has answered before.
        """
        keys = [self.key(call) for call in calls]
        known = self._stored(keys)
        self.replayed += sum(key in known and key not in self._asked_now for key in keys)
        missing: dict[str, Call] = {}
        for key, call in zip(keys, calls, strict=True):
            if key not in known:
                missing.setdefault(key, call)
        if missing:
            self._asked_now.update(missing)
            known |= self._runner.run(self._ask_missing(missing, label))
        self._check_answers(dict(zip(keys, calls, strict=True)), known)
        answers = [known[key] for key in keys]
        for key, call, answer in zip(keys, calls, answers, strict=True):
            self._count(call, answer)
            if key not in self._paid:  # a question that comes up again is answered from the store
                self._paid.add(key)
                self.spent_on.setdefault(call.problem_id, Spent()).add(answer)
        return answers

    def _check_answers(self, calls: dict[str, Call], answers: dict[str, Completion]) -> None:
        for index in {call.agent for call in calls.values()}:
            keys = [key for key, call in calls.items() if call.agent == index]
            if any(answers[key].finish_reason != "error" for key in keys):
                self._lost_since[index] = 0
                continue
            if (before := self._lost_since.get(index)) is not None:
                self._lost_since[index] = before + len(self._lost.intersection(keys))
                if self._lost_since[index] < _LOST_IN_A_ROW:
                    continue
            raise LLMError(
                f"agent {self.agents[index].name} ({self.agents[index].llm.name}) answered none of {len(keys)} calls: "
                f"{answers[keys[0]].text}"
            )

    def _count(self, call: Call, answer: Completion) -> None:
        settings = self.agents[call.agent].settings
        self.empty += answer.finish_reason != "error" and not answer.text.strip()
        self._spent["calls"] += 1
        self._spent["tokens"] += answer.prompt_tokens + answer.completion_tokens
        self._spent["seconds"] += answer.seconds
        self._spent["usd"] += (
            answer.prompt_tokens * settings.usd_per_million_prompt_tokens
            + answer.completion_tokens * settings.usd_per_million_completion_tokens
        ) / 1e6

    def _stored(self, keys: Sequence[str]) -> dict[str, Completion]:
        found = self.run.find("calls", keys, tuple(_COLUMNS))
        for key, row in found.items():
            for name, kind in _COLUMNS.items():
                if not isinstance(row[name], kind):  # SQLite stores what it is given
                    raise self.run.damage("calls", key, f"{name} is {row[name]!r:.100}")
        return {key: Completion(**row) for key, row in found.items()}

    async def _ask_missing(self, missing: dict[str, Call], label: str) -> dict[str, Completion]:
        by_agent: dict[int, dict[str, Call]] = {}
        for key, call in missing.items():
            by_agent.setdefault(call.agent, {})[key] = call
        answers: dict[str, Completion] = {}
        local = asyncio.Lock()  # local models share the cores: one at a time
        with self.progress.task(f"{self.stage}: {label}", total=len(missing)) as task:

            async def one_agent(index: int, calls: dict[str, Call]) -> None:
                llm = self.agents[index].llm
                # Longest first, equal prompts side by side: little padding, and one prefill for all samples of a prompt.
                order = sorted(
                    calls,
                    key=lambda k: (-sum(len(m["content"]) for m in calls[k].messages), digest(calls[k].messages), k),
                )
                if llm.batch_size is None:
                    chunks = [[key] for key in order]
                    await asyncio.gather(*(self._one_chunk(index, chunk, calls, answers, task) for chunk in chunks))
                else:
                    async with local:
                        for start in range(0, len(order), llm.batch_size):
                            chunk = order[start : start + llm.batch_size]
                            await self._one_chunk(index, chunk, calls, answers, task)

            await asyncio.gather(*(one_agent(index, calls) for index, calls in by_agent.items()))
        return answers

    async def _one_chunk(
        self, index: int, chunk: list[str], calls: dict[str, Call], answers: dict[str, Completion], task: Task
    ) -> None:
        agent = self.agents[index]
        requests = [
            Request(
                messages=calls[key].messages,
                max_tokens=calls[key].max_tokens,
                temperature=agent.settings.temperature,
                top_p=agent.settings.top_p,
                seed=seed_of(self.seed, key),
            )
            for key in chunk
        ]
        started = time.monotonic()
        try:
            completions = await agent.llm.complete(requests)
        except LLMError as error:
            completions = [Completion(str(error), 0, 0, "error", time.monotonic() - started) for _ in chunk]
            self._lost.update(chunk)
        now = time.time()
        # Beside answers a refusal is kept: asked again, it would shift the batches that are still to come.
        together = agent.llm.batch_size is not None and any(done.finish_reason != "error" for done in completions)
        rows = []
        for key, request, completion in zip(chunk, requests, completions, strict=True):
            answers[key] = completion
            if completion.finish_reason == "error" and not together:
                continue  # a failed call is asked again by the next start
            rows.append(
                {
                    "key": key,
                    "stage": self.stage,
                    "role": calls[key].role,
                    "agent": agent.name,
                    "problem_id": calls[key].problem_id,
                    "request": json.dumps(asdict(request), ensure_ascii=False),
                    "text": completion.text,
                    "finish_reason": completion.finish_reason,
                    "prompt_tokens": completion.prompt_tokens,
                    "completion_tokens": completion.completion_tokens,
                    "seconds": completion.seconds,
                    "created": now,
                }
            )
        self.run.insert("calls", rows)
        self.asked += len(rows)
        task.advance(len(chunk), agent.name)
