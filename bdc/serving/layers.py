"""A solver's experts in the linear layers of a model that vLLM has loaded, sharded as these are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from vllm.model_executor.layers.linear import LinearBase, LinearMethodBase, RowParallelLinear
from vllm.model_executor.models.utils import PPMissingLayer

from bdc.customize.stacks import Stack
from bdc.errors import InputError
from bdc.ops import rankwise_lora_, rankwise_lora_slices_
from bdc.serving.rows import Rows


@dataclass
class Target:
    """A layer of vLLM's model, and which of the solver's modules its outputs are: one for all, or one or none for each."""

    name: str
    layer: Any
    modules: list[str | None]


def find(model: nn.Module, modules: Sequence[str]) -> list[Target]:
    """Where the solver's modules are; those on other stages of a pipeline are left out.

    Raises:
        InputError: the model lacks a layer, or has it in a form that experts cannot be put beside.
    """
    known: dict[str, Any] = dict(model.named_modules())
    merged = {
        part: (whole, output, len(parts))
        for whole, parts in getattr(model, "packed_modules_mapping", {}).items()
        if len(parts) > 1
        for output, part in enumerate(parts)
    }
    elsewhere = tuple(f"{name}." for name, module in known.items() if isinstance(module, PPMissingLayer))
    found: dict[str, Target] = {}
    for module in modules:
        parent, _, own = module.rpartition(".")
        whole, output, outputs = (own, 0, 1) if module in known else merged.get(own, (own, 0, 1))
        name = f"{parent}.{whole}" if parent else whole
        layer = known.get(name)
        if layer is None and name.startswith(elsewhere):
            continue
        if not isinstance(layer, LinearBase):
            got = "has no such layer" if layer is None else f"has a {type(layer).__name__} there"
            raise InputError(f"the solver adapts {module}, but vLLM's model {got}; serve the model it was trained on")
        # A forward of its own need not ask the layer's method, as DeepSeek's do not.
        if type(layer).forward.__module__ != LinearBase.__module__:
            raise InputError(
                f"the solver adapts {module}, which vLLM's {type(layer).__name__} computes by a way of its own; leave it "
                "out of the experts' target modules"
            )
        if outputs == 1 and len(layer.output_partition_sizes) > 1 and layer.tp_size > 1:
            raise InputError(f"{module} has several outputs under one name; serve it without tensor parallelism")
        found.setdefault(name, Target(name, layer, [None] * outputs)).modules[output] = module
    return list(found.values())


def install(
    model: nn.Module, stack: Stack, scaling: float, *, requests: int, tokens: int, dtype: torch.dtype, device: Any
) -> Rows:
    """Put the experts beside the layers of ``model``; returns the rows to be placed before each step.

    Args:
        scaling: the factor outside the rank weights.
        requests, tokens: the most of one step.
        dtype: of activations, and so of the experts.

    Raises:
        InputError: the model is not one that the solver fits.
    """
    targets = find(model, stack.modules)
    index = {module: i for i, module in enumerate(stack.modules)}
    layers = [[None if module is None else index[module] for module in target.modules] for target in targets]
    rows = Rows(layers, stack.k * stack.rank, requests, tokens, device)
    for target, weights in zip(targets, rows.weights, strict=True):
        layer = target.layer
        lora_a, lora_b, ends = _experts(target, stack)
        # As buffers, compiled code finds them where they are.
        layer.register_buffer("bdc_lora_a", lora_a.to(device, dtype), persistent=False)
        layer.register_buffer("bdc_lora_b", lora_b.to(device, dtype), persistent=False)
        layer.register_buffer("bdc_rank_weights", weights, persistent=False)
        layer.quant_method = RankwiseLoraMethod(layer.quant_method, ends, rows.token_to_row, scaling)
    return rows


def _experts(target: Target, stack: Stack) -> tuple[Tensor, Tensor, list[int]]:
    """A [S * R, d_in], B [d_out, R] and the outputs' ends, of this process; zeros where an output has no experts."""
    layer = target.layer
    sizes = list(layer.output_partition_sizes) if len(target.modules) > 1 else [sum(layer.output_partition_sizes)]
    parts_a, parts_b = [], []
    for module, size in zip(target.modules, sizes, strict=True):
        if module is None:
            ranks = stack.k * stack.rank
            parts_a.append(torch.zeros(ranks, layer.input_size))
            parts_b.append(torch.zeros(size, ranks))
            continue
        lora_a, lora_b = stack.lora_a[module], stack.lora_b[module]
        if lora_a.shape[1] != layer.input_size or len(lora_b) % size or len(lora_b) > size * layer.tp_size:
            raise InputError(
                f"the experts of {module} are for {lora_a.shape[1]} inputs and {len(lora_b)} outputs, but vLLM's layer "
                f"{target.name} has {layer.input_size} and {size * layer.tp_size}; serve the model that the solver was "
                "trained on"
            )
        parts_a.append(lora_a)
        # Heads of keys and values may be on several processes.
        shards = len(lora_b) // size
        parts_b.append(lora_b.tensor_split(shards)[layer.tp_rank * shards // layer.tp_size])
    lora_a = torch.cat(parts_a)
    if isinstance(layer, RowParallelLinear):
        lora_a = lora_a.tensor_split(layer.tp_size, dim=1)[layer.tp_rank]
    return lora_a.contiguous(), torch.cat(parts_b), list(accumulate(sizes))


class RankwiseLoraMethod(LinearMethodBase):  # type: ignore[misc]
    """A layer's method, with the product of its experts added to what it computes, before shards are summed."""

    def __init__(self, base: Any, ends: list[int], token_to_row: Tensor, scaling: float) -> None:
        self.base, self.ends, self.token_to_row, self.scaling = base, ends, token_to_row, scaling

    def create_weights(self, layer: nn.Module, *args: Any, **kwargs: Any) -> None:
        self.base.create_weights(layer, *args, **kwargs)

    def process_weights_after_loading(self, layer: nn.Module) -> None:
        self.base.process_weights_after_loading(layer)

    def apply(self, layer: Any, x: Tensor, bias: Tensor | None = None) -> Tensor:
        y: Tensor = self.base.apply(layer, x, bias)
        # No views where there need be none: compilers copy what is written through one.
        flat, tokens = (y, x) if x.ndim == 2 else (y.view(-1, y.shape[-1]), x.reshape(-1, x.shape[-1]))
        a, b, g = layer.bdc_lora_a, layer.bdc_lora_b, layer.bdc_rank_weights
        rows = self.token_to_row[: tokens.shape[0]]
        if len(self.ends) == 1:
            rankwise_lora_(flat, tokens, a, b, g, rows, self.scaling)
        else:
            rankwise_lora_slices_(flat, tokens, a, b, g, self.ends, rows, self.scaling)
        return y
