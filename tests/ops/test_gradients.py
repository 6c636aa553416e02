"""Gradients against finite differences, and against autograd through the reference."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from bdc.ops import rankwise_lora, reference


@pytest.mark.parametrize("rows", ["ragged", "one", "each"])
def test_gradcheck(problems: SimpleNamespace, rows: str) -> None:
    problem = problems.make(tokens=5, d_in=4, d_out=3, rank=6, requests={"ragged": 3, "one": 1, "each": 5}[rows])
    inputs = [tensor.double().requires_grad_() for tensor in problem.arguments[:4]]
    place = torch.tensor([2, -1, 0, 2, 2], dtype=torch.int32) if rows == "ragged" else None
    assert torch.autograd.gradcheck(lambda *tensors: rankwise_lora(*tensors, place, 0.7), inputs)


UNIT = {torch.float64: 2.0**-53, torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}


def bounds(problem: SimpleNamespace, dy: Tensor) -> list[Tensor]:
    """Element-wise errors that gradients of x, a, b and g may have: each sum of n terms has 2 n units of its absolute terms.

    With h = x A^T, U = dY B and dP = s g U, as in bdc.ops.matmul; sums are in float32 or wider, results are rounded.
    """
    x, a, b, g, rows, s = problem.arguments
    present = (rows >= 0)[:, None].double()
    x, a, b, gate, dy = x.double(), a.double(), b.double(), g.double()[rows.long().clamp_min(0)], dy.double()
    x, gate, dy = x * present, (gate * present).abs(), dy * present
    sums = UNIT[torch.promote_types(problem.x.dtype, torch.float32)]

    def error(terms: int) -> float:
        return 2 * (terms + 4) * sums  # four for the products by gate and scaling

    h, u = (x @ a.T).abs(), (dy @ b).abs()
    h_error, u_error = error(x.shape[1]) * (x.abs() @ a.T.abs()), error(dy.shape[1]) * (dy.abs() @ b.abs())
    dp, dp_error = s * gate * u, s * gate * u_error
    tokens = len(x)
    place = torch.zeros(len(g), tokens, dtype=torch.float64)
    place[rows.clamp_min(0).long(), torch.arange(tokens)] = present.squeeze(1)
    return [
        error(len(a)) * dp @ a.abs() + dp_error @ a.abs(),
        error(tokens) * dp.T @ x.abs() + dp_error.T @ x.abs(),
        s * dy.abs().T @ (gate * (error(tokens) * h + h_error)),
        s * place @ (error(tokens) * h * u + h_error * u + h * u_error),
    ]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(20, 37, 29, 13, 4), (1, 8, 5, 3, 1), (90, 64, 33, 24, 6)])
def test_error_is_within_the_bound(problems: SimpleNamespace, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    problem = problems.make(*shape, dtype=dtype)
    problem.g = problem.g.to(torch.promote_types(dtype, torch.float32))
    problem.rows[0] = 0  # the reference has no gradient where no token takes part
    inputs = [tensor.detach().clone().requires_grad_() for tensor in problem.arguments[:4]]
    exact = [tensor.detach().double().requires_grad_() for tensor in problem.arguments[:4]]
    rankwise_lora(*inputs, problem.rows, 0.7).backward(problem.y)
    reference.rankwise_lora(*exact, problem.rows, 0.7).backward(problem.y.double())
    for got, expected, bound in zip(inputs, exact, bounds(problem, problem.y), strict=True):
        assert got.grad is not None and expected.grad is not None and got.grad.dtype == got.dtype
        # Rounding to a 16-bit dtype has a least step of its own near zero.
        rounding = UNIT[got.dtype] * expected.grad.abs() + torch.finfo(got.dtype).smallest_normal
        excess = (got.grad.double() - expected.grad).abs() - rounding - bound * (1 + UNIT[got.dtype])
        assert bool((excess <= 0).all()), f"the error exceeds its bound by {float(excess.max())}"


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


@pytest.mark.parametrize("form", [rankwise_lora, torch.ops.bdc.rankwise_lora])
def test_inputs_are_kept_for_the_gradient_of_a_alone(problems: SimpleNamespace, form: Callable[..., Tensor]) -> None:
    x, a, b, g, rows, s = problems.make().arguments
    for name in ("a", "b", "g"):
        leaves = {"a": a.clone(), "b": b.clone(), "g": g.clone()}
        leaves[name].requires_grad_()
        tokens = x.clone()
        y = form(tokens, *leaves.values(), rows, s)
        tokens.add_(1)
        if name == "a":
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                y.sum().backward()
        else:
            y.sum().backward()
            expected = leaves[name].grad
            leaves[name].grad = None
            reference.rankwise_lora(x, *leaves.values(), rows, s).sum().backward()
            torch.testing.assert_close(expected, leaves[name].grad, rtol=1e-4, atol=1e-4)
