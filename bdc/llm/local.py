"""`Local`: a transformers model in this process, behind the `LLM` protocol."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bdc.errors import LLMError
from bdc.llm.base import Completion, Request

if TYPE_CHECKING:
    import torch


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
        """Completions in the order of the requests. A request beyond the model's context is an ``error``."""
        return await asyncio.to_thread(self._complete, list(requests))

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

    def _complete(self, requests: list[Request]) -> list[Completion]:
        from bdc.llm.chat import encode_chat
        from bdc.llm.generate import context_length

        model, tokenizer = self._load()
        with self._lock:  # torch's threads serve one batch at a time
            if self.threads is not None:
                import torch

                torch.set_num_threads(self.threads)
            prompts = [encode_chat(tokenizer, request.messages) for request in requests]
            context = context_length(model)
            answers: dict[int, Completion] = {}
            order = []
            for i in sorted(range(len(requests)), key=lambda i: (len(prompts[i]), prompts[i])):
                if context is not None and len(prompts[i]) + requests[i].max_tokens > context:
                    why = (
                        f"the prompt has {len(prompts[i])} tokens and asks for {requests[i].max_tokens} more, "
                        f"but the model's context is {context}"
                    )
                    answers[i] = Completion(why, len(prompts[i]), 0, "error", 0.0)
                else:
                    order.append(i)
            step = self.batch_size or len(order)
            for start in range(0, len(order), step):
                chunk = order[start : start + step]
                answers.update(zip(chunk, self._batch(model, tokenizer, requests, prompts, chunk), strict=True))
            return [answers[i] for i in range(len(requests))]

    def _batch(
        self, model: Any, tokenizer: Any, requests: list[Request], prompts: list[list[int]], chunk: list[int]
    ) -> list[Completion]:
        from bdc.llm.generate import generate

        asked = [requests[i] for i in chunk]
        begin = time.perf_counter()
        try:
            generations = generate(
                model,
                tokenizer,
                [prompts[i] for i in chunk],
                max_new_tokens=[request.max_tokens for request in asked],
                temperature=[request.temperature for request in asked],
                top_p=[request.top_p for request in asked],
                seeds=[request.seed for request in asked],
                stop=[request.stop for request in asked],
            )
        except (RuntimeError, MemoryError) as error:
            raise LLMError(f"The local model {self.source} failed on a batch of {len(chunk)}: {error}") from error
        seconds = (time.perf_counter() - begin) / len(chunk)
        return [
            Completion(done.text, len(prompts[i]), len(done.tokens), done.finish_reason, seconds)
            for i, done in zip(chunk, generations, strict=True)
        ]
