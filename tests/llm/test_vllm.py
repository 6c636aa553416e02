"""`VLLM`: a real engine where vllm is installed, and a clear sentence where it is not."""

from __future__ import annotations

import asyncio
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from bdc.boost.broker import Agent, Broker, Call
from bdc.boost.settings import AgentSettings
from bdc.errors import LLMError, MissingExtraError
from bdc.llm import VLLM, Request
from bdc.progress import Progress
from bdc.runs import Run

installed = importlib.util.find_spec("vllm") is not None
STAND_IN = """
from types import SimpleNamespace as Some
SamplingParams = Some
class LLM:
    def __init__(self, model):
        self.sizes, self.resumed = [], []
    def chat(self, messages, settings, use_tqdm, add_generation_prompt=True, continue_final_message=False):
        self.sizes.append(len(messages))
        assert add_generation_prompt is not continue_final_message
        self.resumed += [(m[-1]["role"], continue_final_message) for m in messages]
        lengths = [len(m[0]["content"]) for m in messages]
        if max(lengths) > 40:
            raise ValueError("beyond the context")
        return [Some(prompt_token_ids=[0] * n, outputs=[Some(text=str(n), token_ids=[0], finish_reason="stop")]) for n in lengths]
"""


@pytest.mark.skipif(installed, reason="vllm is installed; the message for its absence cannot appear")
def test_without_vllm_the_extra_is_named() -> None:
    with pytest.raises(MissingExtraError, match=r"bdc\[serve\]"):
        VLLM("smollm2-135m-instruct")


def test_the_engine_gets_many_requests_at_once_and_refuses_single_ones(
    tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a stand-in for the package, which takes long to install: it counts calls, and refuses as vLLM does."""
    stand_in = ModuleType("vllm")
    exec(STAND_IN, stand_in.__dict__)
    monkeypatch.setitem(sys.modules, "vllm", stand_in)
    agent = Agent("a", VLLM(tiny), AgentSettings("a", str(tiny), "vllm"))
    calls = [Call(0, "propose", "p", ({"role": "user", "content": "x" * i},), 9) for i in range(1, 42)]
    with Run(tmp_path / "run", create=True) as run, Broker(run, [agent], 0, Progress("quiet")) as broker:
        answers = broker.ask(calls, "ask")
        sizes = agent.llm._llm.sizes  # type: ignore[attr-defined]
    assert [answer.text for answer in answers[:40]] == [str(i) for i in range(1, 41)]
    assert answers[40].finish_reason == "error" and "beyond the context" in answers[40].text
    assert sizes[0] == 41 and len(sizes) < 15


def test_an_assistants_message_is_continued_and_nothing_is_nothing(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in = ModuleType("vllm")
    exec(STAND_IN, stand_in.__dict__)
    monkeypatch.setitem(sys.modules, "vllm", stand_in)
    llm = VLLM(tiny)
    assert asyncio.run(llm.complete([])) == []
    questions = [({"role": "user", "content": "x" * i},) for i in range(1, 5)]
    begun = {"role": "assistant", "content": "Well"}
    requests = [Request((*question, begun) if i % 2 else question) for i, question in enumerate(questions)]
    assert [answer.text for answer in asyncio.run(llm.complete(requests))] == ["1", "2", "3", "4"]
    assert sorted(llm._llm.resumed) == [("assistant", True)] * 2 + [("user", False)] * 2


def test_an_engine_that_does_not_start_is_an_error(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in = ModuleType("vllm")
    exec(STAND_IN.replace("self.sizes, self.resumed = [], []", "raise ValueError('no memory')"), stand_in.__dict__)
    monkeypatch.setitem(sys.modules, "vllm", stand_in)
    with pytest.raises(LLMError, match=r"does not start .* no memory"):
        asyncio.run(VLLM(tiny).complete([Request(({"role": "user", "content": "x"},))]))


@pytest.mark.skipif(not installed, reason="vllm is not installed: `make test-vllm` installs it beside")
@pytest.mark.slow
@pytest.mark.models
def test_the_engine_answers_like_the_model(smollm2_folder: Path, vllm_on_a_cpu: None) -> None:
    llm = VLLM(smollm2_folder, dtype="float32", enforce_eager=True, max_model_len=512, gpu_memory_utilization=0.3)
    question = ({"role": "user", "content": "What is the capital of France?"},)
    first, second = asyncio.run(llm.complete([Request(question, max_tokens=12, temperature=0), Request(question, 1)]))
    assert "Paris" in first.text and first.finish_reason == "stop"
    assert second.finish_reason == "length" and second.completion_tokens == 1
    assert first.prompt_tokens == second.prompt_tokens > 10
