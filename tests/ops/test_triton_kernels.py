"""The Triton kernels beyond the product itself: one-launch layers, slices, producers, concatenation, gradients.

They run on a GPU where there is one, else in Triton's interpreter.
"""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from bdc.errors import InputError
from bdc.ops import backends, counters, rankwise_lora, reference, triton_gradients, triton_kernels, triton_layer
from bdc.ops.triton_plan import layer_tiles, tiles

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# The interpreter cannot multiply bfloat16.
DTYPES = [torch.float32, torch.float16, *([torch.bfloat16] if DEVICE == "cuda" else [])]
UNIT = {torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
STEP = 2.0**-23


@pytest.fixture(autouse=True)
def needs_triton() -> None:
    if "triton" not in backends():
        pytest.skip("Triton is missing (pip install --no-deps triton), or bdc was installed without its kernels")


def moved(problem: SimpleNamespace) -> SimpleNamespace:
    for name in ("y", "x", "a", "b", "g", "rows"):
        setattr(problem, name, getattr(problem, name).to(DEVICE))
    return problem


def normal(*shape: int, dtype: torch.dtype, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype).to(DEVICE)


def product_bound(problem: SimpleNamespace) -> tuple[Tensor, Tensor]:
    """The product alone in float64, and the error it may have before the output is rounded."""
    x, a, b, g, rows, s = problem.arguments
    x, a, b, g = (tensor.double() for tensor in (x, a, b, g))
    gate = torch.where((rows >= 0)[:, None], g[rows.long().clamp_min(0)], 0)
    gated = s * (x @ a.T) * gate
    summed = s * (x.abs() @ a.abs().T * gate.abs()) @ b.abs().T
    after = gated.abs() @ b.abs().T
    unit = UNIT[problem.x.dtype]
    return gated @ b.T, unit * after + STEP * (a.shape[1] * summed + len(a) * after)


def assert_close(got: Tensor, expected: Tensor, bound: Tensor) -> None:
    """Within the bound and the rounding of the output."""
    bound = bound + UNIT[got.dtype] * expected.abs()
    excess = ((got.double() - expected).abs() - bound).max()
    assert bool(excess <= 0), f"the error exceeds its bound by {float(excess)}"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 64, 48, 16, 1), (7, 200, 70, 24, 3), (33, 130, 65, 40, 4)])
def test_layer_in_one_launch(problems: SimpleNamespace, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    problem = moved(problems.make(*shape, dtype=dtype))
    x = problem.x.double()
    weight, bias = normal(shape[2], shape[1], dtype=dtype), normal(shape[2], dtype=dtype)
    expected, bound = product_bound(problem)
    got = triton_layer.linear(problem.x, weight, bias, *problem.arguments[1:])
    base = x @ weight.double().T + bias.double()
    magnitude = x.abs() @ weight.double().abs().T + bias.double().abs()
    assert_close(got, base + expected, bound + STEP * (shape[1] + shape[3]) * magnitude)
    again = triton_layer.linear(problem.x, weight, bias, *problem.arguments[1:])
    assert torch.equal(got, again) and counters.all_zero()

    y = problem.y.clone()
    triton_layer.linear(problem.x, None, None, *problem.arguments[1:], out=y)
    assert_close(y, problem.y.double() + expected, bound)


def test_layer_without_adapter_is_the_base(problems: SimpleNamespace) -> None:
    problem = moved(problems.make(5, 64, 40, 16, 3))
    problem.rows[:] = torch.tensor([0, -1, 2, -1, 1])
    weight = normal(40, 64, dtype=torch.float32)
    clean = triton_layer.linear(problem.x, weight, None, *problem.arguments[1:])
    problem.b[3, 3] = float("inf")
    problem.g[2] = float("nan")
    got = triton_layer.linear(problem.x, weight, None, *problem.arguments[1:])
    assert torch.equal(got[[1, 3]], clean[[1, 3]]) and not got[[0, 4], 3].isfinite().any()
    assert got[2].isnan().all() and got[[0, 4], 4:].isfinite().all()
    y = torch.full_like(problem.y, float("nan"))
    y[0] = -0.0
    problem.b[3, 3], problem.g[0] = 1, 0
    triton_layer.linear(problem.x, None, None, *problem.arguments[1:], out=y)
    assert torch.signbit(y[0]).all() and not y[0].any() and y[[1, 3]].isnan().all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_slices(problems: SimpleNamespace, dtype: torch.dtype) -> None:
    """Three outputs of x, as q, k and v: two launches in all, each output with its own experts."""
    widths, ranks = (50, 20, 33), 24
    parts = [moved(problems.make(9, 96, width, ranks, 3, dtype=dtype, seed=i)) for i, width in enumerate(widths)]
    x, rows, scaling = parts[0].x, parts[0].rows, parts[0].scaling
    y = torch.cat([part.y for part in parts], 1)
    planes = triton_kernels.shrink(x, torch.cat([part.a for part in parts]))
    bounds = torch.tensor([0, 50, 70, 103], dtype=torch.int32, device=DEVICE)
    g = torch.cat([part.g for part in parts], 1)
    triton_kernels.expand(y, planes, torch.cat([part.b for part in parts]), g, rows, scaling, bounds)
    for part, got in zip(parts, y.split(widths, 1), strict=True):
        part.x, part.rows = x, rows
        expected, bound = product_bound(part)
        assert_close(got, part.y.double() + expected, bound)
    with pytest.raises(InputError, match="3 outputs of 24 ranks need planes and g of 72, got 24"):
        triton_kernels.expand(y, planes[..., :24], torch.cat([part.b for part in parts]), g, rows, scaling, bounds)


@pytest.mark.parametrize("tokens", [9, 20])
@pytest.mark.parametrize("dtype", DTYPES)
def test_slices_in_one_launch(problems: SimpleNamespace, dtype: torch.dtype, tokens: int) -> None:
    widths, ranks = (64, 128, 33), 24
    parts = [moved(problems.make(tokens, 96, width, ranks, 3, dtype=dtype, seed=i)) for i, width in enumerate(widths)]
    x, rows, scaling = parts[0].x, parts[0].rows, parts[0].scaling
    a, b = torch.cat([part.a for part in parts]), torch.cat([part.b for part in parts])
    g, y = torch.cat([part.g for part in parts], 1), torch.cat([part.y for part in parts], 1)
    triton_layer.linear(x, None, None, a, b, g, rows, scaling, y, (64, 192, 225))
    for part, got in zip(parts, y.split(widths, 1), strict=True):
        part.x, part.rows = x, rows
        expected, bound = product_bound(part)
        assert_close(got, part.y.double() + expected, bound)
    for change, message in (
        ({"out": None}, "out must be given where weight is not"),
        ({"out": y.t().contiguous().t()}, "out must have contiguous rows"),
        ({"out": y[:1]}, r"y must be \[\d+, 225\]"),
        ({"bias": torch.zeros(224, dtype=x.dtype, device=x.device)}, r"bias must be \[225\], got \[224\]"),
        ({"ends": (64, 192, 224)}, "ends must be rising columns up to 225"),
        ({"ends": (64, 225)}, "lora_a must have 2 slices"),
    ):
        given = {"weight": None, "bias": None, "out": y, "ends": (64, 192, 225)} | change
        with pytest.raises(InputError, match=message):
            triton_layer.linear(x, lora_a=a, lora_b=b, g=g, rows=rows, scaling=scaling, **given)
    with pytest.raises(InputError, match=r"multiples of 64 but for the last, got \(50, 192, 225\)"):
        triton_layer.linear(x, None, None, a, b, g, rows, scaling, y, (50, 192, 225))


@pytest.mark.parametrize("dtype", DTYPES)
def test_concatenated_inputs(problems: SimpleNamespace, dtype: torch.dtype) -> None:
    """[x | s h g] [W | B]^T is the layer."""
    problem = moved(problems.make(9, 80, 48, 24, 3, dtype=dtype))
    weight = normal(48, 80, dtype=dtype)
    buffer = torch.full((9, 104), float("nan"), dtype=dtype, device=DEVICE)
    buffer[:, :80] = problem.x
    planes = triton_kernels.shrink(buffer[:, :80], problem.a)
    h = torch.empty(9, 24, device=DEVICE)
    triton_kernels.gate(buffer[:, 80:], planes, problem.g, problem.rows, problem.scaling, h)
    got = buffer.double() @ torch.cat([weight, problem.b], 1).double().T
    expected, bound = product_bound(problem)
    base = problem.x.double() @ weight.double().T
    assert bool(((got - base - expected).abs() <= bound).all())
    exact = problem.x.double() @ problem.a.double().T * (problem.rows >= 0)[:, None]
    limit = STEP * 80 * (problem.x.double().abs() @ problem.a.double().abs().T)
    assert bool(((h.double() - exact).abs() <= limit).all())


def planes_match(planes: Tensor, x: Tensor, a: Tensor) -> None:
    exact = x.double() @ a.double().T
    limit = STEP * x.shape[1] * (x.double().abs() @ a.double().abs().T)
    assert bool(((planes.double().sum(0) - exact).abs() <= limit).all())


@pytest.mark.parametrize("dtype", DTYPES)
def test_rms_norm_and_shrink(dtype: torch.dtype) -> None:
    hidden, weight, a = (normal(*shape, dtype=dtype) for shape in ((9, 130), (130,), (40, 130)))
    out = torch.zeros(9, 170, dtype=dtype, device=DEVICE)
    x, planes = triton_layer.rms_norm_shrink(hidden, weight, 1e-5, a, out[:, :130])
    wide = hidden.double()
    exact = wide / (wide.square().mean(1, keepdim=True) + 1e-5).sqrt() * weight.double()
    # Two roundings to the dtype, and a few in float32 over the mean.
    assert bool(((x.double() - exact).abs() <= (2.1 * UNIT[dtype] + 130 * 2.0**-24) * exact.abs()).all())
    assert not out[:, 130:].any()
    planes_match(planes, x, a)


@pytest.mark.parametrize("dtype", DTYPES)
def test_silu_mul_and_shrink(dtype: torch.dtype) -> None:
    gate, up, a = (normal(*shape, dtype=dtype, seed=i) for i, shape in enumerate(((9, 130), (9, 130), (40, 130))))
    x, planes = triton_layer.silu_mul_shrink(gate, up, a)
    exact = torch.nn.functional.silu(gate.double()) * up.double()
    # exp of a GPU has a few units of its own; below the least normal float16 rounding is absolute.
    limit = (2.1 * UNIT[dtype] + 16 * 2.0**-24) * exact.abs() + torch.finfo(dtype).smallest_normal
    assert bool(((x.double() - exact).abs() <= limit).all())
    planes_match(planes, x, a)


def test_producers_refuse() -> None:
    hidden, weight, a = (normal(*shape, dtype=torch.float32) for shape in ((9, 130), (130,), (40, 130)))
    apart = normal(130, 2, dtype=torch.float32)[:, 0]
    got, _ = triton_layer.rms_norm_shrink(hidden, apart, 1e-5, a)
    assert torch.equal(got, triton_layer.rms_norm_shrink(hidden, apart.contiguous(), 1e-5, a)[0])
    for arguments, message in (
        ((hidden[:0], weight, 1e-5, a), r"with tokens and inputs, got \[0, 130\]"),
        ((hidden, weight[:129], 1e-5, a), r"weight must be \[130\], got \[129\]"),
        ((hidden, weight.half(), 1e-5, a), "weight must be torch.float32 on .* got torch.float16"),
        ((hidden, weight, 1e-5, a[:0]), r"lora_a must be \[R, 130\] with at least one rank, got \[0, 130\]"),
        ((hidden, weight, 1e-5, a, hidden), "y must not share memory with x"),
        ((hidden, weight, 1e-5, a, torch.empty(130, 9, device=DEVICE).t()), "out must have contiguous rows"),
    ):
        with pytest.raises(InputError, match=message):
            triton_layer.rms_norm_shrink(*arguments)
    with pytest.raises(InputError, match=r"up must be \[9, 130\], got \[8, 130\]"):
        triton_layer.silu_mul_shrink(hidden, hidden[:8], a)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", ["ragged", "one", "each"])
def test_gradients(problems: SimpleNamespace, dtype: torch.dtype, rows: str) -> None:
    requests = {"ragged": 3, "one": 1, "each": 20}[rows]
    problem = moved(problems.make(20, 72, 50, 24, requests, dtype=dtype))
    place = problem.rows if rows == "ragged" else None
    grad = problem.y
    if rows == "ragged":
        problem.rows[4] = -1
        problem.x[4] = float("nan")
        grad[4] = float("nan")
    y, h = triton_gradients.forward(problem.x, problem.a, problem.b, problem.g, place, 0.7)
    found = triton_gradients.backward(
        grad, problem.x, problem.a, problem.b, problem.g, place, h, 0.7, (True, True, True, True)
    )
    if rows == "ragged":
        problem.x[4] = grad[4] = 0
    exact = [tensor.double().requires_grad_() for tensor in (problem.x, problem.a, problem.b, problem.g)]
    out = reference.rankwise_lora(*exact, place, 0.7)
    (out * grad.double()).sum().backward()
    # The dtype rounds dP and s h g; float32 sums are far below.
    tolerance = 4 * UNIT[dtype] if dtype != torch.float32 else 1e-5
    for got, leaf, like in zip(found, exact, (problem.x, problem.a, problem.b, problem.g), strict=True):
        assert got is not None and leaf.grad is not None and got.shape == like.shape and got.dtype == like.dtype
        assert bool(((got.double() - leaf.grad).abs() <= tolerance * leaf.grad.abs().max()).all())
    assert bool(((y.double() - out).abs() <= tolerance * out.abs().max()).all())
    again = triton_gradients.backward(
        grad, problem.x, problem.a, problem.b, problem.g, place, h, 0.7, (True, True, True, True)
    )
    assert all(torch.equal(one, other) for one, other in zip(found, again, strict=True))
    none = triton_gradients.backward(
        grad, problem.x, problem.a, problem.b, problem.g, place, h, 0.7, (False, False, False, False)
    )
    assert none == (None, None, None, None)


def test_training_takes_the_kernels_that_are_asked_for(
    problems: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = moved(problems.make(8, 24, 16, 8, 3))
    found = {}
    for backend in ("torch", "triton"):
        monkeypatch.setenv("BDC_OPS_BACKEND", backend)
        inputs = [tensor.detach().clone().requires_grad_() for tensor in problem.arguments[:4]]
        calls: list[Tensor] = []
        original = triton_gradients.backward
        monkeypatch.setattr(triton_gradients, "backward", lambda *a, f=original, c=calls: c.append(a[0]) or f(*a))
        rankwise_lora(*inputs, problem.rows, 0.7).square().sum().backward()
        monkeypatch.setattr(triton_gradients, "backward", original)
        assert len(calls) == (backend == "triton")
        found[backend] = [leaf.grad for leaf in inputs]
    torch.testing.assert_close(found["triton"], found["torch"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("processors", [1, 108, 132])
@pytest.mark.parametrize("shared", [99 << 10, 227 << 10])
@pytest.mark.parametrize("wide", [False, True])
def test_plans_cover_the_work(processors: int, wide: bool, shared: int) -> None:
    for tokens in (1, 16, 17, 64, 256, 4096):
        for d_in, d_out, ranks in [(1, 1, 1), (37, 29, 13), (4096, 14336, 128), (14336, 4096, 256)]:
            step = tiles(tokens, ranks, d_in, d_out, processors=processors, wide=wide)
            assert step.splits * step.steps * step.inputs >= d_in > (step.splits - 1) * step.steps * step.inputs
            assert min(step.tokens, step.ranks, step.ranks_step, step.inputs, step.outputs) >= 16
            if tokens <= triton_layer.MOST_LAYER_TOKENS:
                one = layer_tiles(tokens, ranks, d_in, d_out, processors=processors, shared_bytes=shared, wide=wide)
                assert one.splits * one.steps * one.inputs >= d_in > (one.splits - 1) * one.steps * one.inputs
                step_bytes = (one.tokens + one.outputs) * one.inputs * (4 if wide else 2)
                assert one.stages * step_bytes <= shared
                assert one.tokens >= tokens and min(one.outputs, one.rank_tile, one.ranks_step) >= 16


def test_refused(problems: SimpleNamespace) -> None:
    problem = moved(problems.make(65, 16, 16, 16))
    with pytest.raises(InputError, match="up to 64 tokens, got 65"):
        triton_layer.linear(problem.x, None, None, *problem.arguments[1:], out=problem.y)
    if DEVICE == "cpu":
        with pytest.raises(InputError, match="interpreter cannot multiply bfloat16"):
            triton_kernels.shrink(problem.x.bfloat16(), problem.a.bfloat16())
    with pytest.raises(InputError, match=r"need a GPU or TRITON_INTERPRET=1, got torch\.float64"):
        triton_kernels.shrink(problem.x.double(), problem.a.double())
