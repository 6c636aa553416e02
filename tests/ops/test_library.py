"""What torch can do with the operators: check them, compile, export, cast, map."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from bdc.errors import InputError
from bdc.ops import RankwiseLoraLinear, rank_weights, rankwise_lora, rankwise_lora_, reference


def _leaves(problem: SimpleNamespace, *, grad: bool) -> list[Tensor]:
    return [tensor.detach().clone().requires_grad_(grad) for tensor in problem.arguments[:4]]


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("rows", [False, True])
def test_opcheck(problems: SimpleNamespace, grad: bool, rows: bool) -> None:
    problem = problems.make(requests=4 if rows else 1)
    place = problem.rows if rows else None
    tests = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    torch.library.opcheck(
        torch.ops.bdc.rankwise_lora.default, (*_leaves(problem, grad=grad), place, 0.7), test_utils=tests
    )
    if not grad:
        arguments = (problem.y, *_leaves(problem, grad=False), place, 0.7)
        torch.library.opcheck(torch.ops.bdc.rankwise_lora_.default, arguments, test_utils=tests)


@pytest.mark.parametrize("needed", [[True] * 4, [False, False, False, True]])
def test_opcheck_of_the_parts(problems: SimpleNamespace, needed: list[bool]) -> None:
    problem = problems.make()
    arguments = (*_leaves(problem, grad=False), problem.rows)
    tests = ("test_schema", "test_faketensor")
    torch.library.opcheck(torch.ops.bdc.rankwise_lora_with_h.default, (*arguments, 0.7), test_utils=tests)
    _, h = torch.ops.bdc.rankwise_lora_with_h(*arguments, 0.7)
    torch.library.opcheck(
        torch.ops.bdc.rankwise_lora_backward.default, (problem.y, *arguments, h, 0.7, needed), test_utils=tests
    )


def test_compile_is_one_graph_for_all_numbers_of_tokens(problems: SimpleNamespace) -> None:
    compiled = torch.compile(
        lambda *arguments: rankwise_lora(*arguments).relu(), fullgraph=True, backend="aot_eager", dynamic=True
    )
    for tokens in (3, 7, 12):
        problem = problems.make(tokens=tokens)
        assert torch.equal(compiled(*problem.arguments), rankwise_lora(*problem.arguments).relu())


def test_compiled_gradients(problems: SimpleNamespace) -> None:
    compiled = torch.compile(rankwise_lora, fullgraph=True, backend="aot_eager")
    problem = problems.make()
    found, expected = _leaves(problem, grad=True), _leaves(problem, grad=True)
    compiled(*found, problem.rows, 0.7).square().sum().backward()
    rankwise_lora(*expected, problem.rows, 0.7).square().sum().backward()
    for got, wanted in zip(found, expected, strict=True):
        assert got.grad is not None and torch.equal(got.grad, wanted.grad)


def test_compile_in_place(problems: SimpleNamespace) -> None:
    compiled = torch.compile(rankwise_lora_, fullgraph=True, backend="aot_eager")
    problem = problems.make()
    problem.y[problem.rows < 0] = float("nan")
    got = compiled(problem.y.clone(), *problem.arguments)
    wanted = rankwise_lora_(problem.y.clone(), *problem.arguments)
    torch.testing.assert_close(got, wanted, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("training", [False, True])
def test_compiled_layer(training: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(RankwiseLoraLinear(nn.Linear(12, 10), torch.randn(6, 12), torch.randn(10, 6), 2.0))
    model.requires_grad_(False)
    x = torch.randn(2, 3, 12)
    g = torch.randn(2, 6, requires_grad=training)
    rows = torch.tensor([0, 0, -1, 1, 1, 1], dtype=torch.int32)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.set_grad_enabled(training), rank_weights(model, g, rows):
        torch.testing.assert_close(compiled(x), model(x))


@pytest.mark.parametrize("training", [False, True])
def test_compiled_around_the_weights(training: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(RankwiseLoraLinear(nn.Linear(12, 10), torch.randn(6, 12), torch.randn(10, 6), 2.0))
    model.requires_grad_(False)

    def call(x: Tensor, g: Tensor, rows: Tensor) -> Tensor:
        with rank_weights(model, g, rows):
            return model(x)

    x, g = torch.randn(4, 12), torch.randn(2, 6, requires_grad=training)
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    with torch.set_grad_enabled(training):
        for rows in (torch.tensor([0, -1, 1, 1]), torch.full((4,), -1)):
            torch.testing.assert_close(compiled(x, g, rows), call(x, g, rows))
        with pytest.raises(InputError, match=r"token_to_row must be in \[-1, 2\).*got 5"):
            compiled(x, g, torch.tensor([0, 5, 1, 1]))
    assert torch.equal(model(x), model[0].base(x))


def test_export(problems: SimpleNamespace) -> None:
    class Product(nn.Module):
        def forward(self, x: Tensor, a: Tensor, b: Tensor, g: Tensor, rows: Tensor) -> Tensor:
            return rankwise_lora(x, a, b, g, rows, 0.7)

    problem = problems.make()
    tokens = torch.export.Dim("tokens")
    shapes = ({0: tokens}, None, None, None, {0: tokens})
    program = torch.export.export(Product(), problem.arguments[:5], dynamic_shapes=shapes)
    assert "bdc.rankwise_lora" in str(program.graph)
    other = problems.make(tokens=11)
    assert torch.equal(program.module()(*other.arguments[:5]), rankwise_lora(*other.arguments))


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.filterwarnings(
    "ignore:While compiling, we found certain side effects"
)  # the weights in force, until they are not
def test_export_with_the_weights_inside(strict: bool) -> None:
    class Served(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = RankwiseLoraLinear(nn.Linear(12, 10), torch.randn(6, 12), torch.randn(10, 6), 2.0)

        def forward(self, x: Tensor, g: Tensor, rows: Tensor) -> Tensor:
            with rank_weights(self, g, rows):
                return self.layer(x)

    torch.manual_seed(0)
    served = Served().requires_grad_(False)
    tokens, requests = torch.export.Dim("tokens"), torch.export.Dim("requests")
    given = torch.randn(4, 12), torch.randn(2, 6), torch.tensor([0, -1, 1, 1])
    program = torch.export.export(
        served, given, dynamic_shapes=({0: tokens}, {0: requests}, {0: tokens}), strict=strict
    )
    for count, rows in ((4, [0, -1, 1, 1]), (3, [2, 0, 1, -1, 2])):
        call = torch.randn(len(rows), 12), torch.randn(count, 6), torch.tensor(rows)
        torch.testing.assert_close(program.module()(*call), served(*call))


def test_autocast(problems: SimpleNamespace) -> None:
    problem = problems.make()
    x, a, b, g, rows, s = problem.arguments
    halves = x.bfloat16(), a.bfloat16(), b.bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = rankwise_lora(x, a, b, g, rows, s)
        y = rankwise_lora_(problem.y.clone(), halves[0], a, b, g, rows, s)
    assert torch.equal(got, rankwise_lora(*halves, g, rows, s))
    assert torch.equal(y, rankwise_lora_(problem.y.clone(), *(half.float() for half in halves[:1]), a, b, g, rows, s))
    layer = RankwiseLoraLinear(nn.Linear(37, 29), a, b, s).requires_grad_(False)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16), rank_weights(layer, g, rows):
        out = layer(x)
    assert out.dtype == torch.bfloat16
    wanted = layer.base(x) + reference.rankwise_lora(x, a, b, g, rows, s)
    torch.testing.assert_close(out.float(), wanted, rtol=3e-2, atol=0.3)


@pytest.mark.parametrize("backend", ["cpp", "torch"])
def test_autocast_casts_the_arguments_alone(
    problems: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    monkeypatch.setenv("BDC_OPS_BACKEND", backend)
    x, a, b, g, rows, s = problems.make().arguments
    leaves = [t.bfloat16().requires_grad_() for t in (x, a, b)]

    def added() -> Tensor:
        return rankwise_lora_(x.new_ones(len(x), len(b)), x, a, b, g, rows, s)

    def gradients() -> tuple[Tensor, ...]:
        return torch.autograd.grad(rankwise_lora(*leaves, g, rows, s).float().square().sum(), leaves)

    doubles = x.double(), a.double(), b.double(), g, rows, s
    halves = x.half(), a.half(), b.half(), g.half(), rows, s
    plain = (added(), rankwise_lora(*leaves, g, rows, s), *gradients(), rankwise_lora(*doubles))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = (added(), rankwise_lora(x, a, b, g, rows, s), *gradients(), rankwise_lora(*doubles))
        assert rankwise_lora(*halves).dtype == torch.bfloat16
        with pytest.raises(InputError, match=r"x must be float32.*got torch.int32"):
            rankwise_lora(x.int(), a, b, g, rows, s)
    for got, expected in zip(cast, plain, strict=True):
        assert got.dtype == expected.dtype
        assert torch.equal(got, expected)


def test_inference_mode_and_versions(problems: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BDC_OPS_BACKEND", "cpp")  # torch's own products refuse the last line
    problem = problems.make()
    for form in (rankwise_lora_, torch.ops.bdc.rankwise_lora_):
        before = problem.y._version
        form(problem.y, *problem.arguments)
        assert problem.y._version > before
    with torch.inference_mode():
        y = torch.zeros(7, 29)
        assert torch.equal(rankwise_lora_(y, *problem.arguments), rankwise_lora(*problem.arguments))
    assert rankwise_lora_(y, *problem.arguments) is y  # it has no version


def test_func(problems: SimpleNamespace) -> None:
    problem = problems.make()
    x, a, b, g, rows, s = problem.arguments
    got = torch.func.grad(lambda weights: rankwise_lora(x, a, b, weights, rows, s).square().sum())(g)
    leaf = g.clone().requires_grad_()
    rankwise_lora(x, a, b, leaf, rows, s).square().sum().backward()
    assert torch.equal(got, leaf.grad)
    many = torch.stack([x, x])
    with pytest.raises(InputError, match=r"no torch.func.vmap"):
        torch.func.vmap(lambda tokens: rankwise_lora(tokens, a, b, g, rows, s))(many)
    for transform in (torch.func.jacrev, torch.func.hessian):
        with pytest.raises(InputError, match=r"no torch.func.vmap|no forward-mode derivative|no second derivative"):
            transform(lambda weights: rankwise_lora(x, a, b, weights, rows, s).sum(0))(g)
    beside = torch.func.vmap(lambda factor: factor * rankwise_lora(x, a, b, g, rows, s))(torch.tensor([1.0, 2.0]))
    torch.testing.assert_close(beside[1], 2 * rankwise_lora(x, a, b, g, rows, s))


@pytest.mark.parametrize("name", ["a", "b", "g"])
def test_shapes_that_do_not_fit_are_refused_without_values(problems: SimpleNamespace, name: str) -> None:
    problem = problems.make()
    setattr(problem, name, getattr(problem, name)[:, 1:].contiguous())

    class Product(torch.nn.Module):
        def forward(self, x: Tensor, a: Tensor, b: Tensor, g: Tensor) -> Tensor:
            return rankwise_lora(x, a, b, g, None)

    problem.rows = None
    tensors = (problem.x, problem.a, problem.b, problem.g[:1])
    with pytest.raises(Exception, match="must be"):
        torch.export.export(Product(), tensors)
    with FakeTensorMode() as mode, pytest.raises(InputError, match="must be"):
        rankwise_lora(*(mode.from_tensor(tensor) for tensor in tensors))


def test_gradient_backends_agree(problems: SimpleNamespace, backend: str) -> None:
    problem = problems.make(tokens=50)
    leaves = _leaves(problem, grad=True)
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    rankwise_lora(*leaves, problem.rows, 0.7).square().sum().backward()
    reference.rankwise_lora(*exact, problem.rows, 0.7).square().sum().backward()
    for got, wanted in zip(leaves, exact, strict=True):
        scale = float(wanted.grad.abs().max())
        torch.testing.assert_close(got.grad.double(), wanted.grad, rtol=1e-4, atol=1e-5 * scale)
