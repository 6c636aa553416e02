"""Next-token loss on the tokens that count; only their positions reach the output head."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from bdc.disentangle.examples import Batch


@contextlib.contextmanager
def _head_reads(model: Any, positions: Tensor) -> Iterator[None]:
    """Inside, the output head gets hidden states [1, n, d] of the marked positions only, in any architecture."""

    def select(_: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (args[0][positions].unsqueeze(0), *args[1:])

    handle = model.get_output_embeddings().register_forward_pre_hook(select)
    try:
        yield
    finally:
        handle.remove()


def token_nll(model: Any, batch: Batch) -> Tensor:
    """Negative log-likelihood in nats, float32 [n], of every target of the batch."""
    with _head_reads(model, batch.predicts):
        logits = model(input_ids=batch.ids, use_cache=False).logits[0]
    return torch.nn.functional.cross_entropy(logits.float(), batch.targets, reduction="none")


def example_nll(model: Any, batch: Batch) -> Tensor:
    """Sums of :func:`token_nll` per example, float32 [B]."""
    sums = torch.zeros(len(batch.lengths), dtype=torch.float32, device=batch.ids.device)
    return sums.index_add(0, batch.rows, token_nll(model, batch))
