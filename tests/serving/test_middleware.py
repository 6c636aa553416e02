"""What vLLM's server sees of a request, and what the client gets told instead."""

from __future__ import annotations

import asyncio
import json
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from bdc import Solver
from bdc.errors import InputError
from bdc.serving import Gate, Middleware
from bdc.serving.wire import KEY, cache_salt, decode

CHAT = "/v1/chat/completions"
RESULT = {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "1", "content": "3"}]}
PART = {"type": "input_text", "text": "sort numbers"}


class Server:
    """An ASGI application that keeps what it got, behind the middleware."""

    def __init__(self, gate: Gate) -> None:
        self.seen: list[dict[str, Any]] = []
        self.middleware = Middleware(self._app, gate, "plain")

    async def _app(self, scope: Any, receive: Any, send: Any) -> None:
        message = await receive()
        assert dict(scope["headers"])[b"content-length"] == str(len(message["body"])).encode()
        self.seen.append(json.loads(message["body"]))
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})

    async def post(self, path: str, body: Any, chunks: int = 1) -> tuple[int, Any]:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        size = -(-len(data) // chunks)
        parts = [
            {"type": "http.request", "body": data[start : start + size], "more_body": start + size < len(data)}
            for start in range(0, len(data), size)
        ]
        sent: list[dict[str, Any]] = []

        async def receive() -> Any:
            return parts.pop(0)

        async def send(message: Any) -> None:
            sent.append(message)

        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(data)).encode())]
        await self.middleware({"type": "http", "method": "POST", "path": path, "headers": headers}, receive, send)
        return sent[0]["status"], json.loads(sent[1]["body"])


@pytest.fixture(scope="module")
def gate(everywhere: Path) -> Gate:
    return Gate.from_pretrained(everywhere)


@pytest.fixture
def server(gate: Gate) -> Server:
    return Server(gate)


def _chat(text: str, **others: Any) -> dict[str, Any]:
    return {"model": "run", "messages": [{"role": "user", "content": text}], **others}


def test_rank_weights_are_the_solvers(everywhere: Path, server: Server, gate: Gate) -> None:
    solver = Solver.from_pretrained(everywhere)
    history = [{"role": "user", "content": "old"}, {"role": "assistant", "content": "yes"}]
    parts = [{"type": "text", "text": "sort numbers"}]
    bodies = [
        (CHAT, _chat("sort numbers")),
        (CHAT, {"model": "run", "messages": [*history, {"role": "user", "content": "sort numbers"}]}),
        (CHAT, {"model": "run", "messages": [{"role": "user", "content": parts}]}),
        (CHAT, _chat("Please: sort numbers", bdc_statement="sort numbers")),
        ("/v1/completions", {"model": "run", "prompt": "sort numbers"}),
        ("/v1/completions", {"model": "run", "prompt": ["sort numbers"]}),
        ("/v1/messages", {"model": "run", "messages": [*history, {"role": "user", "content": parts}], "max_tokens": 4}),
        ("/v1/messages", {"model": "run", "messages": [{"role": "user", "content": "sort numbers"}, RESULT]}),
        ("/v1/responses", {"model": "run", "input": "sort numbers"}),
        ("/v1/responses", {"model": "run", "input": [*history, {"role": "user", "content": [PART]}]}),
        (CHAT, _chat("sort numbers", bdc_weights=1)),
        (CHAT, _chat("sort numbers", bdc_weights="nearest", temperature=0.5, vllm_xargs={"other": 1})),
    ]

    async def run() -> None:
        for index, (path, body) in enumerate(bodies):
            assert await server.post(path, body, chunks=index + 1) == (200, {})

    asyncio.run(run())
    chosen: list[Any] = ["hypernetwork"] * 10 + [1, "nearest"]
    expected = solver.rank_weights(["sort numbers"] * len(bodies), weights=chosen)
    for (_, body), seen, weights in zip(bodies, server.seen, expected, strict=True):
        found = decode(seen["vllm_xargs"], weights.numel())
        assert found is not None
        torch.testing.assert_close(found, weights.flatten(), rtol=1e-5, atol=1e-6)
        assert not {"bdc_weights", "bdc_statement"} & seen.keys()
        given = {k: v for k, v in body.items() if not k.startswith("bdc_") and k != "vllm_xargs"}
        assert given == {k: seen[k] for k in given}
    assert server.seen[-1]["vllm_xargs"]["other"] == 1
    salts = [seen["cache_salt"] for seen in server.seen]
    assert len(set(salts[:10])) == 1 and len(set(salts)) == 3


def test_the_base_model_has_no_rank_weights(server: Server) -> None:
    bodies = [_chat("hello") | {"model": "plain"}, _chat("hello", bdc_weights="none", cache_salt="mine")]
    for body in bodies:
        assert asyncio.run(server.post(CHAT, body))[0] == 200
    assert asyncio.run(server.post("/v1/responses", {"model": "plain", "input": "hello"}))[0] == 200
    assert asyncio.run(server.post("/invocations", {"model": "plain", "prompt": "hello"}))[0] == 200
    assert asyncio.run(server.post("/tokenize", {"model": "run", "prompt": "hello"}))[0] == 200
    assert all("vllm_xargs" not in seen for seen in server.seen)
    salts = [seen.get("cache_salt") for seen in server.seen]
    assert salts == [None, cache_salt("", "mine"), None, None, None] and salts[1] != "mine"
    asyncio.run(server.post(CHAT, _chat("hello", cache_salt="mine")))
    asyncio.run(server.post(CHAT, _chat("hello")))
    solvers = server.seen[-1]["cache_salt"]
    assert "mine" != solvers != server.seen[-2]["cache_salt"] != "mine"
    # Nor can the base model put its prefixes where a solver's are.
    asyncio.run(server.post(CHAT, _chat("hello", bdc_weights="none", cache_salt=solvers)))
    assert server.seen[-1]["cache_salt"] != solvers


@pytest.mark.parametrize(
    "body", [b"{", b"[]", b"\xff", b"[" * 100_000, b'{"messages": 1, "vllm_xargs": 3}', b'{"cache_salt": 4}']
)
def test_what_is_no_request_is_vllms_to_refuse(server: Server, body: bytes) -> None:
    seen: list[bytes] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append((await receive())["body"])
        await send({"type": "http.response.start", "status": 422, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})

    server.middleware.app = app
    assert asyncio.run(server.post(CHAT, body)) == (422, {})
    assert seen == [body]


@pytest.mark.parametrize(
    ("path", "body", "says"),
    [
        (CHAT, _chat("x", bdc_weights="best"), "no weights 'best'; use hypernetwork, uniform"),
        (CHAT, _chat("x", bdc_weights=3), "expert 3 does not exist"),
        (CHAT, _chat("x", bdc_weights=[1, 2]), "weights must be names or indices"),
        (CHAT, _chat("x", bdc_statement=7), "bdc_statement must be text, got int"),
        (CHAT, _chat("x", vllm_xargs={KEY: "AAAA"}), "not for clients to set"),
        (CHAT, _chat("x", use_beam_search=True, n=2), "use_beam_search is not customised"),
        (CHAT, {"model": "run", "messages": []}, "hold no text of the user"),
        (CHAT, {"model": "run"}, "hold no text of the user"),
        (CHAT, {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "hold no text of the user"),
        ("/v1/completions", {"prompt": ["a", "b"]}, "prompt must be one text"),
        ("/v1/completions", {"prompt": [1, 2]}, "prompt must be one text"),
        ("/v1/responses", {"model": "run", "input": 3}, "hold no text of the user"),
        ("/invocations", _chat("x"), "/invocations is not customised; use /v1/chat/completions, /v1/completions"),
    ],
)
def test_a_request_without_rank_weights_is_told_why(server: Server, path: str, body: Any, says: str) -> None:
    status, answer = asyncio.run(server.post(path, body))
    assert status == 400 and says in answer["error"]["message"]
    assert server.seen == []


def test_requests_that_come_together_are_encoded_together(
    server: Server, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While one batch is encoded the next gathers; what fails in it fails alone."""
    first = threading.Event()
    sizes: list[int] = []
    plain = gate.tickets

    def slow(statements: Any, *others: Any) -> Any:
        sizes.append(len(statements))
        if "first" in statements:
            assert first.wait(10)
        if "bad" in statements:
            raise InputError("a bad statement")
        return plain(statements, *others)

    monkeypatch.setattr(gate, "tickets", slow)

    async def run() -> list[tuple[int, Any]]:
        tasks = [asyncio.create_task(server.post(CHAT, _chat("first")))]
        await asyncio.sleep(0.2)
        texts = [*(f"number {i}" for i in range(5)), "bad"]
        tasks += [asyncio.create_task(server.post(CHAT, _chat(text))) for text in texts]
        gone = asyncio.create_task(server.post(CHAT, _chat("gone")))
        await asyncio.sleep(0.2)
        gone.cancel()
        first.set()
        return await asyncio.gather(*tasks)

    answers = asyncio.run(run())
    assert [status for status, _ in answers] == [200] * 6 + [400]
    assert sizes[:2] == [1, 7] and sizes[2:] == [1] * 7
    assert len(server.seen) == 6


class ExceptionMiddleware:
    """What Starlette has of that name before its routes."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self.app(scope, receive, send)


class Doorkeeper(ExceptionMiddleware):
    """Lets nobody in; as vLLM does with those who have no key."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if not scope["path"].endswith("completions"):
            await super().__call__(scope, receive, send)
            return
        await send({"type": "http.response.start", "status": 401, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})


def test_it_goes_behind_those_that_refuse(server: Server, gate: Gate) -> None:
    server.middleware = Middleware(Doorkeeper(Doorkeeper(ExceptionMiddleware(server._app))), gate, "plain")
    assert asyncio.run(server.post(CHAT, _chat("x", bdc_weights="best"))) == (401, {})
    assert asyncio.run(server.post("/v1/responses", {"input": "x", "bdc_weights": "best"}))[0] == 400
    assert asyncio.run(server.post("/v1/responses", {"input": "sort"}))[0] == 200
    assert [KEY in seen["vllm_xargs"] for seen in server.seen] == [True]


def test_what_is_no_post_passes(gate: Gate) -> None:
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append((scope, receive))

    scopes = [{"type": "lifespan"}, {"type": "http", "method": "GET", "path": CHAT}]
    for scope in scopes:
        asyncio.run(Middleware(app, gate)(scope, None, None))  # type: ignore[arg-type]
    assert [scope for scope, _ in seen] == scopes


def test_a_client_that_goes_is_not_answered(server: Server) -> None:
    async def receive() -> Any:
        return {"type": "http.disconnect"}

    asyncio.run(server.middleware({"type": "http", "method": "POST", "path": CHAT, "headers": []}, receive, None))  # type: ignore[arg-type]
    assert server.seen == []


def test_without_settings_it_says_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BDC_SERVE", raising=False)
    with pytest.raises(InputError, match="BDC_SERVE is not set"):
        Middleware(None)  # type: ignore[arg-type]
