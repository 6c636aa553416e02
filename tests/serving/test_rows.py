"""The table of rank weights: whatever comes and goes, each token finds its request's row."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from bdc.errors import InputError
from bdc.serving.rows import Rows
from bdc.serving.wire import KEY, cache_salt, decode, encode

LAYERS = [[0], [2, None, 1], [1]]
RANKS, REQUESTS, TOKENS, MODULES = 3, 4, 32, 3


def _weights(seed: int) -> Tensor:
    return torch.rand(MODULES * RANKS, generator=torch.Generator().manual_seed(seed))


def _check(rows: Rows, step: dict[str, int], known: dict[str, Tensor]) -> None:
    """Each token's rank weights in each layer are its request's, and padding has none."""
    token = 0
    for request, tokens in step.items():
        for row in rows.token_to_row[token : token + tokens].tolist():
            if request not in known:
                assert row == -1
                continue
            own = known[request].view(MODULES, RANKS)
            for modules, table in zip(LAYERS, rows.weights, strict=True):
                expected = [torch.zeros(RANKS) if module is None else own[module] for module in modules]
                assert torch.equal(table[row], torch.cat(expected))
        token += tokens
    assert (rows.token_to_row[token:] == -1).all()


def test_any_order_of_requests() -> None:
    """More requests in flight than rows, in steps that leave some out, with some that have no experts."""
    rows = Rows(LAYERS, RANKS, REQUESTS, TOKENS, torch.device("cpu"))
    places = [table.data_ptr() for table in rows.weights]
    random = np.random.default_rng(0)
    known: dict[str, Tensor] = {}
    alive: list[str] = []
    for step in range(300):
        while len(alive) < 7 and random.random() < 0.6:
            request = f"{step}.{len(alive)}"
            weights = _weights(int(random.integers(1 << 30))) if random.random() < 0.8 else None
            rows.add(request, weights)
            alive.append(request)
            if weights is not None:
                known[request] = weights
        if alive and random.random() < 0.2:  # resumed after a preemption, as vLLM's second runner tells it
            rows.add(alive[0], known.get(alive[0]))
        chosen = random.permutation(alive)[: random.integers(0, REQUESTS + 1)]
        tokens = {str(request): int(random.integers(1, 9)) for request in chosen}
        if tokens:
            rows.place(list(tokens), np.array(list(tokens.values())))
            _check(rows, tokens, known)
        for request in [r for r in alive if random.random() < 0.2]:
            rows.drop(request)
            alive.remove(request)
            known.pop(request, None)
    assert [table.data_ptr() for table in rows.weights] == places


def test_on_the_way_numbers_stay_what_they_are() -> None:
    weights = torch.randn(2, 3, 4)
    text = encode(weights)
    found = decode({KEY: text, "other": 1}, 24)
    assert found is not None and torch.equal(found, weights.flatten())
    assert decode(None, 24) is None and decode({"other": 1}, 24) is None
    assert cache_salt(text) != cache_salt(encode(weights + 1)) != cache_salt(text, "given") != cache_salt(text)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (encode(torch.ones(5)), "holds 5 numbers, and this solver has 6"),
        (encode(torch.tensor([1.0, float("nan"), 1, 1, 1, 1])), "not finite"),
        ("?", "no text that bdc wrote"),
        ("AAAAA===", "no text that bdc wrote"),
        ("AAAA", "no text that bdc wrote"),
        (3, "no text that bdc wrote"),
        ([1.0], "no text that bdc wrote"),
    ],
)
def test_what_bdc_did_not_write_is_named(given: object, says: str) -> None:
    with pytest.raises(InputError, match=says):
        decode({KEY: given}, 6)
