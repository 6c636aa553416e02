"""`OpenAICompatible` over real sockets: SmolLM2 behind a local server, and what servers do when they are unwell."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
import time
from collections.abc import Sequence
from typing import Any

import pytest
from chat_server import ChatServer

from bdc.errors import InputError, LLMError
from bdc.llm import Completion, Local, OpenAICompatible, Request

pytestmark = pytest.mark.models


def ask(text: str, **settings: Any) -> Request:
    return Request(({"role": "user", "content": text},), **({"max_tokens": 6} | settings))


def run(server: ChatServer, requests: Sequence[Request], **settings: Any) -> list[Completion]:
    async def both() -> list[Completion]:
        llm = OpenAICompatible(server.url, "smollm2", **({"timeout": 30.0, "backoff": 0.01} | settings))
        try:
            return await llm.complete(requests)
        finally:
            await llm.close()

    return asyncio.run(both())


def test_answers_are_those_of_the_model(local: Local, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BDC_TEST_KEY", "secret")
    requests = [
        ask("What is the capital of France?", temperature=0, max_tokens=12),
        ask("Tell me a story.", seed=11, temperature=0.9, top_p=0.8),
        ask("Count from one to nine.", stop=("4", "four"), temperature=0, max_tokens=24),
    ]
    expected = [asyncio.run(local.complete([request]))[0] for request in requests]
    with ChatServer(local) as server:
        got = run(server, requests, api_key_env="BDC_TEST_KEY", concurrency=2, extra={"user": "tests"})
    for ours, theirs in zip(got, expected, strict=True):
        assert (ours.text, ours.finish_reason) == (theirs.text, theirs.finish_reason)
        assert (ours.prompt_tokens, ours.completion_tokens) == (theirs.prompt_tokens, theirs.completion_tokens)
        assert ours.seconds > 0
    assert server.peak == 2
    assert {body["seed"] for body in server.bodies} == {0, 11}
    assert all(body["model"] == "smollm2" and body["user"] == "tests" for body in server.bodies)
    assert all(headers["Authorization"] == "Bearer secret" for headers in server.headers)


@pytest.mark.parametrize("fault", [429, 500, 503, 520, 529, "garbage", "shape", "drop"])
def test_passing_faults_are_retried(local: Local, fault: int | str) -> None:
    with ChatServer(local, faults=[fault, fault]) as server:
        (got,) = run(server, [ask("Hi", temperature=0)])
    assert got.finish_reason == "length" and got.completion_tokens == 6
    assert len(server.bodies) == 3
    assert server.bodies[0] == server.bodies[2]


def test_a_silent_server_is_asked_again(local: Local) -> None:
    with ChatServer(local, faults=[3.0]) as server:
        (got,) = run(server, [ask("Hi", max_tokens=1)], timeout=1.5)
        assert got.completion_tokens == 1
        assert len(server.bodies) == 2


def test_an_answer_that_drips_is_not_waited_for() -> None:
    """Each byte comes within the time of one read."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def drip() -> None:
            connection, _ = server.accept()
            with connection, contextlib.suppress(OSError):
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
                for _ in range(100):
                    connection.sendall(b" ")
                    time.sleep(0.1)

        thread = threading.Thread(target=drip)
        thread.start()
        llm = OpenAICompatible(f"http://127.0.0.1:{server.getsockname()[1]}/v1", "m", retries=0, timeout=0.5)
        begin = time.perf_counter()
        with pytest.raises(LLMError, match=r"no answer within 0\.5 s"):
            asyncio.run(llm.complete([ask("Hi")]))
        assert time.perf_counter() - begin < 5
        asyncio.run(llm.close())
        thread.join()


def test_an_assistants_message_is_to_be_continued() -> None:
    begun = Request(({"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Well"}))
    with ChatServer(None, faults=[answer("a"), answer("b")]) as server:  # type: ignore[arg-type]
        run(server, [begun, ask("Hi")], concurrency=1)
    fields = [(body.get("continue_final_message"), body.get("add_generation_prompt")) for body in server.bodies]
    assert fields == [(True, False), (None, None)]


def test_retries_cannot_be_negative() -> None:
    with pytest.raises(InputError, match="retries must be at least 0"):
        OpenAICompatible("http://localhost/v1", "m", retries=-1)


def test_retry_after_is_respected(local: Local) -> None:
    with ChatServer(local, faults=[429], retry_after="0.7") as server:
        begin = time.perf_counter()
        run(server, [ask("Hi", max_tokens=1)])
        assert time.perf_counter() - begin >= 0.7


@pytest.mark.parametrize(
    ("faults", "attempts", "words"),
    [
        ([500] * 9, 3, "status 500: fault 500"),
        ([501], 1, "status 501: fault 501"),
        ([401], 1, r"status 401: fault 401 \(environment variable OPENAI_API_KEY.* is not set\)"),
        (["garbage"] * 9, 3, "unreadable answer"),
        ([2.0] * 9, 3, "no answer within 0.3 s"),
    ],
)
def test_lasting_faults_are_named(
    local: Local, faults: list[int | str | float], attempts: int, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with ChatServer(local, faults=faults) as server:
        with pytest.raises(LLMError, match=words):
            run(server, [ask("Hi")], retries=2, timeout=0.3)
        assert len(server.bodies) == attempts


def test_a_refused_request_fails_alone(local: Local) -> None:
    with ChatServer(local, faults=[400]) as server:
        first, second = run(server, [ask("Hi", max_tokens=2), ask("Hi", max_tokens=2)], concurrency=1)
    assert (first.finish_reason, first.text) == ("error", "status 400: fault 400")
    assert second.completion_tokens == 2


def test_nobody_listening_is_an_error_soon() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
    llm = OpenAICompatible(url, "m", retries=1, backoff=0.01)
    with pytest.raises(LLMError, match="after 2 attempts: ConnectError"):
        asyncio.run(llm.complete([ask("Hi")]))


def test_a_client_survives_several_event_loops(local: Local) -> None:
    with ChatServer(local) as server:
        llm = OpenAICompatible(server.url, "smollm2")
        texts = {asyncio.run(llm.complete([ask("Hi", temperature=0)]))[0].text for _ in range(2)}
    assert len(texts) == 1


def answer(content: Any, usage: Any = None, **choice: Any) -> bytes:
    """The body of an answer, escapes and all."""
    message = {"role": "assistant", "content": content}
    return json.dumps({"choices": [{"message": message, "finish_reason": "stop"} | choice], "usage": usage}).encode()


PLAIN = "Paris."


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (answer("a\ud800b\udc00"), ("a\ufffdb\ufffd", 0, 0, "stop")),
        (answer("\ud83d\ude00 \x00"), ("\U0001f600 \ufffd", 0, 0, "stop")),
        (answer(None, refusal="no"), ("", 0, 0, "stop")),
        (answer([{"type": "text", "text": "Par"}, {"type": "image_url"}, 7, "is."]), (PLAIN, 0, 0, "stop")),
        (answer({"text": 1}), ("", 0, 0, "stop")),
        (answer(PLAIN, finish_reason=None), (PLAIN, 0, 0, "stop")),
        (answer(PLAIN, finish_reason=["length"]), (PLAIN, 0, 0, "stop")),
        (answer(PLAIN, finish_reason="length"), (PLAIN, 0, 0, "length")),
        (answer(PLAIN, finish_reason="content_filter"), (PLAIN, 0, 0, "stop")),
        (answer(PLAIN, [1, 2]), (PLAIN, 0, 0, "stop")),
        (answer(PLAIN, "many"), (PLAIN, 0, 0, "stop")),
        (answer(PLAIN, {"prompt_tokens": None}), (PLAIN, 0, 0, "stop")),
        (answer(PLAIN, {"prompt_tokens": "12", "completion_tokens": -1}), (PLAIN, 0, 0, "stop")),
        (answer(PLAIN, {"prompt_tokens": 7.0, "completion_tokens": float("nan")}), (PLAIN, 7, 0, "stop")),
        (answer(PLAIN, {"prompt_tokens": True, "completion_tokens": 10**30}), (PLAIN, 0, 0, "stop")),
        (b'{"choices": [{"message": {"tool_calls": []}}]}', ("", 0, 0, "stop")),
    ],
)
def test_a_paid_answer_is_taken_whatever_is_odd_about_it(body: bytes, expected: tuple[str, int, int, str]) -> None:
    with ChatServer(None, faults=[body]) as server:  # type: ignore[arg-type]
        (got,) = run(server, [ask("Hi")], retries=0)
    assert (got.text, got.prompt_tokens, got.completion_tokens, got.finish_reason) == expected
    got.text.encode()


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"[]", "without a message"),
        (b'{"choices": [{"message": null}]}', "without a message"),
        (b'{"choices": {"0": 1}}', "without a message"),
        (b'{"error": {"message": "no credit left", "code": 402}}', "without a message: no credit left"),
        (b"[" * 100_000, "unreadable answer"),
        (b"\xff\xfe\xfa", "unreadable answer"),
        (b"", "unreadable answer"),
    ],
)
def test_what_is_no_answer_is_asked_for_again_and_named(body: bytes, words: str) -> None:
    with ChatServer(None, faults=[body] * 2) as server:  # type: ignore[arg-type]
        with pytest.raises(LLMError, match=words):
            run(server, [ask("Hi")], retries=1)
        assert len(server.bodies) == 2


def test_half_a_surrogate_pair_can_be_asked_about() -> None:
    with ChatServer(None, faults=[answer(PLAIN)]) as server:  # type: ignore[arg-type]
        (got,) = run(server, [ask("a\ud800b \U0001f600 \u00e9")], retries=0)
    assert got.text == PLAIN
    assert server.bodies[0]["messages"][0]["content"] == "a\ud800b \U0001f600 \u00e9"


@pytest.mark.parametrize("value", [{1, 2}, float("nan"), b"x"])
def test_extra_fields_must_be_json(value: object) -> None:
    with pytest.raises(InputError, match="extra has no form in JSON"):
        OpenAICompatible("http://localhost/v1", "m", extra={"field": value})


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost:8000/v1",
        "ftp://host/v1",
        "http://",
        "http:///v1",
        "http://[::1",
        "http://a b/v1",
        "http://host:99999999/v1",
        "http://host:port/v1",
        "http://host:0/v1",
        "http://.../v1",
        "http://host\n/v1",
        "http://host/v1?key=1",
        "http://host/v1/chat/completions",
        "http://\u2603/v1",
        "http://" + "a" * 300 + "/v1",
    ],
)
def test_the_url_must_be_one(url: str) -> None:
    with pytest.raises(InputError, match="base_url is"):
        OpenAICompatible(url, "m")


def test_the_key_must_be_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BDC_TEST_KEY", "sk-1\nsk-2")
    with pytest.raises(InputError, match="BDC_TEST_KEY"):
        OpenAICompatible("http://localhost/v1", "m", api_key_env="BDC_TEST_KEY")
    monkeypatch.setenv("BDC_TEST_KEY", " sk-1\n")
    llm = OpenAICompatible("http://localhost/v1", "m", api_key_env="BDC_TEST_KEY")
    assert llm._headers == {"Authorization": "Bearer sk-1"}
