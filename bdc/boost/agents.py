"""From settings to agents: which backend serves which model."""

from __future__ import annotations

from collections.abc import Sequence

from bdc.boost.broker import Agent
from bdc.boost.settings import AgentSettings
from bdc.errors import InputError
from bdc.llm import LLM, VLLM, Local, OpenAICompatible


def make_agents(settings: Sequence[AgentSettings]) -> list[Agent]:
    """Agents in the order given.

    Raises:
        InputError: no agent.
        MissingExtraError: a backend's package is not installed.
    """
    if not settings:
        raise InputError("the configuration names no agent; add at least one [[agents]] table with name and model")
    return [Agent(agent.name, _backend(agent), agent) for agent in settings]


def _backend(agent: AgentSettings) -> LLM:
    if agent.backend == "openai":
        return OpenAICompatible(
            agent.base_url,
            agent.model,
            api_key_env=agent.api_key_env,
            concurrency=agent.concurrency,
            timeout=agent.timeout,
        )
    if agent.backend == "vllm":
        return VLLM(agent.model)
    return Local(agent.model, dtype=agent.dtype, batch_size=agent.batch_size)
