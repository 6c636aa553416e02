"""Attention of a decoding step on a CPU: grouped heads as one batched product, on the cache as it lies."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from bdc.errors import InputError

_NAME = "bdc_decode"
_LAYERS = {"full_attention", "sliding_attention"}
_OWN_MASKS = {"bloom", "falcon", "gpt_neo"}  # they build masks or position biases from what `generate` does not pass


def check_attention(model: Any) -> None:
    """Check that `bdc.llm.generate` computes what the model's attention is.

    Raises:
        InputError: it has layers of another kind, a recurrent state, or masks of its own.
    """
    config = model.config.get_text_config()
    other = sorted(set(getattr(config, "layer_types", None) or ()) - _LAYERS)
    if other or config.model_type in _OWN_MASKS or getattr(model, "_is_stateful", False):
        why = f" (its layers have {other[0]})" if other else ""
        raise InputError(f"Models of type {config.model_type} cannot be run here{why}; name another model.")


def decode_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """One query per row against the cache; anything else goes to transformers' SDPA path.

    In bfloat16 this takes half the time of torch's fused CPU kernel, which converts the whole cache; scores are rounded
    to the dtype before the softmax, as in transformers' eager attention.

    Args:
        query: [rows, heads, 1, head_dim].
        key, value: [rows, kv_heads, length, head_dim].
        attention_mask: additive, [rows, 1, 1, length].

    Returns:
        [rows, 1, heads, head_dim] and no weights.
    """
    rows, heads, queries, dim = query.shape
    if queries > 1 or attention_mask is None or kwargs.get("softcap") is not None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    kv_heads = key.shape[1]
    scaling = kwargs.get("scaling") or dim**-0.5
    grouped = (query * scaling).reshape(rows, kv_heads, heads // kv_heads, dim)
    weights = torch.matmul(grouped, key.transpose(2, 3)).add_(attention_mask).softmax(-1)
    return torch.matmul(weights, value).reshape(rows, 1, heads, -1), None


AttentionInterface.register(_NAME, decode_attention)


@contextlib.contextmanager
def decoding(model: Any) -> Iterator[None]:
    """Run the model with `decode_attention`, if it is on a CPU and would use SDPA otherwise."""
    config = model.config.get_text_config()
    before = config._attn_implementation
    if before != "sdpa" or model.device.type != "cpu":
        yield
        return
    config._attn_implementation = _NAME
    try:
        yield
    finally:
        config._attn_implementation = before
