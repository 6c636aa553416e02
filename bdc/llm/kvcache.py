"""A key/value cache for batched decoding: written in place, rows can leave it.

transformers' DynamicCache concatenates, and so copies the whole cache at every token; at batch 96 that copy costs as
much as the matrix products. This one reserves room ahead, and hands a decoding step the whole of it: a contiguous
tensor, whose unfilled end the attention mask hides.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

ROOM = 32  # positions reserved at a time: they are attended to, so more is not better


def _grown_to(length: int) -> int:
    return length + ROOM - 1


class _Layer(CacheLayerMixin):
    """Keys and values of one layer, ``[rows, kv_heads, capacity, head_dim]``; ``length`` positions are filled."""

    keys: Tensor
    values: Tensor

    is_sliding = False
    is_compileable = False

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.capacity = capacity
        self.length = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        rows, heads = key_states.shape[:2]
        self.reserve(rows, heads, key_states.shape[-1], value_states.shape[-1], key_states)

    def reserve(self, rows: int, heads: int, key_dim: int, value_dim: int, like: Tensor) -> None:
        self.dtype, self.device = like.dtype, like.device
        self.keys = like.new_zeros((rows, heads, self.capacity, key_dim))
        self.values = like.new_zeros((rows, heads, self.capacity, value_dim))
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        end = self.length + key_states.shape[-2]
        if end > self.capacity:
            self.capacity = _grown_to(end)
            self.keys = self._grown(self.keys)
            self.values = self._grown(self.values)
        self.keys[:, :, self.length : end] = key_states
        self.values[:, :, self.length : end] = value_states
        self.length = end
        return self.keys, self.values

    def _grown(self, old: Tensor) -> Tensor:
        new = old.new_zeros((*old.shape[:2], self.capacity, old.shape[-1]))
        new[:, :, : self.length] = old[:, :, : self.length]
        return new

    def keep(self, rows: Tensor, drop_left: int) -> None:
        """Keep the given rows, and forget the first ``drop_left`` positions (padding of all of them)."""
        self.keys = self.keys[rows, :, drop_left:].contiguous()
        self.values = self.values[rows, :, drop_left:].contiguous()
        self.length -= drop_left
        self.capacity -= drop_left

    def get_mask_sizes(self, query_length: Any) -> tuple[int, int]:
        new = query_length if isinstance(query_length, int) else int(query_length.shape[0])
        return max(self.capacity, self.length + new), 0

    def get_seq_length(self) -> int:
        return self.length

    def get_max_length(self) -> int:
        return -1

    def get_max_cache_shape(self) -> int:
        return -1


class KVCache(Cache):
    """One `_Layer` per attention layer of the model, all of the same length."""

    def __init__(self, layers: int, capacity: int) -> None:
        self.mine = [_Layer(capacity) for _ in range(layers)]
        super().__init__(layers=list(self.mine))

    def capacity_for(self, new: int) -> int:
        """Positions that attention sees at a step that adds ``new`` of them."""
        layer = self.mine[0]
        end = layer.length + new
        return layer.capacity if end <= layer.capacity else _grown_to(end)

    def adopt(self, other: KVCache, source: Tensor, target: Tensor, total_rows: int, length: int) -> None:
        """Copy rows ``source`` of a prefilled cache into rows ``target`` here, right-aligned at position ``length``."""
        for own, theirs in zip(self.mine, other.mine, strict=True):
            if not own.is_initialized:
                heads, key_dim = theirs.keys.shape[1], theirs.keys.shape[-1]
                own.reserve(total_rows, heads, key_dim, theirs.values.shape[-1], theirs.keys)
                own.length = length
            start = length - theirs.length
            own.keys[target, :, start:length] = theirs.keys[source, :, : theirs.length]
            own.values[target, :, start:length] = theirs.values[source, :, : theirs.length]

    def keep(self, rows: Tensor, drop_left: int) -> None:
        """See `_Layer.keep`."""
        for layer in self.mine:
            layer.keep(rows, drop_left)
