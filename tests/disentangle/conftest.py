"""A tiny causal language model with a real tokenizer, and traces for it."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def save_tiny_model(folder: Path, *, seed: int = 0) -> Path:
    """A two-layer Llama with random weights (wide, so that its outputs differ) and a byte-level tokenizer."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    specials = ["<|end|>", "<|user|>", "<|assistant|>", "<|system|>"]
    vocabulary = {token: index for index, token in enumerate(specials + alphabet)}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|end|>", additional_special_tokens=specials[1:]
    )
    fast.chat_template = TEMPLATE
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.15,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=0,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        LlamaForCausalLM(config).save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the tiny model."""
    return save_tiny_model(tmp_path_factory.mktemp("tiny"))


SORTING = ("sort", "order", "ascending", "descending", "array")
STRINGS = ("vowels", "letters", "reverse the word", "capital letters", "palindrome")


def write_traces(path: Path, problems: int = 12, validation: int = 4) -> Path:
    """Two families of problems, half each, two traces per problem; the last ``validation`` problems are held out."""
    rows = []
    for index in range(problems):
        family, words = ("sorting", SORTING) if index % 2 else ("strings", STRINGS)
        statement = f"Write a function that works on {words[index % 5]} and {words[(index // 2) % 5]} number {index}."
        for kind in ("thoughts", "program"):
            rows.append(
                {
                    "id": f"{family}-{index:02d}#1/{kind}",
                    "problem_id": f"{family}-{index:02d}",
                    "node": 1,
                    "kind": kind,
                    "statement": statement,
                    "messages": json.dumps([{"role": "user", "content": f"{kind}: {statement}"}]),
                    "response": f"def f(x):\n    return {family}(x)" if kind == "program" else f"1. Use {family}.",
                    "agent": "test",
                    "value": 1.0,
                    "split": "validation" if index >= problems - validation else "train",
                }
            )
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path
