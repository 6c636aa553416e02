"""Settings of the search (method: arXiv 2502.12492, MC-Tree-of-Agents; reflection: arXiv 2409.09584)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


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
