"""A real OpenAI-compatible server for tests: real sockets, a real model behind them, and faults on demand."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import time
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from bdc.llm import LLM, Request


class ChatServer:
    """Serves ``/v1/chat/completions`` from an `LLM`; before that, each queued fault answers one request.

    Faults: an int is that HTTP status, "garbage" a body that is not JSON, "shape" JSON of another shape, "drop" a
    closed connection, a float a silence of that many seconds, bytes the body of an answer with status 200.
    """

    def __init__(
        self, llm: LLM, faults: Sequence[int | str | float | bytes] = (), retry_after: str | None = None
    ) -> None:
        self.llm, self.faults, self.retry_after = llm, list(faults), retry_after
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.peak = self._active = 0
        self._lock = threading.Lock()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}/v1"
        self._thread = threading.Thread(target=self._http.serve_forever, daemon=True)

    def __enter__(self) -> ChatServer:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with server._lock:
                    server.bodies.append(body)
                    server.headers.append(dict(self.headers))
                    server._active += 1
                    server.peak = max(server.peak, server._active)
                    fault = server.faults.pop(0) if server.faults else None
                try:
                    if fault is not None and not server._fail(self, fault):
                        return
                    if self.path != "/v1/chat/completions":
                        server._send(self, 404, json.dumps({"error": {"message": f"no {self.path}"}}))
                        return
                    server._send(self, 200, json.dumps(server._answer(body)))
                finally:
                    with server._lock:
                        server._active -= 1

            def log_message(self, format: str, *args: Any) -> None:
                pass

        return Handler

    def _fail(self, handler: BaseHTTPRequestHandler, fault: int | str | float | bytes) -> bool:
        """Play the fault; True if the request should still be answered."""
        if isinstance(fault, float):
            time.sleep(fault)
            return True
        if isinstance(fault, bytes):
            self._send(handler, 200, fault)
        elif fault == "drop":
            handler.close_connection = True
            handler.connection.close()
        elif fault == "garbage":
            self._send(handler, 200, "<html>busy")
        elif fault == "shape":
            self._send(handler, 200, '{"choices": []}')
        else:
            self._send(handler, int(fault), json.dumps({"error": {"message": f"fault {fault}"}}))
        return False

    def _send(self, handler: BaseHTTPRequestHandler, status: int, body: str | bytes) -> None:
        data = body.encode() if isinstance(body, str) else body
        handler.send_response(status)
        handler.send_header("Content-Type", "application/json")
        handler.send_header("Content-Length", str(len(data)))
        if self.retry_after is not None and status == 429:
            handler.send_header("Retry-After", self.retry_after)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # a client that gave up waiting
            handler.end_headers()
            handler.wfile.write(data)

    def _answer(self, body: dict[str, Any]) -> dict[str, Any]:
        request = Request(
            tuple(body["messages"]),
            max_tokens=body["max_tokens"],
            temperature=body["temperature"],
            top_p=body["top_p"],
            stop=tuple(body.get("stop", ())),
            seed=body["seed"],
        )
        (done,) = asyncio.run(self.llm.complete([request]))
        return {
            "object": "chat.completion",
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": done.text},
                    "finish_reason": done.finish_reason,
                }
            ],
            "usage": {"prompt_tokens": done.prompt_tokens, "completion_tokens": done.completion_tokens},
        }
