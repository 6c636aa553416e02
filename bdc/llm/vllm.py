"""`VLLM`: a vLLM engine in this process. For a server of its own use `OpenAICompatible`."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bdc.errors import LLMError, MissingExtraError
from bdc.llm.base import Completion, Request

_SEQUENCES = 256  # requests per call: as many as vLLM runs at once unless told otherwise


class VLLM:
    """Offline vLLM behind the `LLM` protocol. It runs what one call holds together, and one call at a time.

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
        self.batch_size: int | None = _SEQUENCES
        self._llm: Any = None
        self._lock = threading.Lock()

    async def complete(self, requests: Sequence[Request]) -> list[Completion]:
        """Completions in the order of the requests. One that the engine refuses (beyond the context) is an ``error``.

        Raises:
            LLMError: the engine failed.
        """
        if not requests:
            return []
        return await asyncio.to_thread(self._complete, list(requests))

    async def close(self) -> None:
        """Drop the engine."""
        self._llm = None

    def _complete(self, requests: list[Request]) -> list[Completion]:
        import vllm

        from bdc.llm.registry import resolve

        with self._lock:
            if self._llm is None:
                folder = str(resolve(self.source))
                try:
                    self._llm = vllm.LLM(model=folder, **self.engine)
                except (RuntimeError, ValueError) as error:
                    raise LLMError(f"vLLM does not start with {self.source}: {error}") from error
            begin = time.perf_counter()
            outputs: dict[int, Any] = {}
            try:
                for resumes in (False, True):  # a call of the engine takes either
                    if mine := [i for i, request in enumerate(requests) if request.resumes == resumes]:
                        outputs.update(zip(mine, self._chat([requests[i] for i in mine]), strict=True))
            except RuntimeError as error:
                raise LLMError(f"vLLM failed on {len(requests)} requests to {self.source}: {error}") from error
            seconds = (time.perf_counter() - begin) / len(requests)
        return [
            Completion(output, 0, 0, "error", 0.0)
            if isinstance(output, str)
            else Completion(
                output.outputs[0].text,
                len(output.prompt_token_ids or ()),
                len(output.outputs[0].token_ids),
                "length" if output.outputs[0].finish_reason == "length" else "stop",
                seconds,
            )
            for output in (outputs[i] for i in range(len(requests)))
        ]

    def _chat(self, requests: list[Request]) -> list[Any]:
        """vLLM's output per request, or why it refuses the request; it says so of a whole call, which is then halved.

        Either all of the requests continue their last message or none does.
        """
        import vllm

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
        resume = {"add_generation_prompt": False, "continue_final_message": True} if requests[0].resumes else {}
        messages = [list(request.messages) for request in requests]
        try:
            return list(self._llm.chat(messages, settings, use_tqdm=False, **resume))
        except ValueError as error:
            if len(requests) == 1:
                return [f"vLLM refuses a request to {self.source}: {error}"]
        half = len(requests) // 2
        return self._chat(requests[:half]) + self._chat(requests[half:])
