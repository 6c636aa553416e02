"""Programs that a system writes for problems, each answer stored before it is used.

Problems are answered in chunks that depend on the list of problems and the settings alone. A chunk is stored whole, so
that a killed run continues with the same batches and therefore the same bits.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from bdc.evaluation.settings import EvaluateSettings
from bdc.evaluation.systems import System
from bdc.llm import prompts
from bdc.llm.chat import encode_chat
from bdc.llm.parsing import extract_program, parse_plan
from bdc.problems import Problem
from bdc.progress import Task
from bdc.runs import Run, digest, seed_of

STAGE = "evaluate"
_ANSWER = ("text", "prompt_tokens", "completion_tokens", "seconds")
_NOT_SAMPLING = ("systems", "bootstrap", "pass_at")  # settings that change no answer


@dataclass(frozen=True, slots=True)
class Answer:
    """What a system wrote for one problem; tokens and seconds cover the plan too where there is one.

    Attributes:
        cut_short: of the search, why it did not run to its end, if it did not.
    """

    program: str | None
    prompt_tokens: int
    completion_tokens: int
    seconds: float
    cut_short: str = ""


@dataclass(frozen=True, slots=True)
class Question:
    """A problem, asked for the ``sample``-th time."""

    problem: Problem
    sample: int

    @property
    def key(self) -> tuple[Any, ...]:
        """What tells it from others in digests."""
        return (self.problem.id, self.sample) if self.sample else (self.problem.id,)


class Respondent:
    """Asks one system for programs, with the run store as memory.

    Args:
        inputs: digest of everything that the system's weights come from.
    """

    def __init__(self, run: Run, system: System, settings: EvaluateSettings, inputs: str) -> None:
        self.run, self.system, self.settings, self.inputs = run, system, settings, inputs
        self._sampling = {name: value for name, value in asdict(settings).items() if name not in _NOT_SAMPLING}

    def programs(self, problems: Sequence[Problem], task: Task) -> list[list[Answer]]:
        """The answers to each problem, in order, ``samples`` of them."""
        samples = self.settings.samples
        questions = [Question(problem, sample) for problem in problems for sample in range(samples)]
        answers: list[Answer] = []
        for start in range(0, len(questions), self.settings.batch_size):
            chunk = questions[start : start + self.settings.batch_size]
            answers += self._chunk(chunk)
            task.advance(len(chunk), self.system.name)
        return [answers[start : start + samples] for start in range(0, len(answers), samples)]

    def _chunk(self, questions: Sequence[Question]) -> list[Answer]:
        chunk = [question.problem for question in questions]
        turns = []
        steps: list[list[str]] = [[] for _ in chunk]
        if self.settings.protocol == "thoughts":
            asked = [prompts.plan(problem.statement) for problem in chunk]
            turns.append(self._ask(questions, asked, self.settings.thought_tokens))
            steps = [parse_plan(row["text"]) for row in turns[-1]]
        asked = [program_prompt(problem, thoughts) for problem, thoughts in zip(chunk, steps, strict=True)]
        turns.append(self._ask(questions, asked, self.settings.program_tokens))
        return [
            Answer(
                extract_program(rows[-1]["text"], problem.starter_code),
                sum(row["prompt_tokens"] for row in rows),
                sum(row["completion_tokens"] for row in rows),
                sum(row["seconds"] for row in rows),
            )
            for problem, rows in zip(chunk, zip(*turns, strict=True), strict=True)
        ]

    def _ask(
        self, questions: Sequence[Question], asked: Sequence[prompts.Messages], max_tokens: int
    ) -> list[dict[str, Any]]:
        keys = [
            digest(STAGE, self.inputs, self.system.name, question.key, messages, self._sampling, max_tokens)
            for question, messages in zip(questions, asked, strict=True)
        ]
        found = self.run.find("calls", keys, _ANSWER)
        if len(found) < len(keys):
            self.run.insert("calls", self._generate(questions, asked, keys, max_tokens))
            found = self.run.find("calls", keys, _ANSWER)
        return [found[key] for key in keys]

    def _generate(
        self, questions: Sequence[Question], asked: Sequence[prompts.Messages], keys: Sequence[str], max_tokens: int
    ) -> list[dict[str, Any]]:
        from bdc.llm.generate import Generation

        solver, settings = self.system.solver, self.settings
        chunk = [question.problem for question in questions]
        # The same seed for every system: differences between systems are then not differences of luck.
        seeds = [seed_of(settings.seed, *question.key) for question in questions]
        # A question beyond the model's context stays without an answer, as in the search.
        fits = [i for i, messages in enumerate(asked) if solver.fits(messages, max_tokens)]
        generations = [Generation([], "", "error") for _ in chunk]
        started = time.monotonic()
        if fits:
            generated = solver.generate(
                [asked[i] for i in fits],
                statements=[chunk[i].statement for i in fits],
                weights=self.system.weights,
                max_new_tokens=max_tokens,
                temperature=settings.temperature,
                seeds=[seeds[i] for i in fits],
            )
            for i, generation in zip(fits, generated, strict=True):
                generations[i] = generation
        seconds = (time.monotonic() - started) / len(chunk)
        return [
            {
                "key": key,
                "stage": STAGE,
                "role": self.system.name,
                "agent": "solver",
                "problem_id": problem.id,
                "request": json.dumps(
                    {
                        "messages": messages,
                        "max_tokens": max_tokens,
                        "temperature": settings.temperature,
                        "seed": seed,
                        "weights": self.system.weights,
                    },
                    ensure_ascii=False,
                ),
                "text": generation.text,
                "finish_reason": generation.finish_reason,
                "prompt_tokens": len(encode_chat(solver.tokenizer, messages)),
                "completion_tokens": len(generation.tokens),
                "seconds": seconds,
                "created": time.time(),
            }
            for key, problem, messages, generation, seed in zip(keys, chunk, asked, generations, seeds, strict=True)
        ]


def program_prompt(problem: Problem, thoughts: Sequence[str]) -> prompts.Messages:
    """The question for a program, as the experts were trained on it."""
    return prompts.program(problem.statement, thoughts, stdin=problem.entry_point is None)
