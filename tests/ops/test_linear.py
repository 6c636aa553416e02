"""A layer with its experts, base and product together: values on every backend, one launch, and wrapped layers on it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from bdc.errors import InputError
from bdc.ops import (
    RankwiseLoraLinear,
    linear,
    modules,
    quantize_experts,
    rank_weights,
    rankwise_lora,
    rankwise_lora_linear,
    rankwise_lora_slices,
)


def layer(problems: SimpleNamespace, *shape: int, dtype: torch.dtype = torch.float32) -> SimpleNamespace:
    """A problem with a base."""
    problem = problems.make(*shape, dtype=dtype)
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(shape[2], shape[1], generator=generator, device="cpu").to(dtype).to(problem.x.device)
    bias = torch.randn(shape[2], generator=generator, device="cpu").to(dtype).to(problem.x.device)
    return SimpleNamespace(
        problem=problem, weight=weight, bias=bias, given=(problem.x, weight, bias, *problem.arguments[1:])
    )


@pytest.fixture
def apart(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes of x with which the base was computed on its own."""
    seen: list[tuple[int, ...]] = []

    def record(x: Tensor, *rest: Any) -> Tensor:
        seen.append(tuple(x.shape))
        return functional.linear(x, *rest)

    monkeypatch.setattr(linear, "functional", SimpleNamespace(linear=record))
    return seen


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    "shape", [(1, 64, 48, 16, 1), (7, 37, 29, 13, 4), (33, 136, 72, 40, 4), (90, 64, 48, 16, 3), (0, 8, 8, 8, 1)]
)
def test_error_is_within_the_bound(
    problems: SimpleNamespace, backend: str, dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    made = layer(problems, *shape, dtype=dtype)
    got = rankwise_lora_linear(*made.given)
    expected, bound = problems.layer_bound(made.problem, made.weight, made.bias)
    # Apart from its product, the base is rounded once more.
    bound += problems.UNIT[dtype] * functional.linear(*(t.double() for t in made.given[:3])).abs()
    assert got.dtype == dtype and bool(((got.double() - expected).abs() <= bound).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("tokens", [1, 64, 65])
def test_where_it_is_one_launch(
    problems: SimpleNamespace, backend: str, apart: list[tuple[int, ...]], dtype: torch.dtype, tokens: int
) -> None:
    made = layer(problems, tokens, 64, 256, 16, 3, dtype=dtype)
    rankwise_lora_linear(*made.given)
    interpreted = made.problem.x.device.type == "cpu"
    one = {
        "triton": not (interpreted and dtype == torch.bfloat16),
        "cuda": dtype != torch.float32,
    }.get(backend, False) and tokens <= 64
    assert apart == ([] if one else [(tokens, 64)])


@pytest.mark.parametrize("ends", [(64, 192, 256), (50, 256)])
def test_several_outputs(problems: SimpleNamespace, backend: str, ends: tuple[int, ...]) -> None:
    dtype = torch.float16
    made = layer(problems, 9, 64, 256, 16 * len(ends), 3, dtype=dtype)
    x, weight, bias, a, b, g, rows, s = made.given
    got = rankwise_lora_linear(x, weight, bias, a, b[:, :16].contiguous(), g, rows, s, list(ends))
    for i, (first, end) in enumerate(zip((0, *ends), ends, strict=False)):
        own, columns = slice(16 * i, 16 * i + 16), slice(first, end)
        part = SimpleNamespace(x=x, arguments=(x, a[own], b[columns, :16], g[:, own], rows, s))
        expected, bound = problems.layer_bound(part, weight[columns], bias[columns])
        bound += (
            problems.UNIT[dtype] * functional.linear(x.double(), weight[columns].double(), bias[columns].double()).abs()
        )
        assert bool(((got[:, columns].double() - expected).abs() <= bound).all())


@pytest.mark.parametrize("merged", [False, True])
def test_gradients_are_those_of_its_parts(problems: SimpleNamespace, merged: bool) -> None:
    made = layer(problems, 6, 20, 24, 8, 3)
    x, weight, bias, a, b, g, rows, s = made.given
    if merged:
        b = b[:, :4].contiguous()
    found = []
    ends = [10, 24] if merged else None
    for together in (True, False):
        leaves = [t.clone().requires_grad_() for t in (x, weight, bias, a, b, g)]
        if together:
            y = rankwise_lora_linear(*leaves, rows, s, ends)
        else:
            base, experts = leaves[:3], (leaves[0], *leaves[3:])
            product = rankwise_lora_slices(*experts, ends, rows, s) if ends else rankwise_lora(*experts, rows, s)
            y = functional.linear(*base) + product
        y.square().sum().backward()
        found.append([y.detach(), *(leaf.grad for leaf in leaves)])
    torch.testing.assert_close(*found)


def test_views_integers_and_autocast(problems: SimpleNamespace, backend: str) -> None:
    made = layer(problems, 6, 32, 48, 16, 3)
    x, weight, bias, a, b, g, rows, s = made.given
    expected = rankwise_lora_linear(*made.given)
    wide = torch.zeros(6, 80)
    wide[:, 9:41] = x
    for same in (wide[:, 9:41], x.T.contiguous().T):
        got = rankwise_lora_linear(same, weight.T.contiguous().T, bias, a, b, g, rows.long(), s)
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-4)
    experts = quantize_experts(a, b)
    got = rankwise_lora_linear(x, weight, bias, experts.lora_a, experts.lora_b, experts.fold(g), rows, s)
    torch.testing.assert_close(got, expected, rtol=0.1, atol=0.03 * float(expected.abs().max()))
    with torch.autocast(x.device.type, torch.bfloat16):
        got = rankwise_lora_linear(*made.given)
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got.float(), expected, rtol=0.05, atol=0.05 * float(expected.abs().max()))


@pytest.mark.parametrize("merged", [False, True])
def test_compiled(problems: SimpleNamespace, merged: bool) -> None:
    compiled = torch.compile(rankwise_lora_linear, fullgraph=True, backend="aot_eager", dynamic=True)
    for tokens in (6, 9):
        made = layer(problems, tokens, 20, 24, 8, 3)
        x, weight, bias, a, b, *rest = made.given
        b, ends = (b[:, :4].contiguous(), [10, 24]) if merged else (b, None)
        given = (x, weight, bias, a, b, *rest, ends)
        torch.testing.assert_close(compiled(*given), rankwise_lora_linear(*given))
    # What a graph for a GPU has in it.
    operator = torch.ops.bdc.rankwise_lora_linear
    torch.library.opcheck(
        operator.default,
        (x, weight, bias, a, b, *rest[:2], ends, rest[2]),
        test_utils=("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic"),
    )
    with pytest.raises(InputError, match=r"has no gradient: call bdc\.ops\.rankwise_lora_linear"):
        operator(x.requires_grad_(), weight, bias, a, b, *rest[:2], ends, rest[2])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"weight": torch.zeros(48, 31)}, r"weight must be \[48, 32\], got \[48, 31\]"),
        ({"weight": torch.zeros(48, 32).bfloat16()}, "weight must be torch.float32 on cpu as x is"),
        ({"weight": torch.zeros(1, 32), "bias": None}, r"weight must be \[48, 32\], got \[1, 32\]"),
        ({"bias": torch.zeros(1)}, r"bias must be \[48\], got \[1\]"),
        ({"bias": torch.zeros(6, 48)}, r"bias must be \[48\], got \[6, 48\]"),
        ({"bias": torch.zeros(47)}, r"bias must be \[48\], got \[47\]"),
        ({"weight": torch.zeros(48, 32).to_sparse()}, "weight must be a dense tensor"),
        ({"x": torch.zeros(())}, r"x must have two dimensions, got \[\]"),
        ({"lora_b": torch.zeros(())}, r"lora_b must have two dimensions, got \[\]"),
        ({"weight": None}, "weight must be a tensor, got NoneType"),
        ({"bias": 1.0}, "bias must be a tensor, got float"),
        ({"rank_weights": torch.zeros(3, 15)}, "rank_weights must"),
        ({"token_to_row": torch.full((6,), 3)}, r"token_to_row must be in \[-1, 3\)"),
        ({"scaling": float("inf")}, "scaling must be finite"),
        ({"ends": [20, 40]}, "ends must be rising columns up to 48"),
        ({"ends": []}, "ends must be rising columns up to 48"),
        ({"ends": 48}, "ends must be whole numbers"),
    ],
)
def test_what_is_refused(
    problems: SimpleNamespace, backend: str, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], says: str
) -> None:
    monkeypatch.setenv("BDC_OPS_CHECK", "1")  # rows of a GPU are read only if asked for
    names = ("x", "weight", "bias", "lora_a", "lora_b", "rank_weights", "token_to_row", "scaling")
    given = dict(zip(names, layer(problems, 6, 32, 48, 16, 3).given, strict=True))
    device = given["x"].device
    given |= {name: value.to(device) if isinstance(value, Tensor) else value for name, value in change.items()}
    says = says.replace(" on cpu ", f" on {device} ")
    with pytest.raises(InputError, match=says):
        rankwise_lora_linear(**given)
    given["rank_weights"] = given["rank_weights"].clone().requires_grad_()
    with pytest.raises(InputError, match=says):
        rankwise_lora_linear(**given)


@pytest.fixture
def whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wrapped layers on the kernels of Triton: on a GPU, or as if a CPU were one."""
    monkeypatch.setenv("BDC_OPS_BACKEND", "triton")
    monkeypatch.setattr(modules, "_WHOLE_ON", {"cuda", "cpu"})


@pytest.mark.usefixtures("whole")
@pytest.mark.parametrize("merged", [False, True])
def test_wrapped_layers(apart: list[tuple[int, ...]], merged: bool) -> None:
    torch.manual_seed(0)
    base = nn.Linear(32, 128).requires_grad_(False)
    ends = [64, 128] if merged else None
    a, b = torch.randn(16, 32), torch.randn(128, 8 if merged else 16)
    wrapped = RankwiseLoraLinear(base, a, b, 0.5, ends=ends)
    x, g = torch.randn(2, 3, 32), torch.randn(2, 16)
    rows = torch.tensor([0, 0, -1, 1, 1, 1], dtype=torch.int32)
    plain = base(x)
    product = (
        rankwise_lora_slices(x.view(6, 32), a, b, g, ends, rows, 0.5)
        if ends
        else rankwise_lora(x.view(6, 32), a, b, g, rows, 0.5)
    )
    expected = plain + product.view(2, 3, 128)
    assert torch.equal(wrapped(x), plain)
    with rank_weights(wrapped, g, rows):
        torch.testing.assert_close(wrapped(x), expected, rtol=1e-5, atol=1e-4)
        assert not apart
        # Whoever watches the base, or is the base, sees its own forward.
        handle = base.register_forward_hook(lambda module, inputs, output: output * 2)
        torch.testing.assert_close(wrapped(x), expected + plain, rtol=1e-5, atol=1e-4)
        handle.remove()
        handle = base.register_forward_pre_hook(lambda module, inputs: (inputs[0] * 0,))
        torch.testing.assert_close(wrapped(x), expected - plain + base.bias, rtol=1e-5, atol=1e-4)
        handle.remove()
        base.forward = lambda x: functional.linear(x, base.weight)  # type: ignore[method-assign]
        torch.testing.assert_close(wrapped(x), expected - base.bias, rtol=1e-5, atol=1e-4)
        del base.forward
        with pytest.raises(InputError, match="token_to_row has 6 tokens, but the layer got 3"):
            wrapped(x[:1])
        compiled = torch.compile(wrapped, fullgraph=True, backend="aot_eager")
        with torch.no_grad():
            torch.testing.assert_close(compiled(x), expected, rtol=1e-5, atol=1e-4)
    assert torch.equal(wrapped(x), plain)


@pytest.mark.usefixtures("whole")
def test_training_through_a_wrapped_layer() -> None:
    """Hooks on gradients of the base are called, as ever."""
    torch.manual_seed(0)
    wrapped = RankwiseLoraLinear(nn.Linear(12, 10).requires_grad_(False), torch.randn(6, 12), torch.randn(10, 6), 2.0)
    x, g = torch.randn(4, 12), torch.randn(1, 6, requires_grad=True)
    seen: list[str] = []
    wrapped.base.register_full_backward_hook(lambda *_: seen.append("base"))
    with rank_weights(wrapped, g):
        wrapped(x.requires_grad_()).square().sum().backward()
    assert seen == ["base"]
    y = wrapped.base(x) + rankwise_lora(x, wrapped.lora_a, wrapped.lora_b, g, None, 2.0)
    torch.testing.assert_close(g.grad, torch.autograd.grad(y.square().sum(), g)[0], rtol=1e-4, atol=1e-3)
