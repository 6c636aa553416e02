"""The base model with a stack of experts in it, and rank weights per request in force around a forward."""

from __future__ import annotations

from collections.abc import Callable
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
        int8: round the experts to 8 bits; those of the stack stay what they are.

    Raises:
        InputError: the model lacks a layer of the stack, or the stack adapts its output head, which reads fewer tokens.
    """

    def __init__(self, model: Any, stack: Stack, scaling: float, *, int8: bool = False) -> None:
        from bdc.ops import apply_rankwise_lora, quantize_experts

        known = dict(model.named_modules())
        missing = [name for name in stack.modules if name not in known]
        if missing:
            raise InputError(
                f"the base model has no layer {missing[0]}; it is not the model that the experts were trained on"
            )
        head = model.get_output_embeddings()
        if on_head := [name for name in stack.modules if known[name] is head]:
            raise InputError(f"the experts adapt {on_head[0]}, the model's output head; train them on other layers")
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        self.linears: dict[str, Any] = {name: known[name] for name in stack.modules}
        pairs = {m: (stack.lora_a[m], stack.lora_b[m]) for m in stack.modules}
        experts = {m: quantize_experts(*pair) for m, pair in pairs.items()} if int8 else pairs
        apply_rankwise_lora(model, experts, scaling=scaling)
        self.model, self.modules = model, stack.modules

    def weighing(self, weights: Tensor) -> Callable[[Tensor], AbstractContextManager[Any]]:
        """``weights`` [N, L, K, r], made ready for many forwards: called with [T], each token's row or -1, they are in force."""
        from bdc.ops import PreparedRankWeights

        per_layer = weights.flatten(2).to(self.model.device).unbind(1)
        prepared = PreparedRankWeights(self.model, dict(zip(self.modules, per_layer, strict=True)))
        return lambda token_to_row: prepared(token_to_row.to(self.model.device, torch.int32))

    def weighted(self, weights: Tensor, token_to_row: Tensor) -> AbstractContextManager[Any]:
        """:meth:`weighing` for one forward."""
        return self.weighing(weights)(token_to_row)
