"""`OpenAICompatible`: any server that speaks ``/v1/chat/completions`` (vLLM, llama.cpp, Ollama, hosted APIs)."""

from __future__ import annotations

import asyncio
import json
import os
import random
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from bdc.errors import InputError, LLMError, MissingExtraError
from bdc.llm.base import Completion, Request

if TYPE_CHECKING:
    import httpx

_RETRIED = frozenset({408, 409, 425, 429})
_FINAL = frozenset({501, 505})  # of the statuses from 500: what the server will never do
_LONGEST_WAIT = 60.0
_COUNTS = ("prompt_tokens", "completion_tokens")


class OpenAICompatible:
    """Chat completions over HTTP: concurrent, retried with exponential backoff, seeded per request.

    Args:
        base_url: up to and including the version, such as ``http://localhost:8000/v1``.
        model: the server's name for the model.
        api_key_env: environment variable that holds the key; it may be unset for servers that ask for none. Blanks around
            the key are left out.
        concurrency: requests in flight at once.
        timeout: seconds for one attempt.
        retries: further attempts after a timeout, a broken connection, an unreadable answer, or status 408, 409, 425,
            429 or from 500 (but 501 and 505). ``Retry-After`` is respected up to a minute.
        backoff: seconds before the first retry; doubles each time, with jitter.
        extra: further fields for every request's body (for example ``{"chat_template_kwargs": ...}``).

    Raises:
        InputError: the URL, the key or ``extra`` cannot be sent, or retries are below 0.
        LLMError (from `complete`): a request failed for good; says which status and what the server wrote.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        api_key_env: str = "OPENAI_API_KEY",
        concurrency: int = 16,
        timeout: float = 600.0,
        retries: int = 5,
        backoff: float = 0.5,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        check_base_url(base_url)
        if retries < 0:
            raise InputError(f"retries must be at least 0, not {retries}")
        self.base_url = base_url.rstrip("/")
        self.model = model
        self.name = f"openai:{self.base_url}:{model}"
        self.batch_size: int | None = None
        self.concurrency = max(1, concurrency)
        self.timeout, self.retries, self.backoff = timeout, retries, backoff
        self.extra = dict(extra or {})
        try:
            _encoded(self.extra)
        except (TypeError, ValueError, RecursionError) as error:
            raise InputError(f"extra has no form in JSON: {error}") from error
        key = os.environ.get(api_key_env, "").strip()
        if not (key.isascii() and key.isprintable()):
            raise InputError(f"environment variable {api_key_env} holds no API key: it has characters that no key has")
        self._no_key = "" if key else f" (environment variable {api_key_env}, which would hold the API key, is not set)"
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._client: httpx.AsyncClient | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._gate = asyncio.Semaphore(self.concurrency)  # one for all calls of `complete` that run together

    async def complete(self, requests: Sequence[Request]) -> list[Completion]:
        """Completions in the order of the requests. A request the server refuses (400, 413, 422) is an ``error``."""
        client = self._connected()
        gate = self._gate

        async def one(request: Request) -> Completion:
            async with gate:
                return await self._ask(client, request)

        tasks = [asyncio.ensure_future(one(request)) for request in requests]
        try:
            return list(await asyncio.gather(*tasks))
        finally:
            for task in tasks:  # after a failure the rest would only be paid for
                task.cancel()

    async def close(self) -> None:
        """Close the connections."""
        if self._client is not None:
            await self._client.aclose()
            self._client = None

    def _connected(self) -> httpx.AsyncClient:
        try:
            import httpx
        except ImportError as error:
            raise MissingExtraError("OpenAI-compatible servers need httpx: pip install 'bdc[run]'.") from error
        loop = asyncio.get_running_loop()
        if self._client is None or self._loop is not loop:  # connections belong to the loop that opened them
            limits = httpx.Limits(max_connections=self.concurrency, max_keepalive_connections=self.concurrency)
            headers = self._headers | {"Content-Type": "application/json"}
            self._client = httpx.AsyncClient(headers=headers, timeout=self.timeout, limits=limits)
            self._loop, self._gate = loop, asyncio.Semaphore(self.concurrency)
        return self._client

    def _body(self, request: Request) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self.model,
            "messages": list(request.messages),
            "max_tokens": request.max_tokens,
            "temperature": request.temperature,
            "top_p": request.top_p,
            "seed": request.seed % 2**63,
        }
        if request.stop:
            body["stop"] = list(request.stop)
        if request.resumes:  # vLLM's fields, and those of servers like it
            body |= {"add_generation_prompt": False, "continue_final_message": True}
        return body | self.extra

    async def _ask(self, client: httpx.AsyncClient, request: Request) -> Completion:
        import httpx

        begin = time.perf_counter()
        body = _encoded(self._body(request))
        trouble = ""
        for attempt in range(self.retries + 1):
            wait = min(_LONGEST_WAIT, self.backoff * 2**attempt * random.uniform(0.75, 1.25))
            try:
                async with asyncio.timeout(self.timeout):  # httpx limits single reads
                    response = await client.post(f"{self.base_url}/chat/completions", content=body)
                if response.status_code == 200:
                    if answered := _completion(response.json(), time.perf_counter() - begin):
                        return answered
                    trouble = f"an answer without a message: {_said(response)}"
                else:
                    trouble = f"status {response.status_code}: {_said(response)}"
                if response.status_code in {401, 403}:
                    trouble += self._no_key
                if response.status_code in {400, 413, 422}:
                    return Completion(trouble, 0, 0, "error", time.perf_counter() - begin)
                if response.status_code != 200 and not _passing(response.status_code):
                    break
                wait = _retry_after(response.headers.get("retry-after"), wait)
            except (httpx.TimeoutException, TimeoutError):
                trouble = f"no answer within {self.timeout:g} s"
            except httpx.HTTPError as error:
                trouble = f"{type(error).__name__}: {error}"
            except httpx.InvalidURL as error:
                raise InputError(f"base_url is {self.base_url!r:.200}: {error}") from error
            except (ValueError, RecursionError) as error:
                trouble = f"an unreadable answer ({type(error).__name__}: {error})"
            if attempt < self.retries:
                await asyncio.sleep(wait)
        tries = "1 attempt" if attempt == 0 else f"{attempt + 1} attempts"
        raise LLMError(f"{self.base_url} gave no completion from {self.model} after {tries}: {trouble}")


def _encoded(body: dict[str, Any]) -> bytes:
    """JSON in ASCII, which has a form for halves of surrogate pairs, too, as texts of models and programs may hold."""
    return json.dumps(body, allow_nan=False, separators=(",", ":")).encode()


def _passing(status: int) -> bool:
    return status in _RETRIED or (status >= 500 and status not in _FINAL)


def check_base_url(url: str) -> None:
    """Check that requests can be sent below a URL.

    Raises:
        InputError: they cannot; says what is wrong with it.
    """
    wrong = ""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
        host.encode("idna")
    except ValueError as error:
        wrong = str(error)
    else:
        if parts.scheme not in ("http", "https"):
            wrong = "it must begin with http:// or https://"
        elif not host or port == 0:
            wrong = "it has no host" if not host else "no server has port 0"
        elif not host.isascii():
            wrong = "its host must be ASCII (a name in other letters has such a form, which begins with xn--)"
        elif any(not char.isprintable() or char.isspace() for char in url):
            wrong = "it has a blank or a control character in it"
        elif parts.query or parts.fragment:
            wrong = "it must end with the path, without ? and #"
        elif parts.path.rstrip("/").endswith("/completions"):
            wrong = "it must end before /chat/completions, which is added to it"
    if wrong:
        raise InputError(f"base_url is {url!r:.200}: {wrong}; a right one is http://localhost:8000/v1")


def _completion(answer: Any, seconds: float) -> Completion | None:
    """What a server answered, or None where that holds no message.

    The answer has been paid for, and servers differ in all but the message itself: odd counts of tokens are 0, any
    reason to finish but "length" is a stop, and a message without text (a refusal, a call of a tool) is an empty one.
    """
    try:
        choice = answer["choices"][0]
        content = choice["message"].get("content")
    except (LookupError, TypeError, AttributeError):
        return None
    usage = answer.get("usage")
    counts = [_count(usage.get(name)) for name in _COUNTS] if isinstance(usage, dict) else [0, 0]
    reason = "length" if choice.get("finish_reason") == "length" else "stop"
    return Completion(_text(content), counts[0], counts[1], reason, seconds)


def _text(content: Any) -> str:
    """The text of a message, which may come in parts."""
    if isinstance(content, list):
        return "".join(_text(part.get("text") if isinstance(part, dict) else part) for part in content)
    return content if isinstance(content, str) else ""


def _count(value: Any) -> int:
    plain = isinstance(value, int | float) and not isinstance(value, bool)
    return int(value) if plain and 0 <= value < 2**53 else 0


def _said(response: httpx.Response) -> str:
    try:
        error = response.json()["error"]
        return str(error.get("message") if isinstance(error, dict) else error)[:300]
    except (ValueError, LookupError, TypeError, RecursionError):
        return response.text[:300].strip() or "an empty body"


def _retry_after(header: str | None, otherwise: float) -> float:
    try:
        return min(_LONGEST_WAIT, max(otherwise, float(header))) if header else otherwise
    except ValueError:  # a date: rare, and the backoff will do
        return otherwise
