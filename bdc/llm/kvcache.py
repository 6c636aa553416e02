"""A key/value cache for batched decoding: written in place, rows can leave it.

transformers' DynamicCache concatenates, and so copies the whole cache at every token; at batch 96 that copy costs as
much as the matrix products. This one reserves room ahead and hands out views.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

_ROOM = 64  # positions reserved at a time


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
            self.capacity = end + _ROOM
            self.keys = self._grown(self.keys)
            self.values = self._grown(self.values)
        self.keys[:, :, self.length : end] = key_states
        self.values[:, :, self.length : end] = value_states
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def _grown(self, old: Tensor) -> Tensor:
        new = old.new_zeros((*old.shape[:2], self.capacity, old.shape[-1]))
        new[:, :, : self.length] = old[:, :, : self.length]
        return new

    def keep(self, rows: Tensor, drop_left: int) -> None:
        """Keep the given rows, and forget the first ``drop_left`` positions (padding of all of them)."""
        self.keys = self.keys[:, :, drop_left:].index_select(0, rows)
        self.values = self.values[:, :, drop_left:].index_select(0, rows)
        self.length -= drop_left
        self.capacity -= drop_left

    def get_mask_sizes(self, query_length: Any) -> tuple[int, int]:
        new = query_length if isinstance(query_length, int) else int(query_length.shape[0])
        return self.length + new, 0

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
