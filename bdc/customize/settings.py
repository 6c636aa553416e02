"""Settings of the hypernetwork and its training (arXiv 2502.12492)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from bdc.errors import InputError
from bdc.ranges import MOST_SEED, check_choices, check_ranges

Weighting = Literal["rank", "release", "expert"]
Ablation = Literal["expert-gate", "no-centroids"]


@dataclass(frozen=True, slots=True)
class CustomizeSettings:
    """The hypernetwork: embedding of the statement (and its cosines to the centroids) -> one weight per expert and
    rank.

    ``weighting``: "rank" is a softmax over the experts for each rank; "release" one softmax over all experts and ranks
    with scaling 1 instead of alpha / r; "expert" one weight per expert, as a mixture-of-LoRAs gate has. ``sharing``:
    every adapted layer has an MLP of its own ("layer"), or one MLP reads a learned embedding of the layer ("shared").

    ``ablations`` are further hypernetworks for comparison, trained alike over the same experts: "expert-gate" has one
    weight per expert, "no-centroids" does not see the centroids. Each takes as long again as the first.

    Training touches the hypernetwork only. Fields have the meanings that they have for the experts.
    """

    weighting: Weighting = "rank"
    sharing: Literal["layer", "shared"] = "layer"
    hidden: int = 64
    layer_dim: int = 32
    centroid_features: bool = True
    ablations: tuple[Ablation, ...] = ()

    lr: float = 1e-3
    epochs: int = 3
    batch_size: int = 8
    micro_tokens: int = 2048
    max_length: int = 1024
    warmup: float = 0.1
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    seed: int = 0

    def of_ablation(self, name: Ablation) -> CustomizeSettings:
        """The settings that an ablation is trained with."""
        changed: dict[str, Any] = {"weighting": "expert"} if name == "expert-gate" else {"centroid_features": False}
        return replace(self, ablations=(), **changed)

    def __post_init__(self) -> None:
        where = "customize."
        check_choices(self, where, "weighting", "sharing")
        known = get_args(Ablation)
        if unknown := [name for name in self.ablations if name not in known]:
            raise InputError(f"{where}ablations names {unknown[0]!r:.100}; there are {' and '.join(known)}")
        check_ranges(self, where, "epochs", "batch_size", "micro_tokens", "max_length", low=1)
        check_ranges(self, where, "hidden", "layer_dim", low=1, high=65536)
        check_ranges(self, where, "lr", "max_grad_norm", low=0, above=True, high=1e30)
        check_ranges(self, where, "weight_decay", low=0, high=1e30)
        check_ranges(self, where, "warmup", low=0, high=1)
        check_ranges(self, where, "seed", low=0, high=MOST_SEED)


RELEASE = CustomizeSettings(weighting="release", epochs=1)
"""The weighting of the authors' code release."""
