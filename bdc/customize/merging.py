"""Static merges of the experts into the base weights, to compare with: TIES (arXiv 2306.01708), DARE (2311.03099)."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from bdc.customize.stacks import Stack
from bdc.errors import InputError

Merge = Literal["ties", "dare"]


def merged_delta(stack: Stack, module: str, method: Merge, *, density: float = 0.3, seed: int = 0) -> Tensor:
    """What a merge adds to a layer's weight, float32 [d_out, d_in].

    "ties" keeps of each expert's delta the share ``density`` with the largest magnitude, elects a sign for every
    element by the sum, and averages the values of that sign. "dare" keeps a random share ``density`` of each delta,
    scales it by 1 / density, and averages over the experts.
    """
    deltas = torch.stack([stack.delta(module, index) for index in range(stack.k)])
    if method == "dare":
        generator = torch.Generator().manual_seed(seed)
        kept = torch.rand(deltas.shape, generator=generator) < density
        return (deltas * kept / density).mean(0)
    flat = deltas.flatten(1).abs()
    count = max(1, round(density * flat.shape[1]))
    threshold = flat.kthvalue(flat.shape[1] - count + 1, dim=1).values
    trimmed = torch.where(deltas.abs() >= threshold.view(-1, 1, 1), deltas, 0.0)
    agrees = (trimmed.sign() == trimmed.sum(0).sign()) & (trimmed != 0)
    return (trimmed * agrees).sum(0) / agrees.sum(0).clamp(min=1)


@contextlib.contextmanager
def merged(
    linears: dict[str, Any], stack: Stack, method: Merge, *, density: float = 0.3, seed: int = 0
) -> Iterator[None]:
    """Inside, the linear layers add the merge's product to theirs, as experts are added; weights stay what they are.

    A sum with a weight would be rounded to its dtype, which in bfloat16 is coarser than most of a merge.

    Raises:
        InputError: an unknown method, or a density outside (0, 1].
    """
    if method not in get_args(Merge):
        raise InputError(f"there is no merge {method!r:.100}; use {' or '.join(get_args(Merge))}")
    if not 0 < density <= 1:
        raise InputError(f"density must be in (0, 1], not {density}")
    with contextlib.ExitStack() as hooks:
        for index, (name, linear) in enumerate(linears.items()):
            delta = merged_delta(stack, name, method, density=density, seed=seed * len(linears) + index)
            add = functools.partial(_add_product, delta.to(linear.weight))
            hooks.callback(linear.register_forward_hook(add).remove)
        yield


def _add_product(delta: Tensor, layer: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    return output + torch.nn.functional.linear(inputs[0], delta)
