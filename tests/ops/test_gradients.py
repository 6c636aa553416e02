"""Gradients against finite differences, and against autograd through the reference."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from bdc.ops import rankwise_lora, reference


@pytest.mark.parametrize("rows", ["ragged", "one", "each"])
def test_gradcheck(problems: SimpleNamespace, rows: str) -> None:
    problem = problems.make(tokens=5, d_in=4, d_out=3, rank=6, requests={"ragged": 3, "one": 1, "each": 5}[rows])
    inputs = [tensor.double().requires_grad_() for tensor in problem.arguments[:4]]
    place = torch.tensor([2, -1, 0, 2, 2], dtype=torch.int32) if rows == "ragged" else None
    assert torch.autograd.gradcheck(lambda *tensors: rankwise_lora(*tensors, place, 0.7), inputs)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-4), (torch.bfloat16, 3e-2)]
)
def test_same_as_the_reference(problems: SimpleNamespace, dtype: torch.dtype, tolerance: float) -> None:
    problem = problems.make(tokens=20, dtype=dtype)
    problem.g = problem.g.to(torch.promote_types(dtype, torch.float32))
    inputs = [tensor.detach().clone().requires_grad_() for tensor in problem.arguments[:4]]
    exact = [tensor.detach().double().requires_grad_() for tensor in problem.arguments[:4]]
    weights = problem.y.double()
    (rankwise_lora(*inputs, problem.rows, 0.7) * weights.to(dtype)).sum().backward()
    (reference.rankwise_lora(*exact, problem.rows, 0.7) * weights).sum().backward()
    for got, expected in zip(inputs, exact, strict=True):
        assert got.grad is not None and expected.grad is not None and got.grad.dtype == got.dtype
        scale = float(expected.grad.abs().max())
        torch.testing.assert_close(got.grad.double(), expected.grad, rtol=tolerance, atol=tolerance * scale)


def test_tokens_without_adapter_have_no_gradient(problems: SimpleNamespace) -> None:
    problem = problems.make(tokens=6)
    problem.rows[:3] = -1
    problem.x[0] = float("nan")
    inputs = [tensor.detach().clone().requires_grad_() for tensor in problem.arguments[:4]]
    rankwise_lora(*inputs, problem.rows, 0.7).sum().backward()
    assert all(tensor.grad is not None and tensor.grad.isfinite().all() for tensor in inputs)
    assert not inputs[0].grad[:3].any()


def test_same_bits_every_time(problems: SimpleNamespace) -> None:
    problem = problems.make(tokens=300, requests=3)
    seen = []
    for _ in range(4):
        g = problem.g.clone().requires_grad_()
        rankwise_lora(problem.x, problem.a, problem.b, g, problem.rows, 0.7).square().sum().backward()
        seen.append(g.grad)
    assert all(torch.equal(grad, seen[0]) for grad in seen)
