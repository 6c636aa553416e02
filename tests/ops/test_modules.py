"""Wrapped layers: the base to the bit without weights, the product with them, and the way back."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bdc.errors import InputError
from bdc.ops import (
    PreparedRankWeights,
    RankwiseLoraLinear,
    apply_rankwise_lora,
    quantize_experts,
    rank_weights,
    rankwise_lora,
    reference,
    remove_rankwise_lora,
)


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


@pytest.mark.parametrize(
    ("experts", "words"),
    [
        (None, "experts must be .*, got NoneType"),
        ([torch.zeros(6, 12)], "a pair of tensors, lora_a and lora_b, got 1 of them"),
        ([torch.zeros(6, 12)] * 3, "a pair of tensors, lora_a and lora_b, got 3 of them"),
        ((torch.zeros(6, 12), [1]), "lora_b must be a tensor, got list"),
        ([(torch.zeros(6, 12),)], "a pair of tensors, lora_a and lora_b, got 1 of them"),
        ((torch.zeros(6, 12), torch.zeros(10, 6).cfloat()), "lora_b must be of floats.* got torch.complex64"),
        ((torch.zeros(6, 12).int(), torch.zeros(10, 6)), "lora_a must be of floats.* got torch.int32"),
    ],
)
def test_experts_of_the_wrong_kind(experts: Any, words: str) -> None:
    model, _ = model_and_stacks()
    with pytest.raises(InputError, match=words):
        apply_rankwise_lora(model, {"0": experts})
    assert type(model[0]) is nn.Linear


def test_arguments_of_the_wrong_kind() -> None:
    model, stacks = model_and_stacks()
    for scaling in (float("nan"), float("inf"), "1", None):
        with pytest.raises(InputError, match="scaling must be"):
            apply_rankwise_lora(model, stacks, scaling)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"base must be an nn.Linear, got Conv1d"):
        RankwiseLoraLinear(nn.Conv1d(12, 10, 1), *stacks["0"])  # type: ignore[arg-type]
    apply_rankwise_lora(model, stacks)
    for weights, words in (([[1.0]], "got list"), (None, "got NoneType"), ({"0": None}, "rank_weights of 0 must be")):
        with pytest.raises(InputError, match=words):
            rank_weights(model, weights)  # type: ignore[arg-type]


def test_what_a_hook_keeps_of_the_base_stays_the_bases() -> None:
    model, stacks = model_and_stacks()
    x, kept = torch.randn(4, 12), list[torch.Tensor]()
    base = model[0](x)
    layer = apply_rankwise_lora(model, {"0": stacks["0"]})["0"]
    expected = base + rankwise_lora(x, *stacks["0"], torch.ones(1, 6))
    own = layer.base.register_forward_hook(lambda module, inputs, output: kept.append(output))
    for hook in (own, nn.modules.module.register_module_forward_hook(lambda m, i, output: kept.append(output))):
        with torch.no_grad(), rank_weights(model, torch.ones(1, 6)):
            torch.testing.assert_close(layer(x), expected)
        hook.remove()
        assert torch.equal(kept[0], base)
        kept.clear()


def test_contexts_may_close_in_any_order(problems: SimpleNamespace) -> None:
    problem = problems.make()
    layer = RankwiseLoraLinear(nn.Linear(37, 29), problem.a, problem.b).requires_grad_(False)

    def hold(g: Tensor) -> Iterator[None]:
        with rank_weights(layer, g, problem.rows):
            yield

    first, second = hold(problem.g), hold(2 * problem.g)
    next(first)
    expected = layer(problem.x)
    next(second)
    doubled = layer(problem.x)
    first.close()
    assert torch.equal(layer(problem.x), doubled)
    assert not torch.equal(expected, doubled)
    second.close()
    assert torch.equal(layer(problem.x), layer.base(problem.x))


def test_layers_whose_weight_is_read_by_others_are_refused() -> None:
    model = nn.Sequential(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True))
    for name, reader in (("0.linear1", "TransformerEncoderLayer"), ("0.self_attn.out_proj", "MultiheadAttention")):
        layer = model.get_submodule(name)
        experts = torch.zeros(4, layer.in_features), torch.zeros(layer.out_features, 4)
        with pytest.raises(InputError, match=f"{name} cannot be wrapped: {reader} reads its weight"):
            apply_rankwise_lora(model, {name: experts})


def test_a_layer_in_two_places_is_wrapped_in_both() -> None:
    layer = nn.Linear(8, 8)
    model = nn.Sequential(layer, nn.ModuleDict({"again": layer}))
    experts = torch.randn(4, 8), torch.randn(8, 4)
    wrapped = apply_rankwise_lora(model, {"0": experts})
    assert model[0] is model[1]["again"] is wrapped["0"]
    with pytest.raises(InputError, match=r"0\.base cannot be wrapped: the layer that it belongs to is wrapped already"):
        apply_rankwise_lora(model, {"0.base": experts})
    assert remove_rankwise_lora(model) == ["0"]
    assert model[0] is model[1]["again"] is layer


def test_a_base_of_integers_leaves_the_experts_dtype(problems: SimpleNamespace) -> None:
    class Quantised(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return torch.nn.functional.linear(x, self.weight.to(x.dtype))

    problem = problems.make()
    base = Quantised(37, 29, bias=False)
    base.weight = nn.Parameter(torch.randint(-9, 9, (29, 37), dtype=torch.int8), requires_grad=False)
    layer = RankwiseLoraLinear(base, problem.a, problem.b, 0.7).requires_grad_(False)
    with rank_weights(layer, problem.g, problem.rows):
        got = layer(problem.x)
    expected = base(problem.x) + rankwise_lora(*problem.arguments[:5], 0.7)
    torch.testing.assert_close(got, expected)


def test_no_adapter_at_all_has_gradients_of_zero(problems: SimpleNamespace) -> None:
    problem = problems.make()
    layer = RankwiseLoraLinear(nn.Linear(37, 29), problem.a, problem.b).requires_grad_(False)
    g = problem.g.requires_grad_()
    with rank_weights(layer, g, torch.full_like(problem.rows, -1)):
        layer(problem.x).sum().backward()
    assert torch.equal(g.grad, torch.zeros_like(g))


def test_weights_for_integers_are_trained_step_after_step(problems: SimpleNamespace) -> None:
    problem = problems.make()
    experts = quantize_experts(problem.a, problem.b)
    layer = RankwiseLoraLinear(nn.Linear(37, 29), experts.lora_a, experts.lora_b, scales=experts.scales)
    layer.requires_grad_(False)
    g = problem.g.requires_grad_()
    with torch.no_grad():
        prepared = PreparedRankWeights(layer, g)
    found = []
    for _ in range(2):
        with prepared(problem.rows):
            found += torch.autograd.grad(layer(problem.x).sum(), g)
    assert torch.equal(*found)
    assert found[0].abs().sum() > 0


def test_scales_are_float32_after_a_meta_model_was_cast(problems: SimpleNamespace) -> None:
    experts = quantize_experts(problems.make().a, problems.make().b)
    layer = RankwiseLoraLinear(nn.Linear(37, 29), experts.lora_a, experts.lora_b, scales=experts.scales)
    state = layer.state_dict()
    empty = layer.to("meta").to(torch.bfloat16).to_empty(device="cpu")
    empty.load_state_dict(state)
    assert torch.equal(empty.scales, experts.scales)
