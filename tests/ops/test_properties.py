"""Random shapes, dtypes, layouts and row maps, on each backend, within the element-wise bounds."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bdc.ops import quantize_experts, rankwise_lora, rankwise_lora_

SHAPE = st.tuples(st.integers(0, 90), st.integers(1, 80), st.integers(1, 150), st.integers(1, 70), st.integers(1, 9))


def spread(tensor: torch.Tensor, gap: int) -> torch.Tensor:
    """The same values with ``gap`` elements between rows, in memory that is not a number elsewhere, or large."""
    elsewhere = float("nan") if tensor.is_floating_point() else 100
    wide = torch.full((len(tensor), tensor.shape[1] + gap), elsewhere, dtype=tensor.dtype)
    wide[:, : tensor.shape[1]] = tensor
    return wide[:, : tensor.shape[1]]


@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    shape=SHAPE,
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    gaps=st.tuples(*[st.sampled_from([0, 1, 16])] * 4),
    long_rows=st.booleans(),
    integers=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_any_problem(
    problems: SimpleNamespace,
    any_backend: str,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    gaps: tuple[int, ...],
    long_rows: bool,
    integers: bool,
    seed: int,
) -> None:
    problem = problems.make(*shape, dtype=dtype, seed=seed)
    if integers:
        experts = quantize_experts(problem.a.float(), problem.b.float())
        problem.a, problem.b, problem.g = experts.lora_a, experts.lora_b, experts.fold(problem.g)
    problem.x, problem.a, problem.b = (
        spread(t, gap) for t, gap in zip((problem.x, problem.a, problem.b), gaps, strict=False)
    )
    problem.rows = problem.rows.long() if long_rows else problem.rows
    y = spread(problem.y, gaps[3])
    beside = y.as_strided((len(y), y.shape[1] + gaps[3]), y.stride()) if len(y) else y
    got = rankwise_lora_(y, *problem.arguments)
    assert got is y
    problems.assert_within_bounds(got, problem)
    assert beside[:, y.shape[1] :].isnan().all()
    absent = problem.rows < 0
    assert torch.equal(got[absent], problem.y[absent])
    problem.y = torch.zeros_like(problem.y)
    fresh = rankwise_lora(*problem.arguments)
    problems.assert_within_bounds(fresh, problem)
    assert not fresh[absent].any()


@pytest.fixture(params=["torch", "cpp"])
def any_backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "cpp":
        request.getfixturevalue("cpp")
    monkeypatch.setenv("BDC_OPS_BACKEND", request.param)
    return str(request.param)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("tokens", [1, 9, 80])
def test_new_memory_is_written_whole(problems: SimpleNamespace, any_backend: str, tokens: int, training: bool) -> None:
    problem = problems.make(tokens=tokens)
    problem.rows[:1] = -1
    x, a, b, g, rows, s = problem.arguments
    expected = rankwise_lora_(torch.zeros_like(problem.y), *problem.arguments)
    leaf = g.clone().requires_grad_(training)
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)  # torch then fills new memory with NaN
    try:
        got = rankwise_lora(x, a, b, leaf, rows, s)
        if training:
            got.square().sum().backward()
            assert leaf.grad is not None and leaf.grad.isfinite().all()
    finally:
        torch.use_deterministic_algorithms(before)
    torch.testing.assert_close(got.detach(), expected, rtol=1e-5, atol=1e-5)
    assert not got[0].any()
