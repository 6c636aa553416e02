"""The generator against transformers' own ``generate``, and what may not matter: batch, padding, early leaving."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bdc.errors import InputError
from bdc.llm.chat import encode_chat
from bdc.llm.generate import context_length, generate

pytestmark = pytest.mark.models

QUESTIONS = [
    "Hi",
    "What is the capital of France?",
    "Write a Python function that reverses a string, with a docstring and an example of its use.",
    "Name three fruits.",
]


@pytest.fixture(scope="module")
def prompts(smollm2: tuple[Any, Any]) -> list[list[int]]:
    return [encode_chat(smollm2[1], [{"role": "user", "content": question}]) for question in QUESTIONS]


def theirs(model: Any, prompts: list[list[int]], new: int) -> list[list[int]]:
    """Greedy tokens from transformers, one prompt at a time (no padding anywhere)."""
    out = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        full = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, do_sample=False, pad_token_id=0
        )
        out.append(full[0, len(prompt) :].tolist())
    return out


def test_greedy_matches_transformers_alone_and_padded(smollm2: tuple[Any, Any], prompts: list[list[int]]) -> None:
    model, tokenizer = smollm2
    expected = theirs(model, prompts, 24)
    alone = [
        generate(model, tokenizer, [prompt], max_new_tokens=24, temperature=0, seeds=[0])[0].tokens
        for prompt in prompts
    ]
    assert alone == expected
    together = generate(model, tokenizer, prompts, max_new_tokens=24, temperature=0, seeds=[0] * 4)
    assert [done.tokens for done in together] == expected
    assert [done.finish_reason for done in together] == [
        "stop" if tokens[-1] == tokenizer.eos_token_id else "length" for tokens in expected
    ]
    for done in together:
        assert done.text == tokenizer.decode(done.tokens, skip_special_tokens=True)


@pytest.mark.filterwarnings("error:`past_key_values`:FutureWarning")
def test_the_cache_has_the_name_that_transformers_gives_it(smollm2: tuple[Any, Any], prompts: list[list[int]]) -> None:
    generate(*smollm2, prompts[:1], max_new_tokens=2, temperature=0, seeds=[0])


def test_prefill_in_several_groups_changes_nothing(
    smollm2: tuple[Any, Any], prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = smollm2
    expected = theirs(model, prompts, 8)
    monkeypatch.setattr("bdc.llm.generate._PREFILL_TOKENS", 50)
    got = generate(model, tokenizer, prompts, max_new_tokens=8, temperature=0, seeds=[0] * 4)
    assert [done.tokens for done in got] == expected


def test_rows_that_leave_early_do_not_change_the_others(smollm2: tuple[Any, Any], prompts: list[list[int]]) -> None:
    model, tokenizer = smollm2
    limits = [3, 40, 70, 11]  # also grows the cache beyond its first reserve
    together = generate(model, tokenizer, prompts, max_new_tokens=limits, temperature=0, seeds=[0] * 4)
    for prompt, limit, done in zip(prompts, limits, together, strict=True):
        alone = generate(model, tokenizer, [prompt], max_new_tokens=limit, temperature=0, seeds=[0])[0]
        assert done == alone
        assert len(done.tokens) <= limit


def test_samples_depend_on_their_own_seed_only(smollm2: tuple[Any, Any], prompts: list[list[int]]) -> None:
    model, tokenizer = smollm2
    options: dict[str, Any] = {"max_new_tokens": 16, "temperature": 1.0, "top_p": 0.95}
    first = generate(model, tokenizer, [prompts[2]] * 4, seeds=[1, 2, 3, 4], **options)
    again = generate(model, tokenizer, [prompts[2]] * 4, seeds=[1, 2, 3, 4], **options)
    assert first == again
    assert len({tuple(done.tokens) for done in first}) == 4
    other = generate(model, tokenizer, [prompts[2]] * 4, seeds=[9, 2, 8, 7], **options)
    assert other[1] == first[1]
    assert other[0] != first[0]
    mixed = generate(model, tokenizer, [prompts[0], prompts[2]], seeds=[5, 3], **options)
    assert mixed[1] == first[2]


def test_identical_prompts_are_prefilled_once(smollm2: tuple[Any, Any], prompts: list[list[int]]) -> None:
    model, tokenizer = smollm2
    sizes: list[int] = []
    hook = model.register_forward_pre_hook(
        lambda module, args, kwargs: sizes.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    try:
        shared = generate(model, tokenizer, [prompts[1]] * 5, max_new_tokens=4, temperature=0, seeds=range(5))
    finally:
        hook.remove()
    assert sizes[0] == len(prompts[1])
    assert len({tuple(done.tokens) for done in shared}) == 1
    assert shared[0] == generate(model, tokenizer, [prompts[1]], max_new_tokens=4, temperature=0, seeds=[0])[0]


def test_stop_strings_end_rows(smollm2: tuple[Any, Any], prompts: list[list[int]]) -> None:
    model, tokenizer = smollm2
    question = [prompts[2]] * 3
    free, cut, never = generate(
        model,
        tokenizer,
        question,
        max_new_tokens=48,
        temperature=0,
        seeds=[0, 0, 0],
        stop=[[], ["no such text", "def reverse"], ["\u20ac\u20ac"]],
    )
    assert "def reverse" in free.text
    assert cut.text == free.text[: free.text.index("def reverse")]
    assert cut.finish_reason == "stop"
    assert len(cut.tokens) < len(free.tokens)
    assert cut.tokens == free.tokens[: len(cut.tokens)]
    assert never == free


def test_forward_context_sees_every_forward(smollm2: tuple[Any, Any], prompts: list[list[int]]) -> None:
    model, tokenizer = smollm2
    seen: list[tuple[list[int], int]] = []
    active = 0

    @contextlib.contextmanager
    def context(rows: torch.Tensor, n: int) -> Iterator[None]:
        nonlocal active
        seen.append((rows.tolist(), n))
        active += 1
        yield
        active -= 1

    inside: list[int] = []
    hook = model.register_forward_pre_hook(lambda module, args: inside.append(active))
    try:
        got = generate(
            model,
            tokenizer,
            [prompts[1], prompts[0], prompts[1]],
            max_new_tokens=[2, 5, 3],
            temperature=0,
            seeds=[0] * 3,
            forward_context=context,
        )
    finally:
        hook.remove()
    assert all(inside) and len(inside) == len(seen) and active == 0
    prefill = [entry for entry in seen if entry[1] > 1]
    assert sorted(row for rows, _ in prefill for row in rows) == [0, 1, 2]  # duplicates are not shared
    decode = [rows for rows, n in seen if n == 1]
    assert [0, 1, 2] in decode and decode[-1] == [1]
    plain = generate(
        model, tokenizer, [prompts[1], prompts[0], prompts[1]], max_new_tokens=[2, 5, 3], temperature=0, seeds=[0] * 3
    )
    assert got == plain


def test_progress_counts_tokens_and_rows(smollm2: tuple[Any, Any], prompts: list[list[int]]) -> None:
    model, tokenizer = smollm2
    calls: list[tuple[int, int]] = []
    done = generate(
        model,
        tokenizer,
        prompts,
        max_new_tokens=[1, 2, 3, 4],
        temperature=0,
        seeds=[0] * 4,
        progress=lambda tokens, rows: calls.append((tokens, rows)),
    )
    assert calls[-1] == (sum(len(generation.tokens) for generation in done), 4)
    assert calls == sorted(calls)


def test_training_mode_is_restored(smollm2: tuple[Any, Any], prompts: list[list[int]]) -> None:
    model, tokenizer = smollm2
    model.train()
    try:
        generate(model, tokenizer, prompts[:1], max_new_tokens=1, seeds=[0])
        assert model.training
    finally:
        model.eval()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"prompts": [[]]}, "Prompt 0 is empty"),
        ({"seeds": [1, 2]}, "2 seeds for 1 prompts"),
        ({"temperature": -1.0}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"max_new_tokens": 10_000}, "context is 8192"),
        ({"stop": [[], []]}, "2 stop lists"),
    ],
)
def test_bad_settings_are_named(smollm2: tuple[Any, Any], change: dict[str, Any], words: str) -> None:
    options: dict[str, Any] = {"prompts": [[1, 2]], "seeds": [0], "max_new_tokens": 4} | change
    with pytest.raises(InputError, match=words):
        generate(*smollm2, options.pop("prompts"), **options)


def test_no_prompts_no_work(smollm2: tuple[Any, Any]) -> None:
    assert generate(*smollm2, [], max_new_tokens=4, seeds=[]) == []


@pytest.fixture
def longrope() -> Any:
    """The configuration of a tiny model that was trained for 24 tokens and stretched to 96."""
    from transformers import Phi3Config

    rope = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
    return Phi3Config(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=96,
        original_max_position_embeddings=24,
        rope_parameters=rope | {"original_max_position_embeddings": 24, "partial_rotary_factor": 1.0},
        initializer_range=0.3,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )


def test_longrope_keeps_to_its_original_context(longrope: Any) -> None:
    """Beyond it transformers would turn all of a batch to other frequencies."""
    from transformers import Phi3Config

    assert context_length(SimpleNamespace(config=longrope)) == 24
    assert context_length(SimpleNamespace(config=Phi3Config(max_position_embeddings=96))) == 96


def test_a_long_request_to_longrope_is_refused_and_none_changes_another(tiny: Path, longrope: Any) -> None:
    from transformers import AutoTokenizer, Phi3ForCausalLM

    torch.manual_seed(0)
    model, tokenizer = Phi3ForCausalLM(longrope).eval(), AutoTokenizer.from_pretrained(tiny)
    prompts = [[5, 6, 7], list(range(10, 28))]
    options: dict[str, Any] = {"temperature": 0.0, "seeds": [0]}
    alone = [generate(model, tokenizer, [p], max_new_tokens=24 - len(p), **options)[0] for p in prompts]
    limits = [24 - len(prompt) for prompt in prompts]
    assert generate(model, tokenizer, prompts, max_new_tokens=limits, temperature=0.0, seeds=[0, 0]) == alone
    with pytest.raises(InputError, match="Prompt 0 has 18 tokens and asks for 7 more, but the model's context is 24"):
        generate(model, tokenizer, prompts[1:], max_new_tokens=7, **options)


def test_an_answer_ends_where_the_chat_template_ends_it(tiny: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(tiny).eval(), AutoTokenizer.from_pretrained(tiny)
    model.generation_config.eos_token_id = None
    options: dict[str, Any] = {"max_new_tokens": 8, "temperature": 0.0, "seeds": [0]}
    tokens = generate(model, tokenizer, [[5, 60, 7]], **options)[0].tokens
    end = tokenizer.convert_ids_to_tokens(tokens[2])
    tokenizer.add_special_tokens({"additional_special_tokens": [end]})
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] + '" + end + "' }}{% endfor %}"
    found = generate(model, tokenizer, [[5, 60, 7]], **options)[0]
    assert found.tokens == tokens[: tokens.index(tokens[2]) + 1]
    assert found.finish_reason == "stop"
