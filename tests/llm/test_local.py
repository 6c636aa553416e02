"""`Local`: chat template, order, batches, limits."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest

from bdc.llm import LLM, Local, Request
from bdc.llm.chat import encode_chat
from bdc.llm.generate import generate
from bdc.llm.packing import PackedLinear


def ask(text: str, **settings: object) -> Request:
    return Request(({"role": "user", "content": text},), **settings)  # type: ignore[arg-type]


@pytest.mark.models
def test_is_an_llm_with_a_stable_name(local: Local, smollm2_folder: Path) -> None:
    assert isinstance(local, LLM)
    assert local.name == f"local:{smollm2_folder}"
    assert Local("smollm2-135m-instruct").name == "local:smollm2-135m-instruct"


@pytest.mark.models
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


@pytest.mark.models
def test_the_chat_template_of_the_model_is_used(local: Local) -> None:
    ids = encode_chat(local.tokenizer, [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}])
    text = local.tokenizer.decode(ids)
    assert text == "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    resumed = encode_chat(
        local.tokenizer, [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Well, I"}]
    )
    assert local.tokenizer.decode(resumed).endswith("<|im_start|>assistant\nWell, I")


@pytest.mark.models
def test_a_request_beyond_the_context_fails_alone(local: Local) -> None:
    fine, long = asyncio.run(
        local.complete([ask("What is the capital of France?", max_tokens=8, temperature=0), ask("no " * 9000)])
    )
    assert "Paris" in fine.text
    assert (long.finish_reason, long.completion_tokens) == ("error", 0)
    assert "context is 8192" in long.text


@pytest.mark.models
def test_linear_layers_are_packed_on_a_cpu(local: Local) -> None:
    if local.model.device.type == "cpu":
        assert isinstance(local.model.model.layers[0].mlp.up_proj, PackedLinear)


@pytest.mark.models
def test_no_requests_no_answers(local: Local) -> None:
    assert asyncio.run(local.complete([])) == []


def test_requests_that_cannot_be_run_fail_alone(tiny: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny, tmp_path / "strict")
    strict = "{% for m in messages if m['role'] == 'system' %}{{ raise_exception('no system') }}{% endfor %}"
    template = folder / "chat_template.jinja"
    template.write_text(strict + template.read_text())
    system = ({"role": "system", "content": "be"}, {"role": "user", "content": "hi"})
    requests = {
        "": ask("hi", max_tokens=3),
        "no messages": Request(()),
        "no system": Request(system, max_tokens=3),
        "cannot encode": ask("a\ud800", max_tokens=3),
        "max_tokens": ask("hi", max_tokens=0),
        "temperature": ask("hi", max_tokens=3, temperature=float("nan")),
        "context is 512": ask("hi", max_tokens=600),
    }
    answers = asyncio.run(Local(folder, dtype="float32").complete(list(requests.values())))
    assert [answer.finish_reason for answer in answers] == ["length"] + ["error"] * 6
    for words, answer in zip(requests, answers, strict=True):
        assert words.replace("max_tokens", "max_new_tokens") in answer.text


def test_a_cancelled_call_ends_soon(tiny: Path) -> None:
    llm = Local(tiny, dtype="float32")
    forwards = 0

    async def cancelled() -> None:
        loop = asyncio.get_running_loop()
        task = asyncio.ensure_future(llm.complete([ask("hi", max_tokens=480, temperature=0, stop=())] * 4))

        def seen(*_: object) -> None:
            nonlocal forwards
            forwards += 1
            if forwards == 3:
                loop.call_soon_threadsafe(task.cancel)

        llm.model.register_forward_pre_hook(seen)
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancelled())  # waits for the worker thread
    assert 3 <= forwards < 300
    answers = asyncio.run(llm.complete([ask("hi", max_tokens=3)]))
    assert answers[0].completion_tokens > 0
