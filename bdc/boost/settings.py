"""Settings of the search (method: arXiv 2502.12492, MC-Tree-of-Agents; reflection: arXiv 2409.09584)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from bdc.errors import InputError


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
        if not self.name or not self.model:
            raise InputError(f"{where}: name and model must not be empty")
        for name in ("batch_size", "concurrency"):
            if getattr(self, name) < 1:
                raise InputError(f"{where}: {name} is {getattr(self, name)}; it must be at least 1")
        if not self.temperature >= 0 or not 0 < self.top_p <= 1:
            raise InputError(
                f"{where}: temperature {self.temperature} and top_p {self.top_p} must be >= 0 and in (0, 1]"
            )
        if not self.timeout > 0:
            raise InputError(f"{where}: timeout is {self.timeout}; it must be above 0 seconds")


@dataclass(frozen=True, slots=True)
class BudgetSettings:
    """Caps on the whole search; 0 means no cap.

    Answers replayed from the run store count as well, so that a resumed search stops where an uninterrupted one does.
    ``max_seconds`` counts the seconds that agents spent answering.
    """

    max_calls: int = 0
    max_tokens: int = 0
    max_usd: float = 0.0
    max_seconds: float = 0.0

    def __post_init__(self) -> None:
        for name in ("max_calls", "max_tokens", "max_usd", "max_seconds"):
            if not getattr(self, name) >= 0:
                raise InputError(f"boost.budget.{name} is {getattr(self, name)}; it must be 0 (no cap) or more")


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
        for name in (
            "rollouts",
            "width",
            "programs_per_agent",
            "max_depth",
            "max_failures",
            "proposal_tokens",
            "program_tokens",
            "reflection_tokens",
            "traces_per_problem",
        ):
            if getattr(self, name) < 1:
                raise InputError(f"boost.{name} is {getattr(self, name)}; it must be at least 1")
        if not 0 < self.gamma <= 1:
            raise InputError(f"boost.gamma is {self.gamma}; it must lie in (0, 1]")
        if not (self.c_base > 0 and self.c > 0):
            raise InputError(f"boost.c_base and boost.c are {self.c_base} and {self.c}; they must be above 0")
        if not self.pairs or len(set(self.pairs)) < len(self.pairs):
            raise InputError(f"boost.pairs is {list(self.pairs)}; name at least one kind of pair, and each once")
