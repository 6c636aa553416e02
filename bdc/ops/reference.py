"""The product as its equation reads, in the dtype of its arguments; tests give it float64."""

from __future__ import annotations

import torch
from torch import Tensor


def rankwise_lora(
    x: Tensor,
    lora_a: Tensor,
    lora_b: Tensor,
    rank_weights: Tensor,
    token_to_row: Tensor | None = None,
    scaling: float = 1.0,
) -> Tensor:
    """``scaling * ((x[t] A^T) * g[row[t]]) B^T`` for each token, zero where the row is -1; differentiable, one token at a time.

    Args are those of :func:`bdc.ops.rankwise_lora`.
    """
    if token_to_row is None:
        rows = [0] * len(x) if len(rank_weights) == 1 else list(range(len(x)))
    else:
        rows = token_to_row.tolist()
    out = [
        scaling * ((token @ lora_a.T) * rank_weights[row]) @ lora_b.T if row >= 0 else token.new_zeros(len(lora_b))
        for token, row in zip(x, rows, strict=True)
    ]
    return torch.stack(out) if out else x.new_zeros(0, len(lora_b))


def rankwise_lora_pools(
    x: Tensor,
    lora_a: Tensor,
    lora_b: Tensor,
    rank_weights: Tensor,
    row_to_pool: Tensor,
    token_to_row: Tensor | None = None,
    scaling: float = 1.0,
) -> Tensor:
    """The same with ``lora_a[p]`` and ``lora_b[p]`` of each token's pool p = ``row_to_pool[row]``.

    Args are those of :func:`bdc.ops.rankwise_lora_pools`.
    """
    rows = torch.arange(len(x)) % len(rank_weights) if token_to_row is None else token_to_row
    out = x.new_zeros(len(x), lora_b.shape[1])
    for pool, (a, b) in enumerate(zip(lora_a, lora_b, strict=True)):
        here = torch.tensor([row if row >= 0 and row_to_pool[row] == pool else -1 for row in rows.tolist()])
        out = out + rankwise_lora(x, a, b, rank_weights, here, scaling)
    return out
