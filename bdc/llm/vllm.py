"""`VLLM`: a vLLM engine in this process. For a server of its own use `OpenAICompatible`."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bdc.errors import InputError, LLMError, MissingExtraError
from bdc.llm.base import Completion, Request


class VLLM:
    """Offline vLLM behind the `LLM` protocol; it batches by itself.

    Args:
        model: what `bdc.llm.resolve` takes; loaded on first use.
        engine: further arguments of ``vllm.LLM`` (``dtype``, ``max_model_len``, ``enforce_eager``, ...).

    Raises:
        MissingExtraError: vllm is not installed.
    """

    def __init__(self, model: str | Path, **engine: Any) -> None:
        try:
            import vllm  # noqa: F401
        except ImportError as error:
            raise MissingExtraError("VLLM needs the vllm package: pip install 'bdc[serve]'.") from error
        self.source = model
        self.engine = engine
        self.name = f"vllm:{model}"
        self.batch_size: int | None = None
        self._llm: Any = None
        self._lock = threading.Lock()

    async def complete(self, requests: Sequence[Request]) -> list[Completion]:
        """Completions in the order of the requests.

        Raises:
            InputError: a request that the engine refuses, such as a prompt beyond the context.
            LLMError: the engine failed.
        """
        return await asyncio.to_thread(self._complete, list(requests))

    async def close(self) -> None:
        """Drop the engine."""
        self._llm = None

    def _complete(self, requests: list[Request]) -> list[Completion]:
        import vllm

        from bdc.llm.registry import resolve

        with self._lock:
            if self._llm is None:
                self._llm = vllm.LLM(model=str(resolve(self.source)), **self.engine)
            begin = time.perf_counter()
            settings = [
                vllm.SamplingParams(
                    max_tokens=request.max_tokens,
                    temperature=request.temperature,
                    top_p=request.top_p,
                    stop=list(request.stop),
                    seed=request.seed % 2**63,
                )
                for request in requests
            ]
            try:
                outputs = self._llm.chat([list(request.messages) for request in requests], settings, use_tqdm=False)
            except ValueError as error:
                raise InputError(f"vLLM refuses a request to {self.source}: {error}") from error
            except RuntimeError as error:
                raise LLMError(f"vLLM failed on {len(requests)} requests to {self.source}: {error}") from error
            seconds = (time.perf_counter() - begin) / len(requests)
        return [
            Completion(
                output.outputs[0].text,
                len(output.prompt_token_ids or ()),
                len(output.outputs[0].token_ids),
                "length" if output.outputs[0].finish_reason == "length" else "stop",
                seconds,
            )
            for output in outputs
        ]
