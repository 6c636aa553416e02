"""The input-aware hypernetwork (arXiv 2502.12492): a problem's features -> a weight per expert, rank and layer."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from bdc.customize.settings import CustomizeSettings, Weighting


@dataclass(frozen=True, slots=True)
class HypernetworkConfig:
    """Sizes and form; ``embedding_dim`` is the encoder's, ``layers`` the number of adapted linear layers."""

    embedding_dim: int
    layers: int
    k: int
    rank: int
    weighting: Weighting = "rank"
    sharing: Literal["layer", "shared"] = "layer"
    hidden: int = 64
    layer_dim: int = 32
    centroid_features: bool = True

    @classmethod
    def of(
        cls, settings: CustomizeSettings, *, embedding_dim: int, layers: int, k: int, rank: int
    ) -> HypernetworkConfig:
        return cls(
            embedding_dim,
            layers,
            k,
            rank,
            settings.weighting,
            settings.sharing,
            settings.hidden,
            settings.layer_dim,
            settings.centroid_features,
        )

    @property
    def features(self) -> int:
        return self.embedding_dim + (self.k if self.centroid_features else 0)

    @property
    def logits(self) -> int:
        """Logits per layer."""
        return self.k if self.weighting == "expert" else self.k * self.rank

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class Hypernetwork(nn.Module):
    """Two-layer MLPs, float32. The last layer starts at zero: an untrained one weights all experts alike."""

    def __init__(self, config: HypernetworkConfig, *, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        layers, hidden, width = config.layers, config.hidden, config.features
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            if config.sharing == "layer":
                self.weight_in = nn.Parameter(_uniform(layers, hidden, width, fan_in=width))
                self.bias_in = nn.Parameter(_uniform(layers, hidden, fan_in=width))
                self.weight_out = nn.Parameter(torch.zeros(layers, config.logits, hidden))
                self.bias_out = nn.Parameter(torch.zeros(layers, config.logits))
            else:
                fan_in = width + config.layer_dim
                self.weight_in = nn.Parameter(_uniform(hidden, width, fan_in=fan_in))
                self.bias_in = nn.Parameter(_uniform(hidden, fan_in=fan_in))
                self.weight_layer = nn.Parameter(_uniform(hidden, config.layer_dim, fan_in=fan_in))
                self.layer_embedding = nn.Parameter(torch.randn(layers, config.layer_dim))
                self.weight_out = nn.Parameter(torch.zeros(config.logits, hidden))
                self.bias_out = nn.Parameter(torch.zeros(config.logits))

    def forward(self, embeddings: Tensor, centroids: Tensor) -> Tensor:
        """Weights [N, L, K, r] of embeddings [N, d], given the centroids [K, d]."""
        features = embeddings.float()
        if self.config.centroid_features:
            features = torch.cat([features, cosines(features, centroids.float())], dim=1)
        return self._weights(self._logits(features))

    def _logits(self, features: Tensor) -> Tensor:
        if self.config.sharing == "layer":
            hidden = torch.relu(torch.einsum("nf,lhf->nlh", features, self.weight_in) + self.bias_in)
            return torch.einsum("nlh,loh->nlo", hidden, self.weight_out) + self.bias_out
        of_layer = self.layer_embedding @ self.weight_layer.T + self.bias_in
        hidden = torch.relu((features @ self.weight_in.T).unsqueeze(1) + of_layer)
        return hidden @ self.weight_out.T + self.bias_out

    def _weights(self, logits: Tensor) -> Tensor:
        n, layers, _ = logits.shape
        k, rank = self.config.k, self.config.rank
        match self.config.weighting:
            case "rank":
                return logits.view(n, layers, k, rank).softmax(dim=2)
            case "release":
                return logits.softmax(dim=2).view(n, layers, k, rank)
            case "expert":
                return logits.softmax(dim=2).unsqueeze(3).expand(n, layers, k, rank)


def cosines(embeddings: Tensor, centroids: Tensor) -> Tensor:
    """Cosine similarity [N, K] of embeddings [N, d] to centroids [K, d]."""
    return nn.functional.normalize(embeddings, dim=1) @ nn.functional.normalize(centroids, dim=1).T


def _uniform(*shape: int, fan_in: int) -> Tensor:
    bound = 1 / math.sqrt(fan_in)
    return torch.empty(shape).uniform_(-bound, bound)
