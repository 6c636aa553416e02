"""Experts of 8 bits: how they are rounded, and the product on them."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from bdc.errors import InputError
from bdc.ops import (
    Int8Experts,
    PreparedRankWeights,
    RankwiseLoraLinear,
    apply_rankwise_lora,
    quantize_experts,
    rank_weights,
    rankwise_lora,
    rankwise_lora_,
    rankwise_lora_pools,
    remove_rankwise_lora,
)

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SHAPES = [
    (150, 96, 200, 24, 9),
    (1, 1, 1, 1, 1),
    (1, 640, 96, 64, 1),
    (2, 100, 70, 41, 2),
    (3, 64, 48, 16, 2),
    (4, 130, 77, 300, 3),
    (7, 37, 29, 13, 4),
    (33, 129, 65, 40, 5),
    (5, 9001, 33, 40, 3),
]


def with_integers(problem: SimpleNamespace) -> SimpleNamespace:
    """The problem with experts of int8 and with rank weights that hold their scales."""
    experts = quantize_experts(problem.a.float(), problem.b.float())
    problem.a, problem.b, problem.g = experts.lora_a, experts.lora_b, experts.fold(problem.g)
    return problem


def test_elements_are_off_by_half_a_scale_at_most() -> None:
    generator = torch.Generator().manual_seed(1)
    a, b = torch.randn(12, 300, generator=generator), torch.randn(50, 12, generator=generator) * 1e-3
    a[3] = 0
    b[:, 5] *= 1e6
    experts = quantize_experts(a, b)
    scale_a, scale_b = a.abs().amax(1) / 127, b.abs().amax(0) / 127
    torch.testing.assert_close(experts.scales, scale_a * scale_b)
    assert experts.scales[3] == 0
    assert ((a - experts.lora_a * scale_a[:, None]).abs() <= scale_a[:, None] * (0.5 + 1e-5)).all()
    assert ((b - experts.lora_b * scale_b).abs() <= scale_b * (0.5 + 1e-5)).all()
    assert experts.lora_a.abs().max() == experts.lora_b.abs().max() == 127  # the largest use the whole range
    assert experts.lora_b.is_contiguous()


@pytest.mark.parametrize("size", [1e-45, 1e-38, 1e38])
def test_tiny_and_huge_experts_stay_finite(size: float) -> None:
    experts = quantize_experts(torch.full((2, 8), size), torch.full((4, 2), 1e-3))
    assert experts.scales.isfinite().all()


def test_a_scale_too_small_for_float32_alone() -> None:
    experts = quantize_experts(torch.full((1, 8), 1e-36), torch.full((5, 1), 1e36))
    got = rankwise_lora(torch.ones(1, 8), experts.lora_a, experts.lora_b, experts.fold(torch.ones(1, 1)))
    torch.testing.assert_close(got, torch.full((1, 5), 8.0))


@pytest.mark.parametrize("size", [1e25, 1e-30])
def test_a_scale_beyond_float32_is_refused(size: float) -> None:
    a, b = torch.ones(3, 8), torch.ones(4, 3)
    a[1] = size
    b[:, 1] = size
    with pytest.raises(InputError, match=r"rank 1: .*need a scale beyond float32"):
        quantize_experts(a, b)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_error_is_within_the_bound(
    problems: SimpleNamespace, backend: str, dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    for seed in range(3):
        problem = with_integers(problems.make(*shape, dtype=dtype, seed=seed))
        got = rankwise_lora_(problem.y.clone(), *problem.arguments)
        problems.assert_within_bounds(got, problem, product_is_rounded=got.is_cuda)
        problem.y.zero_()
        problems.assert_within_bounds(rankwise_lora(*problem.arguments), problem)


@pytest.mark.parametrize("dtype", DTYPES)
def test_zero_weights_and_absent_rows_leave_the_output_alone(
    problems: SimpleNamespace, backend: str, dtype: torch.dtype
) -> None:
    problem = with_integers(problems.make(tokens=12, dtype=dtype))
    problem.rows[::3] = -1
    problem.x[0] = float("nan")
    got = rankwise_lora_(problem.y.clone(), *problem.arguments)
    assert torch.equal(got[::3], problem.y[::3])
    problem.g.zero_()
    problem.x[0] = 0
    assert torch.equal(rankwise_lora_(problem.y.clone(), *problem.arguments), problem.y)


def test_no_leak_from_other_rows(problems: SimpleNamespace, backend: str) -> None:
    problem = with_integers(problems.make(tokens=6, dtype=torch.bfloat16))
    problem.rows = torch.tensor([0, 1, 2, 0, 1, 3], dtype=torch.int32)
    clean = rankwise_lora(*problem.arguments)
    problem.g[1] = float("nan")
    problem.x[5] = float("inf")
    got = rankwise_lora(*problem.arguments)
    assert torch.equal(got[[0, 2, 3]], clean[[0, 2, 3]])
    assert not got[[1, 4, 5]].isfinite().all(1).any()


def test_strided_inputs_and_experts(problems: SimpleNamespace, backend: str) -> None:
    problem = with_integers(problems.make(tokens=8, d_in=64, rank=32))
    x, a, b, *rest = problem.arguments
    expected = rankwise_lora(x, a, b, *rest)
    wide_a, wide_b = torch.zeros(32, 80, dtype=torch.int8), torch.zeros(29, 40, dtype=torch.int8)
    wide_a[:, 5:69], wide_b[:, 3:35] = a, b
    for views in ((wide_a[:, 5:69], wide_b[:, 3:35]), (a.T.contiguous().T, b.T.contiguous().T)):
        torch.testing.assert_close(rankwise_lora(x, *views, *rest), expected, rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(
        rankwise_lora(x.repeat_interleave(2, 0)[::2], a, b, *rest), expected, rtol=1e-6, atol=1e-5
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pools(problems: SimpleNamespace, dtype: torch.dtype) -> None:
    problem = problems.make(tokens=20, rank=16, dtype=dtype)
    stacks = [quantize_experts(torch.randn(16, 37), torch.randn(29, 16)) for _ in range(3)]
    pools = torch.tensor([2, 0, 2, 1])
    a, b = (torch.stack([getattr(stack, name) for stack in stacks]) for name in ("lora_a", "lora_b"))
    g = torch.stack([stacks[pool].fold(problem.g[row]) for row, pool in enumerate(pools.tolist())])
    got = rankwise_lora_pools(problem.x, a, b, g, pools, problem.rows, 0.7)
    for pool, stack in enumerate(stacks):
        here = (problem.rows >= 0) & (pools[problem.rows.clamp_min(0)] == pool)
        alone = rankwise_lora(problem.x, stack.lora_a, stack.lora_b, g, problem.rows.masked_fill(~here, -1), 0.7)
        torch.testing.assert_close(got[here], alone[here], rtol=0.02 if dtype == torch.bfloat16 else 1e-5, atol=1e-4)


def test_func_and_the_number_of_ranks(problems: SimpleNamespace) -> None:
    problem = problems.make(rank=16)
    experts = quantize_experts(problem.a, problem.b)

    def loss(g: torch.Tensor) -> torch.Tensor:
        product = rankwise_lora(problem.x, experts.lora_a, experts.lora_b, experts.fold(g), problem.rows)
        return product.square().sum()

    leaf = problem.g.clone().requires_grad_()
    loss(leaf).backward()
    torch.testing.assert_close(torch.func.grad(loss)(problem.g), leaf.grad)
    for ranks in (1, 3):
        with pytest.raises(InputError, match=r"rank_weights must be \[N, 16\], got"):
            experts.fold(torch.ones(2, ranks))


def test_gradients_of_x_and_the_weights(problems: SimpleNamespace) -> None:
    problem = with_integers(problems.make())
    x, a, b, g, rows, s = problem.arguments
    inputs = [t.clone().requires_grad_() for t in (x, g)]
    rankwise_lora(inputs[0], a, b, inputs[1], rows, s).square().sum().backward()
    truth = [t.clone().requires_grad_() for t in (x, g)]
    rankwise_lora(truth[0], a.float(), b.float(), truth[1], rows, s).square().sum().backward()
    for got, expected in zip(inputs, truth, strict=True):
        torch.testing.assert_close(got.grad, expected.grad, rtol=1e-4, atol=1e-4 * float(expected.grad.abs().max()))


def test_operators(problems: SimpleNamespace) -> None:
    problem = with_integers(problems.make(dtype=torch.bfloat16))
    torch.library.opcheck(torch.ops.bdc.rankwise_lora, problem.arguments)
    compiled = torch.compile(rankwise_lora, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*problem.arguments), rankwise_lora(*problem.arguments))
    with torch.autocast("cpu", torch.bfloat16):
        x, *rest = problem.arguments
        assert torch.equal(rankwise_lora(x.float(), *rest), rankwise_lora(x, *rest))


def test_wrapped_layers_fold_the_scales() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(40, 30), nn.Linear(30, 20)).bfloat16()
    stacks = {str(i): (torch.randn(8, model[i].in_features), torch.randn(model[i].out_features, 8)) for i in (0, 1)}
    experts: dict[str, Int8Experts] = {name: quantize_experts(*stack) for name, stack in stacks.items()}
    x, g, rows = torch.randn(6, 40).bfloat16(), torch.rand(3, 8), torch.tensor([0, 1, 2, -1, 1, 0])
    with torch.inference_mode():
        plain = model(x)
        apply_rankwise_lora(model, experts, 0.5)
        assert torch.equal(model(x), plain)
        with rank_weights(model, g, rows):
            got = model(x)
        prepared = PreparedRankWeights(model, g.bfloat16())
        with prepared(rows):
            rounded = model(x)
        assert remove_rankwise_lora(model) == ["0", "1"]
        hidden = model[0](x)
        hidden += rankwise_lora(x, experts["0"].lora_a, experts["0"].lora_b, experts["0"].fold(g), rows, 0.5)
        last = model[1](hidden)
        last += rankwise_lora(hidden, experts["1"].lora_a, experts["1"].lora_b, experts["1"].fold(g), rows, 0.5)
    torch.testing.assert_close(got, last, rtol=0.02, atol=0.02 * float(last.abs().max()))
    torch.testing.assert_close(rounded, got, rtol=0.05, atol=0.05 * float(last.abs().max()))
    assert not torch.equal(got[:3], plain[:3]) and torch.equal(got[3], plain[3])


def test_layers_move_and_save_their_scales() -> None:
    experts = quantize_experts(torch.randn(4, 6), torch.randn(5, 4))
    layer = RankwiseLoraLinear(nn.Linear(6, 5), experts.lora_a, experts.lora_b, scales=experts.scales)
    assert layer.lora_a.dtype == torch.int8
    assert torch.equal(layer.state_dict()["scales"], experts.scales)
    layer.bfloat16()
    assert layer.weight.dtype == torch.bfloat16 and layer.lora_a.dtype == torch.int8
    assert torch.equal(layer.state_dict()["scales"], experts.scales)
    assert layer.to("meta").scales.is_meta


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda x, a, b, g: (x, a, b.float(), g), "lora_a must be torch.float32, the dtype of x, or int8 as both"),
        (lambda x, a, b, g: (x, a.float(), b, g), "lora_b must be torch.float32, the dtype of x, or int8 as both"),
        (lambda x, a, b, g: (x, a.to(torch.uint8), b.to(torch.uint8), g), "got torch.uint8"),
        (lambda x, a, b, g: (x.to(torch.int8), a, b, g), "x must be float32"),
        (lambda x, a, b, g: (x, a, b[:, :-1], g), "lora_b must be"),
    ],
)
def test_what_is_refused(problems: SimpleNamespace, change, says: str) -> None:  # type: ignore[no-untyped-def]
    x, a, b, g, rows, s = with_integers(problems.make()).arguments
    with pytest.raises(InputError, match=says):
        rankwise_lora(*change(x, a, b, g), rows, s)


def test_experts_that_cannot_be_rounded() -> None:
    a, b = torch.randn(4, 6), torch.randn(5, 4)
    for bad_a, bad_b, says in (
        (a.int(), b, "lora_a must be of floats"),
        (a, torch.full_like(b, float("inf")), "lora_b must be finite"),
        (a, b[:, :2], r"lora_b must be \[d_out, R\] with R = 4"),
        (a[0], b, r"lora_a must be \[R, d_in\]"),
    ):
        with pytest.raises(InputError, match=says):
            quantize_experts(bad_a, bad_b)
    experts = quantize_experts(a, b)
    with pytest.raises(InputError, match="scales must be given for experts of int8"):
        RankwiseLoraLinear(nn.Linear(6, 5), experts.lora_a, experts.lora_b)
    with pytest.raises(InputError, match=r"scales must be float32 \[4\]"):
        RankwiseLoraLinear(nn.Linear(6, 5), experts.lora_a, experts.lora_b, scales=experts.scales[:2])
    with pytest.raises(InputError, match="must be int8 where scales are given"):
        RankwiseLoraLinear(nn.Linear(6, 5), a, b, scales=experts.scales)
