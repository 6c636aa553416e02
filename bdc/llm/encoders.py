"""Sentence embeddings: what clusters traces and feeds the hypernetwork."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bdc.errors import InputError, needs_extra
from bdc.llm.base import storable
from bdc.llm.folders import KINDS, read_json

DEFAULT_ENCODER = "all-minilm-l6-v2"


# Of a token: a tokenizer reads all of what it is given, be it a thousand times what the model takes.
_MOST_CHARACTERS = 64


class SentenceEncoder:
    """A transformers encoder with mean pooling over tokens, as Sentence-Transformers models are trained.

    ``name`` identifies it, ``dim`` is d, ``max_tokens`` the length beyond which texts are cut.

    Args:
        model: what `bdc.llm.resolve` takes.
        max_tokens: texts are truncated to this many tokens (None: the limit it was published with, 256 for MiniLM). Of texts
            that have more than 64 characters for each, white space counts as one blank, and so many characters are read.

    Raises:
        ModelNotFoundError: no source has the model.
        InputError: a folder that holds no text encoder, or one that needs code of its own.
        MissingExtraError: a package of the extra `run` is not installed.
    """

    @needs_extra("run")
    def __init__(self, model: str | Path = DEFAULT_ENCODER, *, max_tokens: int | None = None) -> None:
        import torch
        from transformers import AutoModel

        from bdc.llm.loading import load_folder
        from bdc.llm.registry import resolve

        folder = resolve(model, kind="encoder")
        self.name = str(model)
        # A pooling layer, if the architecture has one, is not used.
        loaded = load_folder(AutoModel, folder, KINDS["encoder"], torch.float32, unused="pooler.")
        self._model: Any = loaded[0]
        self._tokenizer: Any = loaded[1]
        if self._tokenizer.pad_token_id is None:
            raise InputError(f"{folder}: the tokenizer names no padding token (pad_token), which a text encoder needs")
        limits = (_limit(folder, self._model.config), _positions(self._model), self._tokenizer.model_max_length)
        self.max_tokens = int(min(*limits, max_tokens or 2**31))
        self.dim: int = self._model.config.hidden_size
        if torch.cuda.is_available():
            self._model.to("cuda")

    def encode(self, texts: Sequence[str], *, batch_size: int = 32) -> np.ndarray:
        """Float32 [n, dim], in the order of the texts: rows of L2 norm 1, zero for a text without a token.

        Raises:
            InputError: the model gives NaN, so its weights are damaged.
        """
        import torch

        # A tokenizer takes no half of a surrogate pair.
        texts = [storable(self._cut(text)) for text in texts]
        out = np.zeros((len(texts), self.dim), dtype=np.float32)
        by_length = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        if not self._tokenizer("")["input_ids"]:  # no special tokens: a text may have none at all
            by_length = [i for i in by_length if self._tokenizer(texts[i])["input_ids"]]
        with torch.inference_mode():
            for start in range(0, len(by_length), batch_size):
                chunk = by_length[start : start + batch_size]
                inputs = self._tokenizer(
                    [texts[i] for i in chunk],
                    padding=True,
                    truncation=True,
                    max_length=self.max_tokens,
                    return_tensors="pt",
                ).to(self._model.device)
                hidden = self._model(**inputs).last_hidden_state
                mask = inputs["attention_mask"].unsqueeze(-1).to(hidden.dtype)
                pooled = (hidden * mask).sum(1) / mask.sum(1)
                out[chunk] = torch.nn.functional.normalize(pooled, dim=-1).cpu().numpy()
        if not np.isfinite(out).all():
            raise InputError(f"the encoder {self.name} gives NaN or infinity for a text; its weights are damaged")
        return out

    def _cut(self, text: str) -> str:
        most = self.max_tokens * _MOST_CHARACTERS
        return text if len(text) <= most else " ".join(text.split())[:most]


def _limit(folder: Path, config: Any) -> int:
    """Tokens per text: what the model was trained for if the folder says so, else what its positions allow."""
    found = None
    published = folder / "sentence_bert_config.json"
    if published.is_file():
        found = read_json(published, folder).get("max_seq_length")
    found = found or getattr(config, "max_position_embeddings", None) or 512
    if not isinstance(found, int) or found < 1:
        raise InputError(f"{folder} limits texts to {found!r:.100} tokens; that must be a whole number from 1")
    return found


def _positions(model: Any) -> int:
    """Tokens that the model has positions for; RoBERTa's kind counts them from behind the padding's."""
    positions: int = getattr(model.config, "max_position_embeddings", None) or 2**31
    table = getattr(getattr(model, "embeddings", None), "position_embeddings", None)
    padding = getattr(table, "padding_idx", None)
    return positions if padding is None else positions - padding - 1
