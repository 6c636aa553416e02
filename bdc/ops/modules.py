"""Linear layers with a stack of experts beside them, and rank weights in force around a forward."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from bdc.errors import InputError
from bdc.ops import checks
from bdc.ops.extension import try_add
from bdc.ops.functional import rankwise_lora, rankwise_lora_
from bdc.ops.quantized import Int8Experts

Experts = tuple[Tensor, Tensor] | Int8Experts


class RankwiseLoraLinear(nn.Module):
    """``base(x) + scaling * ((x A^T) * g) B^T``; only ``base(x)``, to the bit, while no rank weights are in force.

    Args:
        base: an ``nn.Linear`` (or a subclass), called through its own forward.
        lora_a: [R, d_in]; cast to the dtype and device of the base weight.
        lora_b: [d_out, R]; likewise.
        scaling: alpha / rank.
        scales: [R] of :class:`bdc.ops.Int8Experts`, whose integers stay what they are. A copy of the rank weights is
            multiplied with them when those are put in force.
    """

    scales: Tensor | None

    def __init__(
        self, base: nn.Linear, lora_a: Tensor, lora_b: Tensor, scaling: float = 1.0, *, scales: Tensor | None = None
    ) -> None:
        super().__init__()
        checks.check_experts(lora_a, lora_b, base.in_features, base.out_features)
        checks.check_scales(scales, lora_a, lora_b)
        self.base = base
        device = base.weight.device
        dtype = base.weight.dtype if scales is None else torch.int8
        self.register_buffer("scales", None if scales is None else scales.detach().to(device))
        self.lora_a = nn.Parameter(lora_a.detach().to(device, dtype), requires_grad=False)
        self.lora_b = nn.Parameter(lora_b.detach().to(device, dtype), requires_grad=False)
        self.scaling = float(scaling)
        # The arguments of the product while rank weights are in force.
        self._arguments: tuple[Tensor, Tensor, Tensor, Tensor | None, float] | None = None

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
        # As self.base does, without nn.Module's lookup of attributes, which adds up over the layers of a model.
        y: Tensor = self._modules["base"](x)  # type: ignore[misc]
        arguments = self._arguments
        if arguments is None:
            return y
        if torch.is_grad_enabled() and (
            y.requires_grad or x.requires_grad or arguments[2].requires_grad or self._trains()
        ):
            return y + rankwise_lora(self._tokens(x), *arguments).view_as(y)
        if not torch.compiler.is_compiling() and try_add(y, x, *arguments):
            return y
        y = y.contiguous()
        rankwise_lora_(y.view(-1, y.shape[-1]), self._tokens(x), *arguments)
        return y

    def folded(self, rank_weights: Tensor | None) -> Tensor | None:
        """``rank_weights`` [N, R] as the product takes them: times the scales of integers."""
        if rank_weights is None or self.scales is None:
            return rank_weights
        return rank_weights.float() * self.scales

    def _trains(self) -> bool:
        return self.lora_a.requires_grad or self.lora_b.requires_grad

    def _tokens(self, x: Tensor) -> Tensor:
        """``x`` as [T, d_in]; refused if the rank weights in force are for another number of tokens."""
        assert self._arguments is not None
        _, _, g, rows, _ = self._arguments
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
    model: nn.Module, stacks: Mapping[str, Experts], scaling: float = 1.0
) -> dict[str, RankwiseLoraLinear]:
    """Wrap the named linear layers of ``model`` in place; nothing is changed if one of them does not fit.

    Args:
        stacks: module name to (lora_a [R, d_in], lora_b [d_out, R]) or :class:`bdc.ops.Int8Experts`.

    Returns:
        The wrapped layers by name; :func:`remove_rankwise_lora` undoes it.
    """
    known = dict(model.named_modules())
    wrapped: dict[str, RankwiseLoraLinear] = {}
    for name, experts in stacks.items():
        layer = known.get(name)
        if not isinstance(layer, nn.Linear):
            got = "no such module" if layer is None else type(layer).__name__
            raise InputError(f"{name or 'the model itself'} must be an nn.Linear inside the model, got {got}")
        if layer is model:
            raise InputError("the model is itself the layer to wrap: use RankwiseLoraLinear on it instead")
        if isinstance(experts, Int8Experts):
            a, b, scales = experts.lora_a, experts.lora_b, experts.scales
            wrapped[name] = RankwiseLoraLinear(layer, a, b, scaling, scales=scales)
        else:
            wrapped[name] = RankwiseLoraLinear(layer, *experts, scaling)
    for name, module in wrapped.items():
        model.set_submodule(name, module)
    return wrapped


def remove_rankwise_lora(model: nn.Module) -> list[str]:
    """Put the base layers back in place of the wrapped ones; returns their names."""
    wrapped = _wrapped(model)
    for name, module in wrapped.items():
        model.set_submodule(name, module.base)
    return list(wrapped)


class PreparedRankWeights:
    """Rank weights for the wrapped layers of a model, checked once, to be put in force around many forwards.

    Called with the tokens' rows, it is the context of :func:`rank_weights`; as it is, for one forward.

    Args:
        weights: as in :func:`rank_weights`.
    """

    def __init__(self, model: nn.Module, weights: Mapping[str, Tensor] | Tensor) -> None:
        wrapped = _wrapped(model)
        if isinstance(weights, Tensor):
            weights = dict.fromkeys(wrapped, weights)
        unknown = [name for name in weights if name not in wrapped]
        if unknown:
            raise InputError(f"{unknown[0]} has no experts in this model: apply_rankwise_lora wraps a layer")
        for name, g in weights.items():
            layer = wrapped[name]
            checks.check_weights(g, len(layer.lora_a), layer.weight.dtype, layer.lora_a.device)
        self._counts = {len(g) for g in weights.values()}
        self._layers = [(layer, layer.folded(weights.get(name))) for name, layer in wrapped.items()]

    @contextmanager
    def __call__(self, token_to_row: Tensor | None = None) -> Iterator[None]:
        for count in self._counts:
            checks.check_rows(token_to_row, None, count)
        # On a CPU it costs nothing to see that no token has an adapter.
        idle = token_to_row is not None and token_to_row.device.type == "cpu" and not bool((token_to_row >= 0).any())
        before = [layer._arguments for layer, _ in self._layers]
        try:
            for layer, g in self._layers:
                _put(layer, None if idle or g is None else (layer.lora_a, layer.lora_b, g, token_to_row, layer.scaling))
            yield
        finally:
            for (layer, _), arguments in zip(self._layers, before, strict=True):
                _put(layer, arguments)


def rank_weights(
    model: nn.Module, weights: Mapping[str, Tensor] | Tensor, token_to_row: Tensor | None = None
) -> AbstractContextManager[None]:
    """Rank weights in force in the wrapped layers of ``model`` inside a ``with``; blocks nest.

    Args:
        weights: g [N, R] for all layers, or by module name; layers without a name there compute the base alone.
        token_to_row: [T], each token's row of g or -1 for no adapter; None as in :func:`bdc.ops.rankwise_lora`.

    Raises:
        InputError: weights or rows do not fit the wrapped layers.
    """
    return PreparedRankWeights(model, weights)(token_to_row)


def _put(layer: RankwiseLoraLinear, arguments: Any) -> None:
    # nn.Module's __setattr__ looks for parameters first: milliseconds over the layers of a model.
    layer.__dict__["_arguments"] = arguments


def _wrapped(model: nn.Module) -> dict[str, RankwiseLoraLinear]:
    return {name: module for name, module in model.named_modules() if isinstance(module, RankwiseLoraLinear)}
