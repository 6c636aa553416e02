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
        InputError: no agent, two of one name, or a server without ``base_url``.
    """
    names = [agent.name for agent in settings]
    if not names:
        raise InputError("the configuration names no agent; add at least one [[agents]] table with name and model")
    if len(set(names)) < len(names):
        raise InputError(f"agent names must differ, got {', '.join(names)}")
    return [Agent(agent.name, _backend(agent), agent) for agent in settings]


def _backend(agent: AgentSettings) -> LLM:
    if agent.backend == "openai":
        if not agent.base_url:
            raise InputError(
                f"agent {agent.name}: backend openai needs base_url, for instance http://localhost:8000/v1"
            )
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
