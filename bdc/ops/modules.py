"""Linear layers with a stack of experts beside them, and rank weights in force around a forward."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from torch.compiler import is_dynamo_compiling
from torch.nn.modules.module import _global_forward_hooks, _global_forward_pre_hooks

from bdc.errors import InputError
from bdc.ops import checks
from bdc.ops.extension import try_add
from bdc.ops.library import increment_version
from bdc.ops.linear import rankwise_lora_linear
from bdc.ops.quantized import Int8Experts, fold
from bdc.ops.slices import add_product, product

# Modules that multiply with the weights of layers inside them by themselves.
_READERS = (nn.MultiheadAttention, nn.TransformerEncoderLayer)

# Where a layer can be one launch.
_WHOLE_ON = {"cuda"}

Experts = tuple[Tensor, Tensor] | Int8Experts
"""lora_a [R, d_in] and lora_b [d_out, R] of one output."""


class RankwiseLoraLinear(nn.Module):
    """``base(x) + scaling * ((x A^T) * g) B^T``; only ``base(x)``, to the bit, while no rank weights are in force.

    Args:
        base: an ``nn.Linear`` (or a subclass), called through its own forward. Without gradients the product is added to
            what it returns, in place, unless it has forward hooks, which may keep that. On a GPU, without hooks, it is
            :func:`bdc.ops.rankwise_lora_linear` while rank weights are in force.
        lora_a: [R, d_in]; cast to the device, and where that is a dtype of floats to the dtype, of the base weight. Where it has
            both already its memory is shared, as with nn.Parameter.
        lora_b: [d_out, R]; likewise.
        scaling: alpha / rank.
        scales: [R] of :class:`bdc.ops.Int8Experts`, whose integers stay what they are. A copy of the rank weights is
            multiplied with them when those are put in force.
        ends: of a merged layer's S outputs, as in :func:`bdc.ops.rankwise_lora_slices`; lora_a is [S * R, d_in] and the rank
            weights are [N, S * R] then.
    """

    scales: Tensor | None

    def __init__(
        self,
        base: nn.Linear,
        lora_a: Tensor,
        lora_b: Tensor,
        scaling: float = 1.0,
        *,
        scales: Tensor | None = None,
        ends: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(base, nn.Linear):
            raise InputError(f"base must be an nn.Linear, got {type(base).__name__}")
        checks.check_are_tensors(lora_a=lora_a, lora_b=lora_b)
        checks.check_scaling(scaling)
        if ends is not None:
            ends = checks.as_ends(ends)
            checks.check_slices(lora_a, lora_b, ends)
        first = lora_a if ends is None else lora_a[: lora_b.shape[1]]
        checks.check_experts(first, lora_b, base.in_features, base.out_features)
        checks.check_scales(scales, lora_a, lora_b)
        self.base = base
        self.ends = ends
        device = base.weight.device
        dtype = base.weight.dtype if scales is None and base.weight.is_floating_point() else lora_a.dtype
        self.register_buffer("scales", None if scales is None else scales.detach().to(device))
        self.lora_a = nn.Parameter(lora_a.detach().to(device, dtype), requires_grad=False)
        self.lora_b = nn.Parameter(lora_b.detach().to(device, dtype), requires_grad=False)
        self.scaling = float(scaling)
        # While rank weights are in force: g, token_to_row, scaling, and what else try_add takes.
        self._arguments: tuple[Any, ...] | None = None
        self._contexts: list[list[Any]] = []  # that are open, each with its arguments

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
        base: Any = self._modules["base"]
        arguments = self._arguments
        if arguments is not None and x.device.type in _WHOLE_ON and _is_plain(base):
            whole = self._whole(x, base, *arguments[:3])
            if whole is not None:
                return whole
        y: Tensor = base(x)
        if arguments is None:
            return y
        a, b = self._experts()
        if torch.is_grad_enabled() and (
            y.requires_grad or x.requires_grad or arguments[0].requires_grad or a.requires_grad or b.requires_grad
        ):
            return y + product(self._tokens(x), a, b, *(*arguments[:3], self.ends)).view_as(y)
        if base._forward_hooks or _global_forward_hooks:
            y = y.clone()
        if not is_dynamo_compiling() and try_add(y, x, a, b, *arguments):
            increment_version((y,))
            return y
        y = y.contiguous()
        add_product(y.view(-1, y.shape[-1]), self._tokens(x), a, b, *(*arguments[:3], self.ends))
        return y

    def _whole(self, x: Tensor, base: nn.Linear, g: Tensor, rows: Tensor | None, scaling: float) -> Tensor | None:
        """Base and product together, where one launch may do both; None where a gradient is wanted, which hooks may watch."""
        a, b = self._experts()
        tensors = (x, base.weight, base.bias, a, b, g)
        if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
            return None
        y = rankwise_lora_linear(self._tokens(x), base.weight, base.bias, a, b, g, rows, scaling, self.ends)
        return y.view(*x.shape[:-1], y.shape[-1])

    def _experts(self) -> tuple[Tensor, Tensor]:
        """A and B as they are now, which functional_call and parametrizations replace."""
        a, b = self._parameters.get("lora_a"), self._parameters.get("lora_b")
        return self.lora_a if a is None else a, self.lora_b if b is None else b

    def _apply(self, fn: Any, recurse: bool = True) -> RankwiseLoraLinear:
        scales = self.scales
        super()._apply(fn, recurse)
        if scales is not None:  # float32, whatever the model is cast to
            self.scales = self.scales.float() if scales.is_meta else scales.to(self.lora_a.device)  # type: ignore[union-attr]
        return self

    def folded(self, rank_weights: Tensor | None) -> Tensor | None:
        """``rank_weights`` [N, R] as the product takes them: times the scales of integers."""
        if rank_weights is None or self.scales is None:
            return rank_weights
        return fold(rank_weights, self.scales)

    def arguments(self, rank_weights: Tensor, token_to_row: Tensor | None) -> tuple[Any, ...]:
        """Those of the product after the experts, and for several outputs the rest of :data:`bdc.ops.extension.try_add`'s."""
        plain = (rank_weights, token_to_row, self.scaling)
        return plain if self.ends is None else (*plain, None, False, None, self.ends)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_arguments": None, "_contexts": []}  # a copy has no rank weights in force

    def _tokens(self, x: Tensor) -> Tensor:
        """``x`` as [T, d_in]; refused if the rank weights in force are for another number of tokens."""
        assert self._arguments is not None
        g, rows = self._arguments[:2]
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


def _is_plain(base: nn.Linear) -> bool:
    """Whether its forward is torch's, which nobody watches or has replaced."""
    hooks = base._forward_hooks or base._forward_pre_hooks or _global_forward_hooks or _global_forward_pre_hooks
    return type(base) is nn.Linear and not hooks and "forward" not in base.__dict__


def apply_rankwise_lora(
    model: nn.Module, stacks: Mapping[str, Experts | Sequence[Experts]], scaling: float = 1.0
) -> dict[str, RankwiseLoraLinear]:
    """Wrap the named linear layers of ``model`` in place; nothing is changed if one of them does not fit.

    Args:
        stacks: module name, the first one of a layer that has several places, to (lora_a [R, d_in], lora_b [d_out, R]) or :class:`bdc.ops.Int8Experts`; or, for a merged layer,
            to a list of these, one per output in the order of the columns, with R ranks each.

    Returns:
        The wrapped layers by name; :func:`remove_rankwise_lora` undoes it.

    Raises:
        InputError: a name, its experts or the scaling do not fit.
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
        parent = known[name.rpartition(".")[0]]
        if isinstance(parent, RankwiseLoraLinear):
            raise InputError(f"{name} cannot be wrapped: the layer that it belongs to is wrapped already")
        if isinstance(parent, _READERS):
            raise InputError(f"{name} cannot be wrapped: {type(parent).__name__} reads its weight and does not call it")
        try:
            wrapped[name] = _wrap(layer, experts, scaling)
        except InputError as error:
            raise InputError(f"{name}: {error}") from error
    _replace(model, {module.base: module for module in wrapped.values()})
    return wrapped


def _wrap(layer: nn.Linear, experts: Experts | Sequence[Experts], scaling: float) -> RankwiseLoraLinear:
    if isinstance(experts, Int8Experts):
        return RankwiseLoraLinear(layer, experts.lora_a, experts.lora_b, scaling, scales=experts.scales)
    if not isinstance(experts, Sequence):
        raise InputError(
            f"experts must be (lora_a, lora_b), Int8Experts, or a list of these, got {type(experts).__name__}"
        )
    if not experts:
        raise InputError("the outputs of a merged layer must have experts, got an empty list")
    if isinstance(experts[0], Tensor):
        lora_a, lora_b = _pair(experts)
        return RankwiseLoraLinear(layer, lora_a, lora_b, scaling)
    outputs: list[Any] = list(experts)
    integers = [isinstance(own, Int8Experts) for own in outputs]
    if any(integers) != all(integers):
        raise InputError("the outputs of a merged layer must have experts of one kind, got Int8Experts and others")
    pairs = [(own.lora_a, own.lora_b) if isinstance(own, Int8Experts) else _pair(own) for own in outputs]
    for lora_a, lora_b in pairs:
        checks.check_experts(lora_a, lora_b, layer.in_features)
    if len({len(lora_a) for lora_a, _ in pairs}) > 1:
        raise InputError(
            f"the outputs of a merged layer must have equally many ranks, got {[len(a) for a, _ in pairs]}"
        )
    return RankwiseLoraLinear(
        layer,
        torch.cat([lora_a for lora_a, _ in pairs]),
        torch.cat([lora_b for _, lora_b in pairs]),
        scaling,
        scales=torch.cat([own.scales for own in outputs]) if all(integers) else None,
        ends=list(accumulate(len(lora_b) for _, lora_b in pairs)),
    )


def _pair(experts: Any) -> tuple[Tensor, Tensor]:
    if not isinstance(experts, Sequence) or len(experts) != 2:
        got = f"{len(experts)} of them" if isinstance(experts, Sequence) else type(experts).__name__
        raise InputError(f"experts must be a pair of tensors, lora_a and lora_b, got {got}")
    checks.check_are_tensors(lora_a=experts[0], lora_b=experts[1])
    return experts[0], experts[1]


def remove_rankwise_lora(model: nn.Module) -> list[str]:
    """Put the base layers back in place of the wrapped ones; returns their names."""
    wrapped = _wrapped(model)
    if "" in wrapped:
        raise InputError("the model is itself the wrapped layer: take its base")
    _replace(model, {module: module.base for module in wrapped.values()})
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
        elif not isinstance(weights, Mapping):
            raise InputError(f"weights must be a tensor, or tensors by module name, got {type(weights).__name__}")
        unknown = [name for name in weights if name not in wrapped]
        if unknown:
            raise InputError(f"{unknown[0]} has no experts in this model: apply_rankwise_lora wraps a layer")
        for name, g in weights.items():
            layer = wrapped[name]
            checks.check_are_tensors(**{f"rank_weights of {name}": g})
            dtype = layer.weight.dtype if layer.weight.is_floating_point() else layer.lora_a.dtype
            checks.check_weights(g, len(layer.lora_a), dtype, layer.lora_a.device)
        counts = [g.shape[0] for g in weights.values()]
        self._fewest = min(counts) if counts else None
        self._layers = [(layer, layer.folded(weights.get(name))) for name, layer in wrapped.items()]

    @contextmanager
    def __call__(self, token_to_row: Tensor | None = None) -> Iterator[None]:
        if self._fewest is not None:
            checks.check_rows(token_to_row, None, self._fewest)
        idle = (
            token_to_row is not None
            and checks.reads_values(token_to_row.device)
            and not torch.is_grad_enabled()  # zeros have gradients
            and not bool((token_to_row >= 0).any())
        )
        opened: list[tuple[RankwiseLoraLinear, list[Any]]] = []
        try:
            for layer, g in self._layers:
                opened.append((layer, [None if idle or g is None else layer.arguments(g, token_to_row)]))
                _open(*opened[-1])
            yield
        finally:
            for layer, context in opened:
                _close(layer, context)


def rank_weights(
    model: nn.Module, weights: Mapping[str, Tensor] | Tensor, token_to_row: Tensor | None = None
) -> AbstractContextManager[None]:
    """Rank weights in force in the wrapped layers of ``model`` inside a ``with``; blocks nest.

    They are in force for the model, whichever thread runs it. With gradient checkpointing the backward belongs inside, too.

    Args:
        weights: g [N, R] for all layers, or by module name; layers without a name there compute the base alone.
        token_to_row: [T], each token's row of g or -1 for no adapter; None as in :func:`bdc.ops.rankwise_lora`. Where all are -1
            on entry, on a CPU and without gradients, the base alone is computed inside, even if they change.

    Raises:
        InputError: weights or rows do not fit the wrapped layers.
    """
    return PreparedRankWeights(model, weights)(token_to_row)


def _open(layer: RankwiseLoraLinear, context: list[Any]) -> None:
    layer._contexts.append(context)
    _put(layer)


def _close(layer: RankwiseLoraLinear, context: list[Any]) -> None:
    # Generators may leave their contexts in another order than they entered them.
    layer.__dict__["_contexts"] = [other for other in layer._contexts if other is not context]
    _put(layer)


def _put(layer: RankwiseLoraLinear) -> None:
    """The arguments of the last open context are in force."""
    # nn.Module's __setattr__ looks for parameters first: milliseconds over the layers of a model.
    layer.__dict__["_arguments"] = layer._contexts[-1][0] if layer._contexts else None


def _replace(model: nn.Module, others: Mapping[nn.Module, nn.Module]) -> None:
    """Put other modules in every place of ``model`` that has one of these."""
    for parent in list(model.modules()):
        for name, module in parent._modules.items():
            if module is not None and module in others:
                setattr(parent, name, others[module])


def _wrapped(model: nn.Module) -> dict[str, RankwiseLoraLinear]:
    return {name: module for name, module in model.named_modules() if isinstance(module, RankwiseLoraLinear)}
