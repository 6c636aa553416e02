"""Gradients against finite differences, and against autograd through the reference."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from itertools import product
from types import SimpleNamespace

import pytest
import torch
import torch._dynamo.compiled_autograd
from torch import Tensor

from bdc.errors import InputError
from bdc.ops import cpp_gradients, extension, matmul, rankwise_lora, reference


@pytest.mark.parametrize("rows", ["ragged", "one", "each"])
def test_gradcheck(problems: SimpleNamespace, rows: str) -> None:
    problem = problems.make(tokens=5, d_in=4, d_out=3, rank=6, requests={"ragged": 3, "one": 1, "each": 5}[rows])
    inputs = [tensor.double().requires_grad_() for tensor in problem.arguments[:4]]
    place = torch.tensor([2, -1, 0, 2, 2], dtype=torch.int32) if rows == "ragged" else None
    assert torch.autograd.gradcheck(lambda *tensors: rankwise_lora(*tensors, place, 0.7), inputs)


UNIT = {torch.float64: 2.0**-53, torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}


def bounds(problem: SimpleNamespace, dy: Tensor) -> list[Tensor]:
    """Element-wise errors that gradients of x, a, b and g may have: each sum of n terms has 2 n units of its absolute terms.

    With h = x A^T, U = dY B and dP = s g U, as in bdc.ops.matmul; sums are in float32 or wider, results are rounded. In
    bfloat16 so are dP and the gated h.
    """
    rounded = UNIT[torch.bfloat16] if problem.x.dtype == torch.bfloat16 else 0.0
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
        (error(len(a)) + rounded) * dp @ a.abs() + dp_error @ a.abs(),
        (error(tokens) + rounded) * dp.T @ x.abs() + dp_error.T @ x.abs(),
        s * dy.abs().T @ (gate * ((error(tokens) + rounded) * h + h_error)),
        s * place @ (error(tokens) * h * u + h_error * u + h * u_error),
    ]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    "shape", [(20, 37, 29, 13, 4), (1, 8, 5, 3, 1), (90, 64, 33, 24, 6), (5, 2048, 1030, 40, 2), (300, 150, 530, 70, 5)]
)
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


def test_an_infinite_expert_leaves_tokens_without_adapter_alone(problems: SimpleNamespace, backend: str) -> None:
    x, a, b, g, rows, s = problems.make(tokens=6).arguments
    rows[:3] = -1
    a[0, 0] = float("inf")
    x = x.clone().requires_grad_()
    rankwise_lora(x, a, b, g, rows, s).sum().backward()
    assert x.grad is not None and not x.grad[:3].any()


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_kernel_has_the_gradients_that_are_needed(
    problems: SimpleNamespace, dtype: torch.dtype, cpp: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, a, b, g, rows, s = problems.make(tokens=70, d_in=90, d_out=50, rank=20, requests=4, dtype=dtype).arguments
    rows[::7] = -1
    x[::7] = float("nan")
    grad = torch.randn(70, 50).to(dtype)
    grad[::7] = float("inf")
    h = torch.zeros(70, 20)
    assert extension.try_add(torch.empty_like(grad), x, a, b, g.float(), rows, s, h, True)
    arguments = (grad, x, a, b, g.float(), rows, h, s)
    every = matmul.backward(*arguments, (True,) * 4)
    monkeypatch.setattr(matmul, "backward", None)
    for needed in product((False, True), repeat=4):
        for got, expected, need in zip(cpp_gradients.backward(*arguments, needed), every, needed, strict=True):
            assert (got is not None) == need
            if got is not None:
                assert expected is not None and got.dtype == expected.dtype and got.is_contiguous()
                scale = float(expected.abs().max())
                torch.testing.assert_close(
                    got / scale, expected / scale, rtol=0, atol=0.01 if dtype == torch.bfloat16 else 2e-3
                )


@pytest.mark.parametrize("view", [lambda x: x.T.contiguous().T, lambda x: torch.complex(x, x).conj().imag])
@pytest.mark.parametrize("tokens", [9, 70])
def test_arguments_that_are_views_have_gradients(
    problems: SimpleNamespace, tokens: int, view: Callable[[Tensor], Tensor], cpp: None
) -> None:
    """Strided, or negated as they are read."""
    problem = problems.make(tokens=tokens, d_in=12, d_out=10, rank=6)
    leaves = [tensor.clone().requires_grad_() for tensor in problem.arguments[:4]]
    rankwise_lora(*map(view, leaves), problem.rows, 0.7).sum().backward()  # of an expanded gradient
    got = [leaf.grad for leaf in leaves]
    for leaf in leaves:
        leaf.grad = None
    reference.rankwise_lora(*map(view, leaves), problem.rows, 0.7).sum().backward()
    for grad, leaf in zip(got, leaves, strict=True):
        torch.testing.assert_close(grad, leaf.grad, rtol=1e-4, atol=1e-4)


def test_a_released_input_is_named(problems: SimpleNamespace, cpp: None) -> None:
    x, a, b, g, rows, s = problems.make(tokens=70).arguments
    x, a = x.clone(), a.clone().requires_grad_()
    y = rankwise_lora(x, a, b, g, rows.clamp_min(0), s)
    x.untyped_storage().resize_(0)
    with pytest.raises(InputError, match="x must have memory, but its storage was released"):
        y.sum().backward()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_of_sixteen_bits_are_trained_on_the_kernel(
    problems: SimpleNamespace, dtype: torch.dtype, cpp: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, a, b, g, rows, s = problems.make(tokens=20, dtype=dtype).arguments
    narrow, wide = (g.to(dtype).to(kind).requires_grad_() for kind in (dtype, torch.float32))
    rankwise_lora(x, a, b, wide, rows, s).sum().backward()
    for name in ("forward", "backward"):
        monkeypatch.setattr(matmul, name, None)
    rankwise_lora(x, a, b, narrow, rows, s).sum().backward()
    assert narrow.grad is not None and wide.grad is not None
    assert torch.equal(narrow.grad, wide.grad.to(dtype))


def test_compiled_autograd_traces_the_backward(problems: SimpleNamespace, cpp: None) -> None:
    x, a, b, g, rows, s = problems.make().arguments
    leaves = [tensor.requires_grad_() for tensor in (x, a, b, g)]
    y = rankwise_lora(*leaves, rows, s).square().sum()
    eager = torch.autograd.grad(y, leaves, retain_graph=True)
    with torch._dynamo.compiled_autograd._enable(torch.compile(backend="eager", fullgraph=True)):
        traced = torch.autograd.grad(y, leaves)
    for got, expected in zip(traced, eager, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("tokens", [1, 2, 3, 5, 8, 9, 96, 97])
@pytest.mark.parametrize("rank", [3, 24, 270])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_kernel_multiplies_experts_as_they_lie_and_turned(
    problems: SimpleNamespace, tokens: int, rank: int, dtype: torch.dtype, cpp: None
) -> None:
    """Tiles of every width, blocks of rows, and either form."""
    problem = problems.make(tokens=tokens, d_in=330, d_out=301, rank=rank, requests=3, dtype=dtype)
    x, a, b, g, rows, s = problem.arguments
    rows[::5] = -1
    rows[0] = 0
    grad = problem.y
    u, alone, dx = torch.empty(tokens, rank), torch.empty(tokens, rank), torch.empty_like(x)
    assert extension.try_add(dx, grad, a, b, g, rows, s, u, True, None, None, True)
    assert extension.try_add(grad.new_empty(tokens, 0), grad, a, b, g, rows, s, alone, True, None, None, True)
    assert torch.equal(u, alone)
    present = (rows >= 0)[:, None]
    exact = (grad.double() @ b.double()) * present
    torch.testing.assert_close(u.double(), exact, rtol=1e-4, atol=1e-4 * float(exact.abs().max()))
    exact = exact * g.double()[rows.long().clamp_min(0)] * s @ a.double()
    unit = 1e-4 if dtype == torch.float32 else 1e-2
    torch.testing.assert_close(dx.double(), exact, rtol=unit, atol=unit * float(exact.abs().max()))


@pytest.mark.parametrize("tokens", [1, 8, 9, 65, 200])
@pytest.mark.parametrize("rank", [1, 7, 40, 300])
@pytest.mark.parametrize("turned", [False, True])
def test_sums_over_tokens(tokens: int, rank: int, turned: bool, cpp: None) -> None:
    x, w = torch.randn(tokens, 600)[:, :530], torch.randn(tokens, rank)
    exact = w.double().T @ x.double()
    got = extension.sum_over_tokens(x, w, turned=turned)
    torch.testing.assert_close(got.double(), exact if turned else exact.T, rtol=1e-4, atol=1e-4 * tokens**0.5)


def test_gradients_on_every_instruction_set(
    isa: str, cpp: None, run_with_isa: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    this = f"import pytest; import bdc._lora; raise SystemExit(pytest.main(['-q', {__file__!r}, '-k', 'bound or kernel or views or sums']))"
    done = run_with_isa(isa, [sys.executable, "-c", this], timeout=300)
    assert done.returncode == 0, done.stdout[-4000:]
