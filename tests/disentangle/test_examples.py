from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bdc.disentangle.examples import Example, collate, encode, epoch_batches, parts
from bdc.disentangle.loss import example_nll
from bdc.errors import InputError
from bdc.llm.chat import encode_chat

CPU = torch.device("cpu")


def examples(count: int = 20) -> list[Example]:
    return [Example(tuple(range(1, 4 + i % 7)), tuple(range(5, 7 + i % 5)), i) for i in range(count)]


def test_response_ends_with_the_end_of_turn(tiny: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny)
    messages = [{"role": "user", "content": "hello"}]
    example = encode(tokenizer, messages, "fine", source=3)
    assert list(example.prompt) == encode_chat(tokenizer, messages)
    assert tokenizer.decode(example.response[:-1]) == "fine"
    assert example.response[-1] == tokenizer.eos_token_id
    assert example.source == 3
    whole = tokenizer.apply_chat_template([*messages, {"role": "assistant", "content": "fine"}], tokenize=False)
    assert tokenizer.decode(example.prompt + example.response) == whole


def test_response_ends_as_the_chat_template_ends_it(tiny: Path) -> None:
    """Of Gemma and Phi-3, the end-of-text token is another one."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny)
    tokenizer.eos_token = "<|system|>"
    example = encode(tokenizer, [{"role": "user", "content": "hello"}], "fine")
    assert tokenizer.decode(example.response) == "fine<|end|>"


def test_a_tokenizer_without_an_end_is_refused(tiny: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny)
    tokenizer.eos_token = tokenizer.chat_template = None
    with pytest.raises(InputError, match="no end-of-text token"):
        encode(tokenizer, [{"role": "user", "content": "hello"}], "fine")


def test_collate_marks_the_positions_before_response_tokens_only() -> None:
    batch = collate([Example((1, 2, 3), (4, 5)), Example((6,), (7, 8, 9))], pad=0, device=CPU)
    assert batch.ids.tolist() == [[1, 2, 3, 4, 5], [6, 7, 8, 9, 0]]
    assert batch.predicts.int().tolist() == [[0, 0, 1, 1, 0], [1, 1, 1, 0, 0]]
    assert batch.targets.tolist() == [4, 5, 7, 8, 9]
    assert batch.rows.tolist() == [0, 0, 1, 1, 1]


def test_whole_text_loss_covers_every_next_token() -> None:
    batch = collate([Example((1, 2, 3), (4, 5)), Example((6,), (7,))], pad=0, device=CPU, whole=True)
    assert batch.targets.tolist() == [2, 3, 4, 5, 7]


def test_loss_equals_the_full_logits_and_ignores_padding_and_prompt(tiny: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny).eval()
    given = [Example((9, 8, 7, 6), (5, 4, 3)), Example((9, 8), (40, 41, 42, 43, 44, 45)), Example((50,) * 9, (0,))]
    with torch.no_grad():
        found = example_nll(model, collate(given, pad=0, device=CPU))
        for row, example in enumerate(given):
            ids = torch.tensor([example.prompt + example.response])
            logits = model(input_ids=ids).logits[0].double().log_softmax(-1)
            start = len(example.prompt)
            expected = -sum(logits[start + i - 1, token] for i, token in enumerate(example.response))
            torch.testing.assert_close(found[row].double(), expected, rtol=1e-5, atol=1e-5)


def test_the_head_is_left_as_it_was(tiny: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny).eval()
    ids = torch.tensor([[5, 6, 7]])
    before = model(input_ids=ids).logits
    example_nll(model, collate([Example((1, 2), (3,))], pad=0, device=CPU))
    assert torch.equal(model(input_ids=ids).logits, before)


def test_epoch_batches_are_a_partition_and_a_function_of_seed_and_epoch() -> None:
    given = examples()
    batches = epoch_batches(given, 4, seed=1, epoch=0)
    assert sorted(e.source for batch in batches for e in batch) == list(range(20))
    assert batches == epoch_batches(given, 4, seed=1, epoch=0)
    assert batches != epoch_batches(given, 4, seed=1, epoch=1)
    assert batches != epoch_batches(given, 4, seed=2, epoch=0)


def test_parts_respect_the_token_limit_and_keep_everything() -> None:
    given = examples()
    found = list(parts(given, 30))
    assert sorted(e.source for part in found for e in part) == list(range(20))
    assert all(len(part) == 1 or len(part) * max(map(len, part)) <= 30 for part in found)
    assert [len(part) for part in parts(given[:2], 1)] == [1, 1]
