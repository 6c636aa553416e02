"""`Local`: a transformers model in this process, behind the `LLM` protocol."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bdc.errors import InputError, LLMError
from bdc.llm.base import Completion, Request

if TYPE_CHECKING:
    import torch


class _CancelledError(Exception):
    """Nobody waits for the answers any more."""


class Local:
    """Batched sampling from a local model (`bdc.llm.generate`), in a worker thread.

    Args:
        model: what `bdc.llm.resolve` takes; loaded on first use.
        dtype: "auto", "float32", "bfloat16" or "float16" (see `bdc.llm.load_model`).
        batch_size: most requests that run together.
        threads: CPU threads for torch; None leaves its setting.

    Raises (from `complete`):
        ModelNotFoundError, InputError: see `load_model`.
        LLMError: the model failed, for instance for want of memory.
    """

    def __init__(
        self, model: str | Path, *, dtype: str | torch.dtype = "auto", batch_size: int = 48, threads: int | None = None
    ) -> None:
        self.source = model
        self.dtype = dtype
        self.name = f"local:{model}"
        self.batch_size: int | None = max(1, batch_size)
        self.threads = threads
        self._loaded: tuple[Any, Any] | None = None
        self._lock = threading.Lock()

    @property
    def model(self) -> Any:
        """The transformers model (loads it if need be)."""
        return self._load()[0]

    @property
    def tokenizer(self) -> Any:
        """The model's tokenizer (loads it if need be)."""
        return self._load()[1]

    async def complete(self, requests: Sequence[Request]) -> list[Completion]:
        """Completions in the order of the requests. One that the model cannot take (beyond its context, or not to be
        encoded) is an ``error``. A call that is cancelled ends after the step that it is at."""
        cancelled = threading.Event()
        try:
            return await asyncio.to_thread(self._complete, list(requests), cancelled)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    async def close(self) -> None:
        """Drop the model."""
        with self._lock:
            self._loaded = None

    def _load(self) -> tuple[Any, Any]:
        from bdc.llm.loading import load_model
        from bdc.llm.packing import pack

        with self._lock:
            if self._loaded is None:
                self._loaded = load_model(self.source, self.dtype)
                pack(self._loaded[0])
            return self._loaded

    def _complete(self, requests: list[Request], cancelled: threading.Event) -> list[Completion]:
        def check(*_: int) -> None:
            if cancelled.is_set():
                raise _CancelledError

        model, tokenizer = self._load()
        with self._lock:  # torch's threads serve one batch at a time
            if self.threads is not None:
                import torch

                torch.set_num_threads(self.threads)
            answers: dict[int, Completion] = {}
            prompts: dict[int, list[int]] = {}
            for i, request in enumerate(requests):
                try:
                    prompts[i] = _encoded(model, tokenizer, request)
                except InputError as error:
                    answers[i] = Completion(str(error), 0, 0, "error", 0.0)
            order = sorted(prompts, key=lambda i: (len(prompts[i]), prompts[i]))
            step = self.batch_size or len(order)
            for start in range(0, len(order), step):
                check()
                chunk = order[start : start + step]
                asked = [(requests[i], prompts[i]) for i in chunk]
                answers.update(zip(chunk, self._batch(model, tokenizer, asked, check), strict=True))
            return [answers[i] for i in range(len(requests))]

    def _batch(
        self, model: Any, tokenizer: Any, asked: list[tuple[Request, list[int]]], progress: Callable[[int, int], None]
    ) -> list[Completion]:
        from bdc.llm.generate import generate

        requests, prompts = zip(*asked, strict=True)
        begin = time.perf_counter()
        try:
            generations = generate(
                model,
                tokenizer,
                prompts,
                max_new_tokens=[request.max_tokens for request in requests],
                temperature=[request.temperature for request in requests],
                top_p=[request.top_p for request in requests],
                seeds=[request.seed for request in requests],
                stop=[request.stop for request in requests],
                progress=progress,
            )
        except (RuntimeError, MemoryError) as error:
            raise LLMError(f"The local model {self.source} failed on a batch of {len(asked)}: {error}") from error
        seconds = (time.perf_counter() - begin) / len(asked)
        return [
            Completion(done.text, len(prompt), len(done.tokens), done.finish_reason, seconds)
            for prompt, done in zip(prompts, generations, strict=True)
        ]


def _encoded(model: Any, tokenizer: Any, request: Request) -> list[int]:
    """The prompt's tokens, checked with the request's settings."""
    from bdc.llm.chat import encode_chat
    from bdc.llm.generate import check_prompt

    prompt = encode_chat(tokenizer, request.messages)
    check_prompt(
        model,
        tokenizer,
        prompt,
        max_new_tokens=request.max_tokens,
        temperature=request.temperature,
        top_p=request.top_p,
        seed=request.seed,
        stop=request.stop,
    )
    return prompt
