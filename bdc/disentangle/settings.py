"""Settings of clustering and expert training (arXiv 2502.12492)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from bdc.errors import InputError
from bdc.ranges import MOST_SEED, check_choices, check_ranges


@dataclass(frozen=True, slots=True)
class DisentangleSettings:
    """Clusters and experts.

    Model: ``base_model`` is what `bdc.llm.resolve` takes; with ``dtype = "auto"`` its weights are bfloat16 where the
    machine multiplies that natively. Adapters are trained and stored in float32 either way.

    Clusters: ``k`` clusters of problem statements, or "auto" for the best silhouette in ``k_range`` (inclusive). A
    cluster of fewer than ``min_cluster_size`` problems is merged into its neighbours, so there may be fewer than ``k``.

    Adapters: every expert has ``rank`` and ``alpha``; ``target_modules`` are module name endings, or just "all-linear"
    for every linear layer of attention and MLP. The single LoRA for comparison has rank and alpha K times as large.

    Training: ``batch_size`` examples per step, computed in parts of at most ``micro_tokens`` padded tokens; examples
    longer than ``max_length`` tokens or the model's context are left out; ``warmup`` is the share of steps in which the
    rate climbs, after which it falls to 0 linearly; ``loss_on`` says whether the prompt's tokens count too.
    """

    base_model: str = "smollm2-135m-instruct"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    encoder: str = "all-minilm-l6-v2"

    k: int | Literal["auto"] = 3
    k_range: tuple[int, int] = (2, 8)
    min_cluster_size: int = 4

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.05
    target_modules: tuple[str, ...] = ("all-linear",)

    lr: float = 2e-4
    epochs: int = 2
    batch_size: int = 8
    micro_tokens: int = 2048
    max_length: int = 1024
    warmup: float = 0.1
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    loss_on: Literal["response", "all"] = "response"
    seed: int = 0

    def __post_init__(self) -> None:
        where = "disentangle."
        for name in ("base_model", "encoder"):
            if not getattr(self, name).strip():
                raise InputError(f"{where}{name} is empty; name a model that `bdc models list` prints, or its folder")
        check_choices(self, where, "dtype", "loss_on")
        if self.k != "auto":
            check_ranges(self, where, "k", low=1, high=1000)
        low, high = self.k_range
        if not 2 <= low <= high <= 1000:
            raise InputError(f"{where}k_range is {low}..{high}; it must be two numbers, 2 <= low <= high <= 1000")
        check_ranges(self, where, "min_cluster_size", "epochs", "batch_size", "micro_tokens", "max_length", low=1)
        check_ranges(self, where, "rank", low=1, high=4096)
        check_ranges(self, where, "alpha", "lr", "max_grad_norm", low=0, above=True, high=1e30)
        check_ranges(self, where, "weight_decay", low=0, high=1e30)
        check_ranges(self, where, "dropout", low=0, high=1, below=True)
        check_ranges(self, where, "warmup", low=0, high=1)
        check_ranges(self, where, "seed", low=0, high=MOST_SEED)
        names = self.target_modules
        if isinstance(names, str) or not names or not all(name.strip() for name in names):
            given = repr(names) if isinstance(names, str) else list(names)
            raise InputError(f'{where}target_modules is {given}; name module endings or use ["all-linear"]')


RELEASE = DisentangleSettings(
    encoder="Salesforce/codet5p-110m-embedding",
    target_modules=("q_proj", "v_proj"),
    lr=1e-3,
    epochs=1,
    batch_size=64,
    loss_on="all",
)
"""The figures of the authors' code release. Its encoder needs code of its own, which bdc does not run: name another one."""
