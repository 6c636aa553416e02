"""Sentence embeddings: what clusters traces and feeds the hypernetwork."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bdc.errors import InputError

DEFAULT_ENCODER = "all-minilm-l6-v2"


class SentenceEncoder:
    """A transformers encoder with mean pooling over tokens, as Sentence-Transformers models are trained.

    ``name`` identifies it, ``dim`` is d, ``max_tokens`` the length beyond which texts are cut.

    Args:
        model: what `bdc.llm.resolve` takes.
        max_tokens: texts are truncated to this many tokens (None: the limit it was published with, 256 for MiniLM).
    """

    def __init__(self, model: str | Path = DEFAULT_ENCODER, *, max_tokens: int | None = None) -> None:
        import torch
        from transformers import AutoModel, AutoTokenizer

        from bdc.llm.loading import quiet
        from bdc.llm.registry import resolve

        folder = resolve(model)
        self.name = str(model)
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            with quiet():
                self._model: Any = AutoModel.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()
        except (OSError, ValueError, KeyError) as error:
            raise InputError(f"{folder} does not load as a text encoder: {error}") from error
        self.max_tokens = min(_limit(folder, self._model.config), max_tokens or 2**31)
        self.dim: int = self._model.config.hidden_size
        if torch.cuda.is_available():
            self._model.to("cuda")

    def encode(self, texts: Sequence[str], *, batch_size: int = 32) -> np.ndarray:
        """Float32 [n, dim], rows of L2 norm 1, in the order of the texts."""
        import torch

        out = np.zeros((len(texts), self.dim), dtype=np.float32)
        by_length = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        with torch.inference_mode():
            for start in range(0, len(texts), batch_size):
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
        return out


def _limit(folder: Path, config: Any) -> int:
    """Tokens per text: what the model was trained for if the folder says so, else what its positions allow."""
    published = folder / "sentence_bert_config.json"
    if published.is_file():
        return int(json.loads(published.read_text(encoding="utf-8")).get("max_seq_length") or 512)
    return int(getattr(config, "max_position_embeddings", None) or 512)
