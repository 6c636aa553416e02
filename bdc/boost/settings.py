"""Settings of the search (method: arXiv 2502.12492, MC-Tree-of-Agents; reflection: arXiv 2409.09584)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from bdc.errors import InputError
from bdc.llm.openai import check_base_url
from bdc.ranges import MOST_SEED, check_ranges


@dataclass(frozen=True, slots=True)
class AgentSettings:
    """One agent: a language model with its sampling settings.

    ``backend`` is ``local`` (transformers in this process), ``openai`` (any server that speaks
    ``/v1/chat/completions``, for instance vLLM's) or ``vllm`` (vLLM in this process).
    """

    name: str
    model: str
    backend: Literal["local", "openai", "vllm"] = "local"
    base_url: str = ""
    api_key_env: str = "OPENAI_API_KEY"
    temperature: float = 0.8
    top_p: float = 0.95
    batch_size: int = 48
    concurrency: int = 64
    timeout: float = 120.0
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    usd_per_million_prompt_tokens: float = 0.0
    usd_per_million_completion_tokens: float = 0.0

    def __post_init__(self) -> None:
        where = f"agent {self.name}"
        for name in ("name", "model"):
            text = getattr(self, name)
            if not text.strip() or not text.isprintable():
                raise InputError(f"{where}: {name} is {text!r}; it must be printable text and not empty")
        check_ranges(self, f"{where}: ", "batch_size", "concurrency", low=1)
        check_ranges(self, f"{where}: ", "temperature", low=0, high=100)
        check_ranges(self, f"{where}: ", "top_p", low=0, above=True, high=1)
        check_ranges(self, f"{where}: ", "timeout", low=0, above=True, high=1e6)
        prices = ("usd_per_million_prompt_tokens", "usd_per_million_completion_tokens")
        check_ranges(self, f"{where}: ", *prices, low=0, high=math.inf, below=True)
        if self.base_url and self.backend != "openai":
            raise InputError(f'{where}: base_url is given, but backend is {self.backend}; add backend = "openai"')
        if self.backend == "openai":
            try:
                check_base_url(self.base_url)
            except InputError as error:
                raise InputError(f"{where}: {error}") from error


@dataclass(frozen=True, slots=True)
class BudgetSettings:
    """Caps on the whole search; 0 means no cap.

    ``max_calls`` is never exceeded; the others are looked at before each rollout of all problems, which may exceed them.
    Answers replayed from the run store count as well, so that a resumed search stops where an uninterrupted one does.
    ``max_seconds`` counts the seconds that agents spent answering.
    """

    max_calls: int = 0
    max_tokens: int = 0
    max_usd: float = 0.0
    max_seconds: float = 0.0

    def __post_init__(self) -> None:
        names = ("max_calls", "max_tokens", "max_usd", "max_seconds")
        check_ranges(self, "boost.budget.", *names, low=0, high=math.inf)


@dataclass(frozen=True, slots=True)
class BoostSettings:
    """Search, verification, reflection and distillation.

    ``rollouts`` counts evaluated nodes per problem (refinements excluded); ``width`` is the number of thoughts each
    agent proposes; ``programs_per_agent`` the programs each agent writes at a node; ``traces_per_problem`` the number of
    nodes, best first, whose program is tried on the private tests and distilled if it passes all of them.
    """

    rollouts: int = 16
    width: int = 3
    programs_per_agent: int = 2
    max_depth: int = 6
    gamma: float = 0.9
    c_base: float = 10.0
    c: float = 4.0
    backup: Literal["max", "mean"] = "max"
    prune: bool = True
    refine: bool = True
    max_failures: int = 5
    proposal_tokens: int = 160
    program_tokens: int = 320
    reflection_tokens: int = 96
    traces_per_problem: int = 1
    pairs: tuple[Literal["thoughts", "program", "direct"], ...] = ("thoughts", "program")
    seed: int = 0
    budget: BudgetSettings = field(default_factory=BudgetSettings)

    def __post_init__(self) -> None:
        counts = ("rollouts", "max_depth", "max_failures", "traces_per_problem")
        check_ranges(self, "boost.", *counts, low=1)
        check_ranges(self, "boost.", "width", "programs_per_agent", low=1, high=1000)
        check_ranges(self, "boost.", "proposal_tokens", "program_tokens", "reflection_tokens", low=1, high=1e6)
        check_ranges(self, "boost.", "gamma", low=0, above=True, high=1)
        check_ranges(self, "boost.", "c_base", "c", low=0, above=True, high=math.inf, below=True)
        check_ranges(self, "boost.", "seed", low=0, high=MOST_SEED)
        if not self.pairs or len(set(self.pairs)) < len(self.pairs):
            raise InputError(f"boost.pairs is {list(self.pairs)}; name at least one kind of pair, and each once")
