"""`Local`: chat template, order, batches, limits."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from bdc.errors import InputError
from bdc.llm import LLM, Local, Request
from bdc.llm.chat import encode_chat
from bdc.llm.generate import generate
from bdc.llm.packing import PackedLinear

pytestmark = pytest.mark.models


def ask(text: str, **settings: object) -> Request:
    return Request(({"role": "user", "content": text},), **settings)  # type: ignore[arg-type]


def test_is_an_llm_with_a_stable_name(local: Local, smollm2_folder: Path) -> None:
    assert isinstance(local, LLM)
    assert local.name == f"local:{smollm2_folder}"
    assert Local("smollm2-135m-instruct").name == "local:smollm2-135m-instruct"


def test_answers_come_in_the_order_of_the_requests(local: Local) -> None:
    questions = ["Say hello to the whole world, please, and to me.", "Hi", "What is 2 + 2?", "Name a colour.", "Hi"]
    requests = [ask(question, max_tokens=6 + i, temperature=0.7, seed=i) for i, question in enumerate(questions)]
    answers = asyncio.run(local.complete(requests))  # batch_size 3: two batches, sorted by length
    assert len(answers) == 5
    for request, answer in zip(requests, answers, strict=True):
        prompt = encode_chat(local.tokenizer, request.messages)
        done = generate(
            local.model,
            local.tokenizer,
            [prompt],
            max_new_tokens=request.max_tokens,
            temperature=0.7,
            seeds=[request.seed],
        )[0]
        assert (answer.text, answer.finish_reason) == (done.text, done.finish_reason)
        assert (answer.prompt_tokens, answer.completion_tokens) == (len(prompt), len(done.tokens))
        assert answer.seconds > 0


def test_the_chat_template_of_the_model_is_used(local: Local) -> None:
    ids = encode_chat(local.tokenizer, [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}])
    text = local.tokenizer.decode(ids)
    assert text == "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    resumed = encode_chat(
        local.tokenizer, [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Well, I"}]
    )
    assert local.tokenizer.decode(resumed).endswith("<|im_start|>assistant\nWell, I")


def test_a_request_beyond_the_context_fails_alone(local: Local) -> None:
    fine, long = asyncio.run(
        local.complete([ask("What is the capital of France?", max_tokens=8, temperature=0), ask("no " * 9000)])
    )
    assert "Paris" in fine.text
    assert (long.finish_reason, long.completion_tokens) == ("error", 0)
    assert "context is 8192" in long.text


def test_linear_layers_are_packed_on_a_cpu(local: Local) -> None:
    if local.model.device.type == "cpu":
        assert isinstance(local.model.model.layers[0].mlp.up_proj, PackedLinear)


def test_no_requests_no_answers(local: Local) -> None:
    assert asyncio.run(local.complete([])) == []


def test_a_request_without_messages_is_refused(local: Local) -> None:
    with pytest.raises(InputError, match="no messages"):
        asyncio.run(local.complete([Request(())]))
