"""The generator on small random models of many architectures, against transformers' own ``generate``."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers

from bdc.errors import InputError
from bdc.llm import load_model
from bdc.llm.generate import generate

SIZES: dict[str, Any] = {
    "vocab_size": 131,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
TOKENIZER = SimpleNamespace(eos_token_id=None, chat_template=None, decode=lambda tokens, **_: "")
PROMPTS = [[(7 * i + 3) % 128 + 3 for i in range(n)] for n in (40, 5, 23)]


def small(config: Any) -> Any:
    """A model whose attention matters to its answers, and which never ends them."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: Any = transformers.AutoModelForCausalLM.from_config(config).float().eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.normal_(std=0.25)
    model.generation_config.eos_token_id = None
    return model


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("Llama", {}),
        ("Mistral", {"sliding_window": 16}),
        ("Mixtral", {"sliding_window": 16, "num_local_experts": 2}),
        ("Starcoder2", {"sliding_window": 16}),
        ("Phi3", {"sliding_window": 16}),
        ("Phimoe", {"sliding_window": 16, "num_local_experts": 2}),
        ("Qwen2", {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1}),
        ("Qwen2", {"use_sliding_window": False, "sliding_window": 16}),
    ],
)
def test_greedy_is_that_of_transformers(kind: str, change: dict[str, Any]) -> None:
    model = small(getattr(transformers, f"{kind}Config")(**SIZES | change))
    expected = []
    for prompt in PROMPTS:
        ids = torch.tensor([prompt])
        full = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=24, do_sample=False)
        expected.append(full[0, len(prompt) :].tolist())
    for prompts, wanted in ((PROMPTS, expected), (PROMPTS[:1], expected[:1])):
        got = generate(model, TOKENIZER, prompts, max_new_tokens=24, temperature=0, seeds=[0] * len(prompts))
        assert [done.tokens for done in got] == wanted


BLOCKS = {"attention_types": [[["global", "local"], 1]], "num_layers": 2}


@pytest.mark.parametrize(
    ("kind", "change", "name"),
    [
        ("GPTNeo", BLOCKS, "gpt_neo"),
        ("Bloom", {}, "bloom"),
        ("Falcon", {}, "falcon"),
        ("Mamba", {"state_size": 8}, "mamba"),
        ("Llama4Text", {"num_local_experts": 2, "intermediate_size_mlp": 96}, "llama4_text"),
    ],
)
def test_attention_of_another_kind_is_refused(kind: str, change: dict[str, Any], name: str) -> None:
    config = getattr(transformers, f"{kind}Config")(**SIZES | change)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with pytest.raises(InputError, match=f"type {name} cannot"):
        generate(model, TOKENIZER, [[5, 6]], max_new_tokens=2, seeds=[0])


def test_attention_of_another_kind_is_refused_at_loading(tiny: Any, tmp_path: Any) -> None:
    transformers.AutoTokenizer.from_pretrained(tiny).save_pretrained(tmp_path)
    config = transformers.BloomConfig(vocab_size=300, hidden_size=32, n_layer=1, n_head=2)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="bloom"):
        load_model(tmp_path, "float32")


def test_a_finished_row_may_stay_beyond_learned_positions() -> None:
    model = small(transformers.GPT2Config(vocab_size=131, n_positions=64, n_embd=64, n_layer=2, n_head=4))
    prompts = [[5] * 54, *([7 + i] * 4 for i in range(9))]
    limits = [10] + [40] * 9
    got = generate(model, TOKENIZER, prompts, max_new_tokens=limits, temperature=0, seeds=[0] * 10)
    assert [len(done.tokens) for done in got] == limits


def test_settings_of_numpy_and_one_stop_for_all(tiny: Any) -> None:
    import numpy as np

    model, tokenizer = load_model(tiny, "float32")
    prompts = [[60, 7, 81], [12, 30]]

    def run(**settings: Any) -> Any:
        return generate(
            model, tokenizer, prompts, **{"max_new_tokens": 20, "temperature": 0, "seeds": [0, 1]} | settings
        )

    free = run()
    assert run(max_new_tokens=np.int64(20), temperature=np.float32(0), seeds=np.arange(2)) == free
    word = free[0].text[2:4]
    each = run(stop=[[word], [word]])
    assert each[0].text == free[0].text[: free[0].text.index(word)]
    assert run(stop=word) == run(stop=[word]) == run(stop=(word, "no such text")) == each
    assert run(stop=[]) == run(stop=[[], []]) == free


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": float("inf")}, "temperature"),
        ({"temperature": "1"}, "temperature must be numbers"),
        ({"top_p": float("nan")}, "top_p"),
        ({"max_new_tokens": 2.9}, "max_new_tokens must be whole"),
        ({"max_new_tokens": None}, "max_new_tokens must be whole"),
        ({"max_new_tokens": [[1]]}, "max_new_tokens must be whole"),
        ({"seeds": [0.5]}, "seeds must be"),
        ({"seeds": 3}, "seeds must be"),
        ({"stop": [["a"], "b"]}, "2 stop lists for 1"),
        ({"stop": [[None]]}, "stop must be"),
        ({"stop": 3}, "stop must be"),
    ],
)
def test_settings_of_a_wrong_kind_are_named(tiny: Any, change: dict[str, Any], words: str) -> None:
    options: dict[str, Any] = {"seeds": [0], "max_new_tokens": 4} | change
    with pytest.raises(InputError, match=words):
        generate(*load_model(tiny, "float32"), [[5, 6]], **options)
