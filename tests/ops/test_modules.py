"""Wrapped layers: the base to the bit without weights, the product with them, and the way back."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bdc.errors import InputError
from bdc.ops import PreparedRankWeights, apply_rankwise_lora, rank_weights, reference, remove_rankwise_lora


def model_and_stacks(
    dtype: torch.dtype = torch.float32,
) -> tuple[nn.Sequential, dict[str, tuple[torch.Tensor, torch.Tensor]]]:
    torch.manual_seed(0)
    model = (
        nn.Sequential(nn.Linear(12, 10), nn.Sequential(nn.Linear(10, 8, bias=False))).to(dtype).requires_grad_(False)
    )
    stacks = {"0": (torch.randn(6, 12), torch.randn(10, 6)), "1.0": (torch.randn(6, 10), torch.randn(8, 6))}
    return model, stacks


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_base_to_the_bit(dtype: torch.dtype) -> None:
    model, stacks = model_and_stacks(dtype)
    x = torch.randn(3, 5, 12).to(dtype)
    before = model(x)
    wrapped = apply_rankwise_lora(model, stacks, 2.0)
    assert list(wrapped) == ["0", "1.0"] and wrapped["0"].lora_a.dtype == dtype
    assert torch.equal(model(x), before)
    with rank_weights(model, torch.randn(2, 6), torch.full((15,), -1, dtype=torch.int32)):
        assert torch.equal(model(x), before)
    with torch.no_grad(), rank_weights(model, torch.zeros(1, 6)):
        assert torch.equal(model(x), before)
    assert remove_rankwise_lora(model) == ["0", "1.0"]
    assert type(model[0]) is nn.Linear and torch.equal(model(x), before)


@pytest.mark.parametrize("training", [False, True])
def test_values_and_gradient(training: bool) -> None:
    model, stacks = model_and_stacks()
    x = torch.randn(2, 3, 12)
    rows = torch.tensor([0, 0, -1, 1, 1, 1], dtype=torch.int32)
    g = {name: torch.randn(2, 6, requires_grad=training) for name in stacks}
    h = x.reshape(6, 12)
    for name in stacks:
        h = model.get_submodule(name)(h) + reference.rankwise_lora(h, *stacks[name], g[name], rows, 2.0)
    apply_rankwise_lora(model, stacks, 2.0)
    with rank_weights(model, g, rows):
        got = model(x)
    torch.testing.assert_close(got.view(6, 8), h, rtol=1e-4, atol=1e-4)
    if training:
        found = torch.autograd.grad(got.square().sum(), list(g.values()))
        expected = torch.autograd.grad(h.square().sum(), list(g.values()))
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-2)


def test_blocks_nest_and_end_after_an_error() -> None:
    model, stacks = model_and_stacks()
    x = torch.randn(4, 12)
    before = model(x)
    apply_rankwise_lora(model, stacks)
    with rank_weights(model, torch.ones(1, 6)):
        outer = model(x)
        with rank_weights(model, {"0": torch.ones(1, 6)}):
            assert not torch.equal(model(x), outer)
        assert torch.equal(model(x), outer)
        with pytest.raises(RuntimeError), rank_weights(model, torch.zeros(1, 6)):
            raise RuntimeError
        assert torch.equal(model(x), outer)
    assert torch.equal(model(x), before)


def test_prepared_weights_serve_many_forwards() -> None:
    model, stacks = model_and_stacks()
    apply_rankwise_lora(model, stacks, 2.0)
    g = {"0": torch.randn(2, 6)}
    prepared = PreparedRankWeights(model, g)
    before = model(torch.ones(3, 12))
    for rows in (torch.tensor([0, 1, -1]), torch.tensor([1, 1, 0], dtype=torch.int32), torch.full((3,), -1)):
        with rank_weights(model, g, rows):
            expected = model(torch.ones(3, 12))
        with prepared(rows):
            assert torch.equal(model(torch.ones(3, 12)), expected)
        assert torch.equal(model(torch.ones(3, 12)), before)
    with (
        pytest.raises(InputError, match=r"token_to_row must be in \[-1, 2\).*got 2"),
        prepared(torch.tensor([0, 2, 0])),
    ):
        pass
    with pytest.raises(InputError, match="2 has no experts"):
        PreparedRankWeights(model, {"2": g["0"]})


def test_errors() -> None:
    model, stacks = model_and_stacks()
    with pytest.raises(InputError, match=r"1 must be an nn.Linear inside the model, got Sequential"):
        apply_rankwise_lora(model, {"0": stacks["0"], "1": stacks["1.0"]})
    assert type(model[0]) is nn.Linear
    apply_rankwise_lora(model, stacks)
    with pytest.raises(InputError, match="2 has no experts"), rank_weights(model, {"2": torch.ones(1, 6)}):
        pass
    with pytest.raises(InputError, match=r"rank_weights must be \[N, 6\]"), rank_weights(model, torch.ones(1, 5)):
        pass
    rows = torch.zeros(3, dtype=torch.int32)
    with rank_weights(model, torch.ones(1, 6), rows), pytest.raises(InputError, match="3 tokens, but the layer got 4"):
        model(torch.randn(4, 12))
    with rank_weights(model, torch.ones(2, 6)), pytest.raises(InputError, match=r"2 rows .* 4 tokens"):
        model(torch.randn(4, 12))
