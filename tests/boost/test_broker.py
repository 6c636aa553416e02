"""Answers as servers really give them, kept in the run store: whatever is odd about one, it is paid for once."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from chat_server import ChatServer

from bdc.boost.agents import make_agents
from bdc.boost.broker import Agent, Broker, Call
from bdc.boost.settings import AgentSettings
from bdc.errors import InputError, LLMError
from bdc.llm import Completion, Request
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


@pytest.mark.parametrize(
    ("column", "value"), [("text", b"\xff"), ("prompt_tokens", "abc"), ("seconds", "abc"), ("finish_reason", b"")]
)
def test_a_damaged_answer_is_one_sentence(tmp_path: Path, column: str, value: object) -> None:
    with ChatServer(None, faults=[body("yes", None)]) as server:  # type: ignore[arg-type]
        ask(tmp_path / "run", server, 1)
        with Run(tmp_path / "run") as run, run.transaction() as db:
            db.execute(f"UPDATE calls SET {column} = ?", (value,))
        with pytest.raises(InputError, match=rf"run\.sqlite: the row .* of table calls is damaged: {column} is"):
            ask(tmp_path / "run", server, 1)


def test_an_agent_whose_calls_are_all_refused_says_why(tmp_path: Path) -> None:
    with (
        ChatServer(None, faults=[400, 400]) as server,  # type: ignore[arg-type]
        pytest.raises(LLMError, match="answered none of 2 calls: status 400: fault 400"),
    ):
        ask(tmp_path / "run", server, 2)


def test_a_refusal_by_an_agent_that_answers_others_stops_neither_the_first_run_nor_the_next(tmp_path: Path) -> None:
    """As of a prompt beyond the context; a restart asks for the refused call alone, and so does a second try."""
    with ChatServer(None, faults=[400, body("yes", None), 400, 400, 400]) as server:  # type: ignore[arg-type]
        for _ in range(2):
            answers, _ = ask(tmp_path / "run", server, 2)
            assert sorted(answer.finish_reason for answer in answers) == ["error", "stop"]
        assert len(server.bodies) == 3
        settings = AgentSettings("a", "m", "openai", base_url=server.url)
        with Run(tmp_path / "run") as run, Broker(run, make_agents([settings]), 0, Progress("quiet")) as broker:
            broker.ask([Call(0, "propose", f"p/{i}", QUESTION, 9, sample=i) for i in range(2)], "ask")
            (again,) = broker.ask([Call(0, "propose", "p/0", QUESTION, 9, sample=2)], "ask")
            assert again.finish_reason == "error"


def test_an_agent_that_answered_is_gone_after_three_lost_calls_in_a_row(tmp_path: Path) -> None:
    """A prompt at which a server fails each time, alone in its wave, must not stop the search at every restart."""
    with ChatServer(None, faults=[]) as server:  # type: ignore[arg-type]
        settings = AgentSettings("a", "m", "openai", base_url=server.url)

        def call(sample: int, *faults: object) -> Completion:
            server.faults = list(faults)  # type: ignore[arg-type]
            return broker.ask([Call(0, "propose", "p/0", QUESTION, 9, sample=sample)], "ask")[0]

        with (
            Run(tmp_path / "run", create=True) as run,
            Broker(run, make_agents([settings]), 0, Progress("quiet")) as broker,
        ):
            assert call(0, body("yes", None)).text == "yes"
            for sample in (1, 2):
                assert call(sample, 401).finish_reason == "error"
            assert call(3, body(" ", None)).text == " "
            assert [call(sample, 401).finish_reason for sample in (1, 2)] == ["error"] * 2
            assert call(4, 400).finish_reason == "error"  # a refusal is an answer of a kind
            with pytest.raises(LLMError, match=r"answered none of 1 calls: .* 401"):
                call(5, 401)
            assert (broker.lost, broker.empty, broker.asked) == (3, 1, 2)


class Short:
    """A model in this process that takes 40 characters, and breaks down at its nth batch."""

    name, batch_size = "short", 2

    def __init__(self, breaks_at: int = 0) -> None:
        self.breaks_at, self.batches = breaks_at, list[list[str]]()

    async def complete(self, requests: Sequence[Request]) -> list[Completion]:
        texts = [request.messages[0]["content"] for request in requests]
        self.batches.append([text for text in texts if len(text) <= 40])
        if len(self.batches) == self.breaks_at:
            raise RuntimeError
        return [Completion(text, 1, 1, "stop" if len(text) <= 40 else "error", 0.0) for text in texts]

    async def close(self) -> None:
        return None


def test_a_restart_asks_in_the_same_batches_also_after_a_refusal(tmp_path: Path) -> None:
    def start(directory: Path, model: Short) -> list[Completion]:
        agent = Agent("short", model, AgentSettings("short", "short"))
        calls = [Call(0, "propose", "p", ({"role": "user", "content": "x" * (41 - i)},), 9) for i in range(7)]
        with Run(directory, create=True) as run, Broker(run, [agent], 0, Progress("quiet")) as broker:
            return broker.ask(calls, "ask")

    whole, first, second = Short(), Short(breaks_at=3), Short()
    expected = start(tmp_path / "whole", whole)
    with pytest.raises(RuntimeError):
        start(tmp_path / "killed", first)
    assert start(tmp_path / "killed", second) == expected
    assert first.batches[:2] + second.batches == whole.batches
    again = Short()
    assert start(tmp_path / "killed", again) == expected and again.batches == []


def test_no_agent_is_an_error() -> None:
    with pytest.raises(InputError, match="names no agent"):
        make_agents([])
