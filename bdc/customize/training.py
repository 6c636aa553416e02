"""Training of the hypernetwork alone, through the frozen base model and its frozen experts (arXiv 2502.12492)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bdc.customize.hypernetwork import Hypernetwork
from bdc.customize.mixture import Mixture
from bdc.customize.settings import CustomizeSettings
from bdc.disentangle.examples import Batch, Example
from bdc.disentangle.loss import example_nll
from bdc.disentangle.training import Fit, Trainer


def train_hypernetwork(
    mixture: Mixture,
    hypernetwork: Hypernetwork,
    pad: int,
    embeddings: np.ndarray,
    centroids: np.ndarray,
    train: Sequence[Example],
    validation: Sequence[Example],
    settings: CustomizeSettings,
    *,
    checkpoint: Path,
    key: str,
    factor: float = 1.0,
    on_step: Callable[[str], None] | None = None,
) -> Fit:
    """Train in place; the untrained network (all ranks weighted alike) is a candidate for the best one.

    Args:
        embeddings: float32 [M, d]; an example's ``source`` is its row.
        centroids: float32 [K, d].
        checkpoint, key: as `Trainer` takes them.
        factor: multiplies the weights, for a network whose scaling is not the mixture's.
    """
    device = mixture.model.device
    hypernetwork.to(device)
    table = torch.from_numpy(embeddings).to(device)
    fixed = torch.from_numpy(centroids).to(device)

    def nll(batch: Batch) -> Tensor:
        weights = hypernetwork(table[batch.sources], fixed) * factor
        with mixture.weighted(weights, token_rows(batch)):
            return example_nll(mixture.model, batch)

    trainer = Trainer(
        parameters=dict(hypernetwork.named_parameters()),
        module=hypernetwork,
        nll=nll,
        device=device,
        pad=pad,
        settings=settings,
        checkpoint=checkpoint,
        key=key,
        from_start=True,
    )
    fit = trainer.fit(train, validation, on_step)
    hypernetwork.cpu().eval()
    return fit


def token_rows(batch: Batch) -> Any:
    """Row of the batch for every token, int32 [B * S]; -1 for padding."""
    rows, width = batch.ids.shape
    row = torch.arange(rows, device=batch.ids.device).unsqueeze(1).expand(rows, width)
    inside = torch.arange(width, device=batch.ids.device) < batch.lengths.unsqueeze(1)
    return torch.where(inside, row, -1).flatten().to(torch.int32)
