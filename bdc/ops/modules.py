"""Linear layers with a stack of experts beside them, and rank weights in force around a forward."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from bdc.errors import InputError
from bdc.ops import checks
from bdc.ops.extension import try_add
from bdc.ops.functional import rankwise_lora, rankwise_lora_


class RankwiseLoraLinear(nn.Module):
    """``base(x) + scaling * ((x A^T) * g) B^T``; only ``base(x)``, to the bit, while no rank weights are in force.

    Args:
        base: an ``nn.Linear`` (or a subclass), called through its own forward.
        lora_a: [R, d_in]; cast to the dtype and device of the base weight.
        lora_b: [d_out, R]; likewise.
        scaling: alpha / rank.
    """

    def __init__(self, base: nn.Linear, lora_a: Tensor, lora_b: Tensor, scaling: float = 1.0) -> None:
        super().__init__()
        checks.check_experts(lora_a, lora_b, base.in_features, base.out_features)
        self.base = base
        place: dict[str, Any] = {"dtype": base.weight.dtype, "device": base.weight.device}
        self.lora_a = nn.Parameter(lora_a.detach().to(**place), requires_grad=False)
        self.lora_b = nn.Parameter(lora_b.detach().to(**place), requires_grad=False)
        self.scaling = float(scaling)
        self._weights: tuple[Tensor, Tensor | None] | None = None

    @property
    def weight(self) -> Tensor:
        """The base weight, for code that asks a layer for its dtype or device."""
        return self.base.weight

    @property
    def bias(self) -> Tensor | None:
        return self.base.bias

    @property
    def in_features(self) -> int:
        return self.base.in_features

    @property
    def out_features(self) -> int:
        return self.base.out_features

    def forward(self, x: Tensor) -> Tensor:
        """``x`` [..., d_in]; its tokens in order are those of the ``token_to_row`` in force."""
        y: Tensor = self.base(x)
        if self._weights is None:
            return y
        g, rows = self._weights
        arguments = (self.lora_a, self.lora_b, g, rows, self.scaling)
        if torch.is_grad_enabled() and (y.requires_grad or x.requires_grad or g.requires_grad or self._trains()):
            return y + rankwise_lora(self._tokens(x), *arguments).view_as(y)
        if not torch.compiler.is_compiling() and try_add(y, x, *arguments):
            return y
        y = y.contiguous()
        rankwise_lora_(y.view(-1, y.shape[-1]), self._tokens(x), *arguments)
        return y

    def _trains(self) -> bool:
        return self.lora_a.requires_grad or self.lora_b.requires_grad

    def _tokens(self, x: Tensor) -> Tensor:
        """``x`` as [T, d_in]; refused if the rank weights in force are for another number of tokens."""
        assert self._weights is not None
        g, rows = self._weights
        tokens = x.reshape(-1, x.shape[-1])
        if rows is not None and rows.shape[0] != tokens.shape[0]:
            raise InputError(f"token_to_row has {rows.shape[0]} tokens, but the layer got {tokens.shape[0]}")
        if rows is None and g.shape[0] not in (1, tokens.shape[0]):
            raise InputError(
                f"rank_weights have {g.shape[0]} rows and no token_to_row, but the layer got {tokens.shape[0]} tokens"
            )
        return tokens

    def extra_repr(self) -> str:
        return f"ranks={len(self.lora_a)}, scaling={self.scaling:g}"


def apply_rankwise_lora(
    model: nn.Module, stacks: Mapping[str, tuple[Tensor, Tensor]], scaling: float = 1.0
) -> dict[str, RankwiseLoraLinear]:
    """Wrap the named linear layers of ``model`` in place; nothing is changed if one of them does not fit.

    Args:
        stacks: module name to (lora_a [R, d_in], lora_b [d_out, R]).

    Returns:
        The wrapped layers by name; :func:`remove_rankwise_lora` undoes it.
    """
    known = dict(model.named_modules())
    wrapped: dict[str, RankwiseLoraLinear] = {}
    for name, (lora_a, lora_b) in stacks.items():
        layer = known.get(name)
        if not isinstance(layer, nn.Linear):
            got = "no such module" if layer is None else type(layer).__name__
            raise InputError(f"{name or 'the model itself'} must be an nn.Linear inside the model, got {got}")
        if layer is model:
            raise InputError("the model is itself the layer to wrap: use RankwiseLoraLinear on it instead")
        wrapped[name] = RankwiseLoraLinear(layer, lora_a, lora_b, scaling)
    for name, module in wrapped.items():
        model.set_submodule(name, module)
    return wrapped


def remove_rankwise_lora(model: nn.Module) -> list[str]:
    """Put the base layers back in place of the wrapped ones; returns their names."""
    wrapped = _wrapped(model)
    for name, module in wrapped.items():
        model.set_submodule(name, module.base)
    return list(wrapped)


@contextmanager
def rank_weights(
    model: nn.Module, weights: Mapping[str, Tensor] | Tensor, token_to_row: Tensor | None = None
) -> Iterator[None]:
    """Rank weights in force in the wrapped layers of ``model`` inside a ``with``; blocks nest.

    Args:
        weights: g [N, R] for all layers, or by module name; layers without a name there compute the base alone.
        token_to_row: [T], each token's row of g or -1 for no adapter; None as in :func:`bdc.ops.rankwise_lora`.
    """
    wrapped = _wrapped(model)
    if isinstance(weights, Tensor):
        weights = dict.fromkeys(wrapped, weights)
    unknown = [name for name in weights if name not in wrapped]
    if unknown:
        raise InputError(f"{unknown[0]} has no experts in this model: apply_rankwise_lora wraps a layer")
    for count in {len(g) for g in weights.values()}:
        checks.check_rows(token_to_row, None, count)
    for name, g in weights.items():
        layer = wrapped[name]
        checks.check_weights(g, len(layer.lora_a), layer.lora_a.dtype, layer.lora_a.device)
    # On a CPU it costs nothing to see that no token has an adapter.
    idle = token_to_row is not None and token_to_row.device.type == "cpu" and not bool((token_to_row >= 0).any())
    before = {name: module._weights for name, module in wrapped.items()}
    try:
        for name, module in wrapped.items():
            module._weights = None if idle or name not in weights else (weights[name], token_to_row)
        yield
    finally:
        for name, module in wrapped.items():
            module._weights = before[name]


def _wrapped(model: nn.Module) -> dict[str, RankwiseLoraLinear]:
    return {name: module for name, module in model.named_modules() if isinstance(module, RankwiseLoraLinear)}
