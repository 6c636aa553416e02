"""From problem statements to rank weights: encoder, centroids and hypernetwork, without the language model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from bdc.customize.hypernetwork import Hypernetwork
from bdc.disentangle.clustering import nearest
from bdc.errors import InputError

Weights = Literal["hypernetwork", "uniform", "nearest", "none"] | int
"""How a request's experts are weighted: by the hypernetwork, all alike, only the one of the nearest centroid, only the
one of that index, or not at all (the base model)."""


class Encoder(Protocol):
    """What turns statements into float32 embeddings [n, d]."""

    def encode(self, texts: Sequence[str]) -> np.ndarray: ...


class Customizer:
    """Rank weights per request.

    Args:
        layers, k, rank: shape of one request's weights.
        scaling: the experts' own alpha / r.
        hypernetwork, centroids, encoder: None for a stack that is used with fixed weights only.
    """

    def __init__(
        self,
        layers: int,
        k: int,
        rank: int,
        scaling: float,
        *,
        hypernetwork: Hypernetwork | None = None,
        centroids: np.ndarray | None = None,
        encoder: Encoder | None = None,
    ) -> None:
        self.layers, self.k, self.rank, self.expert_scaling = layers, k, rank, scaling
        self.hypernetwork, self.centroids, self.encoder = hypernetwork, centroids, encoder

    @property
    def scaling(self) -> float:
        """The factor outside the weights: alpha / r, or 1 with the release's weighting."""
        released = self.hypernetwork is not None and self.hypernetwork.config.weighting == "release"
        return 1.0 if released else self.expert_scaling

    @property
    def default(self) -> Weights:
        return "hypernetwork" if self.hypernetwork is not None else "uniform"

    def nearest_experts(self, statements: Sequence[str]) -> list[int]:
        """Index of the expert whose centroid is nearest to each statement.

        Raises:
            InputError: there are no centroids.
        """
        return [int(index) for index in nearest(self._embed(statements), self._centroids())]

    @torch.no_grad()
    def rank_weights(self, statements: Sequence[str], weights: Sequence[Weights] | Weights | None = None) -> Tensor:
        """Float32 [N, L, K, r], to be applied with :attr:`scaling`; all zero for "none".

        Raises:
            InputError: unknown weights, an index out of range, or one per request is missing.
        """
        wanted = self.check(len(statements), weights)
        out = torch.zeros(len(statements), self.layers, self.k, self.rank)
        fixed = self.expert_scaling / self.scaling
        by_network = [i for i, w in enumerate(wanted) if w == "hypernetwork"]
        by_centroid = [i for i, w in enumerate(wanted) if w == "nearest"]
        if by_network:
            assert self.hypernetwork is not None
            texts, rows = _distinct([statements[i] for i in by_network])
            embeddings = torch.from_numpy(self._embed(texts))
            out[by_network] = self.hypernetwork(embeddings, torch.from_numpy(self._centroids()))[rows]
        if by_centroid:
            for i, expert in zip(by_centroid, self.nearest_experts([statements[i] for i in by_centroid]), strict=True):
                out[i, :, expert] = fixed
        for i, choice in enumerate(wanted):
            if choice == "uniform":
                out[i] = fixed / self.k
            elif isinstance(choice, int):
                out[i, :, choice] = fixed
        return out

    def check(self, n: int, weights: Sequence[Weights] | Weights | None) -> list[Weights]:
        """One checked choice per request."""
        if weights is None:
            weights = self.default
        wanted = [weights] * n if isinstance(weights, (str, int)) else list(weights)
        if len(wanted) != n:
            raise InputError(f"{len(wanted)} weights for {n} requests; give one for all, or one per request")
        for choice in wanted:
            if isinstance(choice, int) and not 0 <= choice < self.k:
                raise InputError(f"expert {choice} does not exist; there are {self.k}, counted from 0")
            if isinstance(choice, str) and choice not in ("hypernetwork", "uniform", "nearest", "none"):
                raise InputError(
                    f"weights {choice!r} are unknown; use hypernetwork, uniform, nearest, none or an expert's index"
                )
            if choice == "hypernetwork" and self.hypernetwork is None:
                raise InputError("this solver has no hypernetwork; use weights uniform, none or an expert's index")
        return wanted

    def _embed(self, statements: Sequence[str]) -> np.ndarray:
        if self.encoder is None:
            raise InputError("this solver has no encoder; use weights uniform, none or an expert's index")
        return self.encoder.encode(statements)

    def _centroids(self) -> np.ndarray:
        if self.centroids is None:
            raise InputError("this solver has no centroids; use weights uniform, none or an expert's index")
        return self.centroids


def _distinct(texts: Sequence[str]) -> tuple[list[str], list[int]]:
    """The texts without repetition, and each text's place among them."""
    place: dict[str, int] = {}
    rows = [place.setdefault(text, len(place)) for text in texts]
    return list(place), rows
