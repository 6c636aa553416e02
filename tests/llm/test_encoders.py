"""Sentence embeddings by what they mean, and as plain arrays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bdc.errors import InputError
from bdc.llm import SentenceEncoder

TEXTS = [
    "Sort a list of integers in ascending order.",
    "Return the numbers of an array from smallest to largest.",
    "Count the vowels in a string.",
    "x",
    "",
    "word " * 1000,
]


@pytest.fixture(scope="module")
def encoder(encoder_folder: Path) -> SentenceEncoder:
    return SentenceEncoder(encoder_folder)


@pytest.mark.models
def test_rows_are_unit_vectors_in_order(encoder: SentenceEncoder) -> None:
    rows = encoder.encode(TEXTS, batch_size=2)
    assert rows.shape == (len(TEXTS), encoder.dim) == (6, 384)
    assert rows.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
    for i, text in enumerate(TEXTS):  # neither order nor padding matters
        np.testing.assert_allclose(encoder.encode([text])[0], rows[i], atol=2e-5)


@pytest.mark.models
def test_similar_meanings_are_near(encoder: SentenceEncoder) -> None:
    first, second, other = encoder.encode(TEXTS[:3])
    assert first @ second > 0.4 > 0.3 > first @ other


@pytest.mark.models
def test_pooling_is_the_mean_over_tokens(encoder: SentenceEncoder) -> None:
    import torch

    inputs = encoder._tokenizer(TEXTS[0], return_tensors="pt")
    with torch.inference_mode():
        mean = encoder._model(**inputs).last_hidden_state[0].mean(0).numpy()
    np.testing.assert_allclose(encoder.encode(TEXTS[:1])[0], mean / np.linalg.norm(mean), atol=1e-5)


@pytest.mark.models
def test_long_texts_are_cut_at_the_published_limit(encoder: SentenceEncoder) -> None:
    assert encoder.max_tokens == 256
    np.testing.assert_allclose(encoder.encode(["word " * 1000]), encoder.encode(["word " * 254]), atol=1e-5)


@pytest.mark.models
def test_no_texts(encoder: SentenceEncoder) -> None:
    assert encoder.encode([]).shape == (0, 384)


def test_texts_without_a_token_are_zero(tiny_encoder: Path) -> None:
    encoder = SentenceEncoder(tiny_encoder)  # its tokenizer adds no special tokens
    assert np.array_equal(encoder.encode(["", ""]), np.zeros((2, 16)))
    rows = encoder.encode(["", "abc", "", "x"], batch_size=2)
    assert np.array_equal(rows[[0, 2]], np.zeros((2, 16)))
    np.testing.assert_allclose(rows[[1, 3]], encoder.encode(["abc", "x"]), atol=1e-6)


def test_half_of_a_surrogate_pair_is_read_as_what_stands_for_it(tiny_encoder: Path) -> None:
    encoder = SentenceEncoder(tiny_encoder)
    np.testing.assert_array_equal(encoder.encode(["a\ud800"]), encoder.encode(["a\ufffd"]))


def test_an_encoder_that_gives_nan_is_named(tiny_encoder: Path) -> None:
    import torch

    encoder = SentenceEncoder(tiny_encoder)
    with torch.no_grad():
        encoder._model.embeddings.word_embeddings.weight.fill_(torch.nan)
    with pytest.raises(InputError, match=r"the encoder .* gives NaN"):
        encoder.encode(["a"])


def test_the_tokenizer_is_not_given_what_the_model_cannot_take(
    tiny_encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = SentenceEncoder(tiny_encoder, max_tokens=8)
    read: list[int] = []
    tokenizer = encoder._tokenizer

    def record(texts: list[str] | str, **options: object) -> object:
        read.extend(map(len, texts))
        return tokenizer(texts, **options)

    expected = encoder.encode(["word " * 60])
    monkeypatch.setattr(encoder, "_tokenizer", record)
    np.testing.assert_array_equal(encoder.encode(["word " * 100_000]), expected)
    np.testing.assert_array_equal(encoder.encode([" " * 100_000 + "word " * 60]), expected)
    assert max(read) <= 8 * 64


def test_texts_are_cut_where_the_positions_of_roberta_end(tiny: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer, RobertaConfig, RobertaModel

    tokenizer = AutoTokenizer.from_pretrained(tiny)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = RobertaConfig(
        vocab_size=len(tokenizer), pad_token_id=0, bos_token_id=1, eos_token_id=0, max_position_embeddings=34, **sizes
    )
    RobertaModel(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    encoder = SentenceEncoder(tmp_path)
    assert encoder.max_tokens == 33
    np.testing.assert_allclose(encoder.encode(["b" * 100]), encoder.encode(["b" * 33]), atol=1e-6)
    tokenizer.model_max_length = 20
    tokenizer.save_pretrained(tmp_path)
    assert SentenceEncoder(tmp_path).max_tokens == 20
