"""From problem statements to rank weights: encoder, centroids and hypernetwork, without the language model."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from bdc.customize.hypernetwork import Hypernetwork
from bdc.disentangle.clustering import nearest
from bdc.errors import InputError

Weights = str | int
"""How a request's experts are weighted: "hypernetwork", an ablation's name, "uniform" (all alike), "nearest" (only the
one of the nearest centroid), an index (only that one), or "none" (the base model)."""

FIXED = ("uniform", "nearest", "none")
MAIN = "hypernetwork"


class Encoder(Protocol):
    """What turns statements into float32 embeddings [n, d]."""

    def encode(self, texts: Sequence[str]) -> np.ndarray: ...


class Customizer:
    """Rank weights per request.

    Args:
        layers, k, rank: shape of one request's weights.
        scaling: the experts' own alpha / r.
        networks: hypernetworks by name, "hypernetwork" and those of ablations; none for fixed weights only.
        centroids, encoder: what the hypernetworks and "nearest" need.

    Attributes:
        scaling: the factor that the mixture applies besides the weights.
    """

    def __init__(
        self,
        layers: int,
        k: int,
        rank: int,
        scaling: float,
        *,
        networks: Mapping[str, Hypernetwork] | None = None,
        centroids: np.ndarray | None = None,
        encoder: Encoder | None = None,
    ) -> None:
        self.layers, self.k, self.rank, self.expert_scaling = layers, k, rank, scaling
        self.networks, self.centroids, self.encoder = dict(networks or {}), centroids, encoder
        main = self.networks.get(MAIN)
        self.scaling = scaling if main is None else network_scaling(main, scaling)

    @property
    def choices(self) -> list[str]:
        """The names that requests may be weighted by, besides indices of experts; the first is the default."""
        return [*self.networks, *FIXED]

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
            InputError: unknown weights, an index out of range or no index, or one per request is missing.
        """
        wanted = self.check(len(statements), weights)
        out = torch.zeros(len(statements), self.layers, self.k, self.rank)
        fixed = self.expert_scaling / self.scaling
        for name, network in self.networks.items():
            if mine := [i for i, w in enumerate(wanted) if w == name]:
                texts, rows = _distinct([statements[i] for i in mine])
                given = network(torch.from_numpy(self._embed(texts)), torch.from_numpy(self._centroids()))[rows]
                out[mine] = given * (network_scaling(network, self.expert_scaling) / self.scaling)
        if by_centroid := [i for i, w in enumerate(wanted) if w == "nearest"]:
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
            weights = self.choices[0]
        one = isinstance(weights, str) or not isinstance(weights, Iterable) or getattr(weights, "ndim", 1) == 0
        wanted: list[Any] = [weights] * n if one else list(weights)  # type: ignore[arg-type]
        if len(wanted) != n:
            raise InputError(f"{len(wanted)} weights for {n} requests; give one for all, or one per request")
        return [self._checked(choice) for choice in wanted]

    def _checked(self, choice: Any) -> Weights:
        """The choice as a name or an index; integers of numpy and torch are indices, too."""
        if isinstance(choice, str):
            if choice not in self.choices:
                raise InputError(
                    f"this solver has no weights {choice!r}; use {', '.join(self.choices)} or an expert's index"
                )
            return choice
        try:
            if isinstance(choice, bool) or getattr(choice, "dtype", None) is torch.bool:
                raise TypeError
            index = operator.index(choice)
        except TypeError as error:
            raise InputError(f"weights must be names or indices of experts, not {choice!r:.100}") from error
        if not 0 <= index < self.k:
            raise InputError(f"expert {index} does not exist; there are {self.k}, counted from 0")
        return index

    def _embed(self, statements: Sequence[str]) -> np.ndarray:
        if self.encoder is None:
            raise InputError("this solver has no encoder; use weights uniform, none or an expert's index")
        embeddings = self.encoder.encode(statements)
        if (given := embeddings.shape[1]) != (wanted := self._centroids().shape[1]):
            raise InputError(
                f"the encoder gives {given} numbers per text and the centroids have {wanted}; "
                "it is not the encoder that the clusters were made with"
            )
        return embeddings

    def _centroids(self) -> np.ndarray:
        if self.centroids is None:
            raise InputError("this solver has no centroids; use weights uniform, none or an expert's index")
        return self.centroids


def network_scaling(network: Hypernetwork, scaling: float) -> float:
    """The factor outside a hypernetwork's weights: alpha / r, but 1 for the release's."""
    return 1.0 if network.config.weighting == "release" else scaling


def _distinct(texts: Sequence[str]) -> tuple[list[str], list[int]]:
    """The texts without repetition, and each text's place among them."""
    place: dict[str, int] = {}
    rows = [place.setdefault(text, len(place)) for text in texts]
    return list(place), rows
