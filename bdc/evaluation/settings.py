"""Settings of the evaluation on held-out problems."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from bdc.errors import InputError
from bdc.ranges import MOST_SEED, check_ranges

Protocol = Literal["direct", "thoughts"]

SYSTEMS = ("zero-shot", "single-lora", "nearest", "uniform", "bdc", "ties", "dare", "experts", "search")
"""Systems that every run can open; single experts, and ablations that were trained, come on top."""


def single_experts(k: int) -> list[str]:
    """The systems that are one of k experts alone."""
    return [f"expert-{index}" for index in range(k)]


def expert_of(system: str) -> int | None:
    """The index of the expert that this system is alone."""
    start, _, index = system.rpartition("-")
    return int(index) if start == "expert" and index.isdecimal() else None


@dataclass(frozen=True, slots=True)
class EvaluateSettings:
    """What is compared, and how.

    ``systems``: "zero-shot" (the base model), "single-lora" (one LoRA on all traces), "nearest", "uniform", "bdc"
    (the hypernetwork), "ties" or "dare" (all experts merged), "expert-0" and so on, or "experts" for each of them alone, the
    name of an ablation that the solver holds, or "search" (the agents' search, as slow as it is: what the solver is to replace).
    The search alone sees a problem's public tests, which steer it; it has settings and a budget of its own, those of ``[boost]``.

    ``protocol``: "direct" asks for the program at once, "thoughts" for a plan first and then for a program from it.
    ``program_tokens`` and ``thought_tokens`` bound the answers, of which ``batch_size`` are written together. A problem
    whose question and answer exceed the model's context counts as not solved, and has no loss where its solution does.

    In bfloat16 (``disentangle.dtype``) rounding moves the held-out loss by as much as some systems differ: only float32
    shows small differences.

    ``samples`` programs are written for each problem by each system but the search, and pass rate and AC are means over them;
    ``pass_at`` lists the k of pass@k, each up to ``samples``. More than one needs a ``temperature``.

    ``bootstrap`` is the number of resamples behind each interval; ``max_problems`` takes only the first so many
    problems (0: all).
    """

    systems: tuple[str, ...] = ("zero-shot", "single-lora", "nearest", "uniform", "bdc")
    protocol: Protocol = "direct"
    program_tokens: int = 192
    thought_tokens: int = 96
    temperature: float = 0.0
    samples: int = 1
    pass_at: tuple[int, ...] = ()
    batch_size: int = 48
    bootstrap: int = 2000
    max_problems: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        where = "evaluate."
        check_ranges(self, where, "batch_size", low=1)
        check_ranges(self, where, "samples", low=1, high=10_000)
        check_ranges(self, where, "program_tokens", "thought_tokens", low=1, high=1e6)
        check_ranges(self, where, "bootstrap", low=100, high=1e6)  # fewer have no 2.5th percentile to speak of
        check_ranges(self, where, "temperature", low=0, high=100)
        check_ranges(self, where, "max_problems", low=0)
        check_ranges(self, where, "seed", low=0, high=MOST_SEED)
        if self.protocol not in ("direct", "thoughts"):
            raise InputError(f"evaluate.protocol is {self.protocol!r}; use direct or thoughts")
        if self.samples > 1 and not self.temperature:
            raise InputError(
                f"evaluate.samples is {self.samples}, all alike at temperature 0; give evaluate.temperature too"
            )
        if len(set(self.pass_at)) < len(self.pass_at) or not all(1 <= k <= self.samples for k in self.pass_at):
            raise InputError(
                f"evaluate.pass_at is {list(self.pass_at)}; name each k once, from 1 to evaluate.samples, {self.samples}"
            )
        if not self.systems or len(set(self.systems)) < len(self.systems):
            raise InputError(f"evaluate.systems is {list(self.systems)}; name at least one system, and each once")
