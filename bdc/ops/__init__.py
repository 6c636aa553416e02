"""The batched rank-wise weighted multi-LoRA product: one stack of experts, and a weight per rank for each request."""

from __future__ import annotations

from bdc.ops import reference
from bdc.ops.dispatch import backends
from bdc.ops.functional import rankwise_lora, rankwise_lora_
from bdc.ops.linear import rankwise_lora_linear
from bdc.ops.modules import (
    PreparedRankWeights,
    RankwiseLoraLinear,
    apply_rankwise_lora,
    rank_weights,
    remove_rankwise_lora,
)
from bdc.ops.pools import rankwise_lora_pools, rankwise_lora_pools_
from bdc.ops.quantized import Int8Experts, quantize_experts
from bdc.ops.slices import rankwise_lora_slices, rankwise_lora_slices_

__all__ = [
    "Int8Experts",
    "PreparedRankWeights",
    "RankwiseLoraLinear",
    "apply_rankwise_lora",
    "backends",
    "quantize_experts",
    "rank_weights",
    "rankwise_lora",
    "rankwise_lora_",
    "rankwise_lora_linear",
    "rankwise_lora_pools",
    "rankwise_lora_pools_",
    "rankwise_lora_slices",
    "rankwise_lora_slices_",
    "reference",
    "remove_rankwise_lora",
]
