"""Answers as servers really give them, kept in the run store: whatever is odd about one, it is paid for once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from chat_server import ChatServer

from bdc.boost.agents import make_agents
from bdc.boost.broker import Broker, Call
from bdc.boost.settings import AgentSettings
from bdc.errors import InputError, LLMError
from bdc.llm import Completion
from bdc.progress import Progress
from bdc.runs import Run

QUESTION = ({"role": "user", "content": "Suggest something."},)


def ask(directory: Path, server: ChatServer, count: int) -> tuple[list[Completion], int]:
    """``count`` answers, and how many of them were asked for."""
    settings = AgentSettings("a", "m", "openai", base_url=server.url, concurrency=1)
    with Run(directory, create=True) as run, Broker(run, make_agents([settings]), 0, Progress("quiet")) as broker:
        answers = broker.ask([Call(0, "propose", f"p/{i}", QUESTION, 9, sample=i) for i in range(count)], "ask")
        return answers, broker.asked


def body(content: Any, usage: Any) -> bytes:
    return json.dumps({"choices": [{"message": {"content": content}}], "usage": usage}).encode()


def test_an_odd_answer_is_stored_and_never_asked_for_again(tmp_path: Path) -> None:
    odd = [
        body("1. Sort \ud800 the words. (8)", None),
        body("NUL \0 in it", {"prompt_tokens": None, "completion_tokens": "many"}),
        body(None, []),
        body([{"type": "text", "text": "in "}, {"type": "text", "text": "parts"}], {"prompt_tokens": 2**80}),
        body("x" * 5_000_000, {"prompt_tokens": 3, "completion_tokens": 4}),
    ]
    with ChatServer(None, faults=odd) as server:  # type: ignore[arg-type]
        first, asked = ask(tmp_path / "run", server, len(odd))
        assert asked == len(server.bodies) == len(odd)
        again, asked = ask(tmp_path / "run", server, len(odd))
        assert asked == 0 and len(server.bodies) == len(odd)
    assert again == first
    # Calls go out by their digests, so in another order than asked.
    assert {answer.text for answer in first} == {
        "1. Sort \ufffd the words. (8)",
        "NUL \ufffd in it",
        "",
        "in parts",
        "x" * 5_000_000,
    }
    assert sum(answer.prompt_tokens + answer.completion_tokens for answer in first) == 7


def test_an_agent_whose_calls_are_all_refused_says_why(tmp_path: Path) -> None:
    with (
        ChatServer(None, faults=[400, 400]) as server,  # type: ignore[arg-type]
        pytest.raises(LLMError, match="answered none of 2 calls: status 400: fault 400"),
    ):
        ask(tmp_path / "run", server, 2)


def test_no_agent_is_an_error() -> None:
    with pytest.raises(InputError, match="names no agent"):
        make_agents([])
