"""Rank weights for what comes in at vLLM's OpenAI server: ``--middleware bdc.serving.Middleware``."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

from bdc.customize.customizer import Weights
from bdc.errors import InputError
from bdc.serving.gate import Gate, Ticket
from bdc.serving.wire import KEY, cache_salt

SETTINGS = "BDC_SERVE"
"""The environment variable that holds :class:`Settings` as JSON."""

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Settings:
    """What the middleware has to know.

    Attributes:
        solver: the solver's folder.
        encoder: where its encoder is, if not where the folder says.
        base: the model name by which clients ask for the base model, without experts.
    """

    solver: str
    encoder: str | None = None
    base: str | None = None


class Middleware:
    """Gives each completion the rank weights of its statement, before vLLM reads the request.

    The statement is a conversation's last user message, or a completion's prompt. Two fields of a request's body, which vLLM does
    not see, say otherwise: ``bdc_statement``, and ``bdc_weights`` as for :meth:`bdc.Solver.generate`.

    vLLM puts it before its own middlewares; it goes behind them, so that they see a request, and its answer, as ever.

    Args:
        app: the ASGI application behind it.
        gate: what gives rank weights (default: that of the settings in the environment variable BDC_SERVE).
        base: the name of :class:`Settings`.
    """

    def __init__(self, app: App, gate: Gate | None = None, base: str | None = None) -> None:
        if gate is None:
            if SETTINGS not in os.environ:
                raise InputError(f'{SETTINGS} is not set; bdc serve does, or set it to {{"solver": FOLDER}}')
            settings = Settings(**json.loads(os.environ[SETTINGS]))
            gate, base = Gate.from_pretrained(settings.solver, encoder=settings.encoder), settings.base
        self.app, self.base = app, base
        self._first: App = self._customise
        self._turns = _Turns(gate)
        if (last := _last_before_routes(app)) is not None:
            self._first, self.app, last.app = app, last.app, self._customise

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        await self._first(scope, receive, send)

    async def _customise(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        body = await _read(receive)
        if body is None:  # the client went away
            return
        try:
            changed = await self._customised(scope["path"], body)
        except InputError as error:
            await _refuse(send, str(error))
            return
        headers = [(name, value) for name, value in scope["headers"] if name != b"content-length"]
        scope = {**scope, "headers": [*headers, (b"content-length", str(len(changed)).encode())]}
        await self.app(scope, _replaying(changed, receive), send)

    async def _customised(self, path: str, body: bytes) -> bytes:
        """The body of a request as vLLM shall see it.

        Raises:
            InputError: a request whose rank weights cannot be told.
        """
        try:
            request = json.loads(body)
        except (ValueError, RecursionError):
            return body  # vLLM says what is wrong with it
        if not isinstance(request, dict):
            return body
        given, salt = request.get("vllm_xargs"), request.get("cache_salt")
        if not isinstance(given, dict | None) or not isinstance(salt, str | None):
            return body  # likewise
        if given and KEY in given:
            raise InputError(f"{KEY} is not for clients to set; use bdc_weights")
        weights, statement = request.pop("bdc_weights", None), request.pop("bdc_statement", None)
        if weights is None and self.base is not None and request.get("model") == self.base:
            weights = "none"
        if salt:  # as it is it could name a solver's prefixes
            request["cache_salt"] = cache_salt("", salt)
        if weights != "none":
            read = next((read for end, read in _STATEMENTS.items() if path.endswith(end)), None)
            if read is not None:
                if request.get("use_beam_search"):  # which makes sampling parameters of its own, without rank weights
                    raise InputError("use_beam_search is not customised; leave it out, or ask for the base model")
                text = read(request) if statement is None else statement
                if not isinstance(text, str):
                    raise InputError(f"bdc_statement must be text, got {type(text).__name__}")
                ticket = await self._turns.wait(text, weights, salt or "")
                request |= {"vllm_xargs": {**(given or {}), **ticket.extra_args}, "cache_salt": ticket.cache_salt}
            elif path.endswith(_UNREAD):
                raise InputError(f"{path} is not customised; use {', '.join(_STATEMENTS)}, or the base model's name")
        try:
            return json.dumps(request).encode()
        except RecursionError as error:
            raise InputError("the request is nested too deeply") from error


def _last_before_routes(app: Any) -> Any | None:
    """The middleware behind which a Starlette application turns errors into answers and has its routes, if there is one."""
    while (inner := getattr(app, "app", None)) is not None:
        if type(inner).__name__ == "ExceptionMiddleware":
            return app
        app = inner
    return None


class _Turns:
    """One batch at a time: what comes while the encoder is at work waits, and is the next batch."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self._waiting: list[tuple[str, Weights, str, asyncio.Future[Ticket]]] = []
        self._busy: asyncio.Task[None] | None = None

    async def wait(self, statement: str, weights: Any, salt: str) -> Ticket:
        """The ticket of one request.

        Raises:
            InputError: as :meth:`Gate.tickets` does.
        """
        choice = self._gate.customizer.check(1, None if weights is None else [weights])[0]
        answer: asyncio.Future[Ticket] = asyncio.get_running_loop().create_future()
        self._waiting.append((statement, choice, salt, answer))
        if self._busy is None:
            self._busy = asyncio.create_task(self._work())
        return await answer

    async def _work(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting, []
            found = await asyncio.to_thread(self._tickets, [own[:3] for own in batch])
            for (*_, answer), ticket in zip(batch, found, strict=True):
                if answer.done():  # its client has gone
                    continue
                if isinstance(ticket, Exception):
                    answer.set_exception(ticket)
                else:
                    answer.set_result(ticket)
        self._busy = None

    def _tickets(self, batch: Sequence[tuple[str, Weights, str]]) -> Sequence[Ticket | Exception]:
        """A ticket each, or why there is none; what is wrong with one request is not with those beside it."""
        try:
            statements, weights, salts = zip(*batch, strict=True)
            return self._gate.tickets(statements, weights, salts)
        except Exception as error:
            return [error] if len(batch) == 1 else [self._tickets([own])[0] for own in batch]


def _of_chat(request: Mapping[str, Any]) -> str:
    messages = request.get("messages")
    for message in reversed(messages if isinstance(messages, list) else []):
        # Messages of the user that hold nothing but a tool's result go on with what was asked before.
        if isinstance(message, dict) and message.get("role") == "user" and (text := _text(message.get("content"))):
            return text
    raise InputError("the messages hold no text of the user to take the statement from; pass bdc_statement")


def _of_completion(request: Mapping[str, Any]) -> str:
    prompt = request.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1:
        prompt = prompt[0]
    if not isinstance(prompt, str):
        raise InputError("prompt must be one text, whose rank weights the request gets; or pass bdc_statement")
    return prompt


def _of_response(request: Mapping[str, Any]) -> str:
    given = request.get("input")
    return given if isinstance(given, str) else _of_chat({"messages": given})


def _text(content: Any) -> str:
    """Of a message's content: a text, or parts of which some are; empty if none is."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    texts = [part["text"] for part in parts if isinstance(part, dict) and isinstance(part.get("text"), str)]
    return "\n".join(texts)


_STATEMENTS = {
    "/v1/chat/completions": _of_chat,
    "/v1/completions": _of_completion,
    "/v1/messages": _of_chat,
    "/v1/responses": _of_response,
}
# What else generates text.
_UNREAD = (
    "/v1/chat/completions/batch",
    "/invocations",
    "/cohere/v2/chat",
    "/inference/v1/generate",
    "/generative_scoring",
    "/v1/systemone",
)


async def _read(receive: Receive) -> bytes | None:
    parts: list[bytes] = []
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return None
        parts.append(message.get("body", b""))
        if not message.get("more_body"):
            return b"".join(parts)


def _replaying(body: bytes, receive: Receive) -> Receive:
    """What the application receives: the body, then whatever comes, such as a client's going."""
    sent = False

    async def replay() -> Message:
        nonlocal sent
        if sent:
            return await receive()
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


async def _refuse(send: Send, reason: str) -> None:
    """400, in the form of OpenAI's errors."""
    body = json.dumps({"error": {"message": reason, "type": "BadRequestError", "param": None, "code": 400}}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 400, "headers": headers})
    await send({"type": "http.response.body", "body": body})
