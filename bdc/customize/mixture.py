"""The base model with a stack of experts in it, and rank weights per request in force around a forward."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from bdc.customize.stacks import Stack
from bdc.errors import InputError


class Mixture:
    """Puts a stack into a model; outside :meth:`weighted` the model computes what it did before.

    Args:
        model: changed in place: its adapted linear layers are wrapped, and the experts follow its dtype and device.
        scaling: the factor outside the rank weights.
    """

    def __init__(self, model: Any, stack: Stack, scaling: float) -> None:
        from bdc.ops import apply_rankwise_lora

        known = dict(model.named_modules())
        missing = [name for name in stack.modules if name not in known]
        if missing:
            raise InputError(
                f"the base model has no layer {missing[0]}; it is not the model that the experts were trained on"
            )
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        self.linears: dict[str, Any] = {name: known[name] for name in stack.modules}
        apply_rankwise_lora(model, {m: (stack.lora_a[m], stack.lora_b[m]) for m in stack.modules}, scaling=scaling)
        self.model, self.modules = model, stack.modules

    def weighted(self, weights: Tensor, token_to_row: Tensor) -> AbstractContextManager[Any]:
        """Rank weights in force: ``weights`` [N, L, K, r]; ``token_to_row`` [T] is each token's row, or -1 for none."""
        from bdc.ops import rank_weights

        per_layer = weights.flatten(2).to(self.model.device).unbind(1)
        rows = token_to_row.to(self.model.device, torch.int32)
        return rank_weights(self.model, dict(zip(self.modules, per_layer, strict=True)), rows)
