"""Which rank weights each token of a step has: tensors that stay where they are, as CUDA graphs want them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


class Rows:
    """Rank weights of the requests in flight, and each token's row of them.

    Args:
        layers: for each layer of the model, which of the solver's L modules each of its S outputs is, or None.
        ranks: R, of one module.
        requests: N, the most that one step may hold.
        tokens: the most that one step may hold.

    Attributes:
        weights: per layer float32 [N, S * R].
        token_to_row: int32 [tokens], -1 for tokens without experts.
    """

    def __init__(
        self, layers: Sequence[Sequence[int | None]], ranks: int, requests: int, tokens: int, device: torch.device
    ) -> None:
        sizes = [requests * len(modules) * ranks for modules in layers]
        self._storage = torch.zeros(sum(sizes), device=device)
        self.weights = [
            part.view(requests, len(modules) * ranks)
            for part, modules in zip(self._storage.split(sizes), layers, strict=True)
        ]
        self.token_to_row = torch.full((tokens,), -1, dtype=torch.int32, device=device)
        self._source, self._first, self._step = _places(layers, ranks, sizes, device)
        self._known: dict[str, Tensor] = {}  # of requests in flight, float32 [L * R]
        self._row: dict[str, int] = {}
        self._free = list(range(requests))[::-1]
        self._written = 0  # tokens of the last step

    def add(self, request: str, weights: Tensor | None) -> None:
        """A request whose weights are ``weights``, [L * R]; None: it has no experts. It may be one that was known."""
        self.drop(request)
        if weights is not None:
            self._known[request] = weights

    def drop(self, request: str) -> None:
        """Forget a request, if it is known."""
        self._known.pop(request, None)
        if (row := self._row.pop(request, None)) is not None:
            self._free.append(row)

    def place(self, requests: Sequence[str], tokens: np.ndarray) -> None:
        """The next step holds so many ``tokens`` [n] of these requests, one after the other; padding has no experts."""
        fresh = [request for request in requests if request in self._known and request not in self._row]
        if len(fresh) > len(self._free):  # others wait, preempted
            for request in self._row.keys() - set(requests):
                self._free.append(self._row.pop(request))
        for request in fresh:
            self._row[request] = self._free.pop()
        if fresh:
            rows = self._moved(torch.tensor([self._row[request] for request in fresh]))
            values = self._moved(torch.stack([self._known[request] for request in fresh]))
            self._storage[self._first + rows.unsqueeze(1) * self._step] = values[:, self._source]
        of_request = np.array([self._row.get(request, -1) for request in requests], np.int32)
        of_token = np.repeat(of_request, tokens)
        total = len(of_token)
        if total < self._written:
            of_token = np.concatenate([of_token, np.full(self._written - total, -1, np.int32)])
        self.token_to_row[: len(of_token)] = self._moved(torch.from_numpy(of_token))
        self._written = total

    def _moved(self, tensor: Tensor) -> Tensor:
        """On the device; without waiting for it, since the next step is prepared while it computes this one."""
        device = self._storage.device
        return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def _places(
    layers: Sequence[Sequence[int | None]], ranks: int, sizes: Sequence[int], device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Of each element of one row of all layers: where it is in a request's weights, in row 0, and from row to row."""
    one = torch.arange(ranks)
    source, first, step = [], [], []
    start = 0
    for modules, size in zip(layers, sizes, strict=True):
        for output, module in enumerate(modules):
            if module is None:
                continue
            source.append(module * ranks + one)
            first.append(start + output * ranks + one)
            step.append(torch.full((ranks,), len(modules) * ranks))
        start += size
    empty = torch.empty(0, dtype=torch.long)
    source_, first_, step_ = (torch.cat([empty, *part]).to(device) for part in (source, first, step))
    return source_, first_, step_
