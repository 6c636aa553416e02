"""What an LLM is to bdc: a batched, asynchronous function from chat requests to completions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

Message = dict[str, str]


@dataclass(frozen=True, slots=True)
class Request:
    """One chat completion to sample.

    ``messages`` are ``{"role": ..., "content": ...}`` in order; a final assistant message is continued, not answered.
    ``temperature`` 0 is greedy. ``top_p`` in (0, 1] keeps the smallest set of tokens with that much probability. The
    text ends before the first of the ``stop`` strings. The same request with the same ``seed`` gives the same text
    wherever the backend allows it.
    """

    messages: tuple[Message, ...]
    max_tokens: int = 256
    temperature: float = 0.8
    top_p: float = 0.95
    stop: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.stop, str):
            object.__setattr__(self, "stop", (self.stop,))

    @property
    def resumes(self) -> bool:
        """Whether the answer continues the last message."""
        return bool(self.messages) and self.messages[-1].get("role") == "assistant"


@dataclass(frozen=True, slots=True)
class Completion:
    """The answer to one request.

    ``text`` is valid Unicode without NUL characters, whatever the model wrote (see `storable`).
    ``finish_reason`` is ``stop`` (end of turn or a stop string), ``length`` (``max_tokens`` reached) or ``error`` (the
    request itself was refused, for instance a prompt beyond the context; ``text`` then says why). Numbers of tokens are
    0 where a server does not give them. ``seconds`` is wall time: from submission to answer at a server, the row's
    share of its batch's time in this process.
    """

    text: str
    prompt_tokens: int
    completion_tokens: int
    finish_reason: str
    seconds: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "text", storable(self.text))


def storable(text: str) -> str:
    """``text`` with U+FFFD for each character that no database, file or program can hold: lone surrogates and NUL."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").replace("\0", "\ufffd")


@runtime_checkable
class LLM(Protocol):
    """A backend. ``name`` is its stable identity (it includes the model); ``batch_size`` is how many requests one call
    handles at once (None: the server batches by itself, send everything)."""

    name: str
    batch_size: int | None

    async def complete(self, requests: Sequence[Request]) -> list[Completion]:
        """Completions in the order of the requests.

        Raises:
            LLMError: a call failed for good.
        """
        ...

    async def close(self) -> None:
        """Release connections or memory; the object is not used afterwards."""
        ...
