"""Whoever sees operators of torch, and not memory, sees the product: subclasses, modes, tracers and derivatives of others."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.testing._internal.two_tensor import TwoTensor

from bdc.errors import InputError
from bdc.ops import (
    RankwiseLoraLinear,
    extension,
    rank_weights,
    rankwise_lora,
    rankwise_lora_,
    rankwise_lora_linear,
    rankwise_lora_pools,
    rankwise_lora_pools_,
    rankwise_lora_slices,
    rankwise_lora_slices_,
    reference,
    remove_rankwise_lora,
)

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit.*is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
]

Form = Callable[..., Tensor]


def _pools(form: Form) -> Form:
    def of_one_pool(*arguments: Any) -> Tensor:
        *y, x, a, b, g, rows, s = arguments
        return form(*y, x, a[None], b[None], g, torch.zeros(len(g), dtype=torch.int32), rows, s)

    return of_one_pool


def _slices(form: Form) -> Form:
    return lambda *arguments: form(*arguments[:-2], (arguments[-4].shape[0],), *arguments[-2:])


def _layer_of_zeros(x: Tensor, a: Tensor, b: Tensor, *rest: Any) -> Tensor:
    return rankwise_lora_linear(x, torch.zeros(b.shape[-2], x.shape[-1], device=x.device), None, a, b, *rest)


NEW = {
    "plain": rankwise_lora,
    "layer": _layer_of_zeros,
    "slices": _slices(rankwise_lora_slices),
    "pools": _pools(rankwise_lora_pools),
    "operator": torch.ops.bdc.rankwise_lora,
}
IN_PLACE = {
    "plain": rankwise_lora_,
    "layer": rankwise_lora_,
    "slices": _slices(rankwise_lora_slices_),
    "pools": _pools(rankwise_lora_pools_),
    "operator": lambda y, *arguments: (torch.ops.bdc.rankwise_lora_(y, *arguments), y)[1],
}


@pytest.fixture(params=NEW)
def new(request: pytest.FixtureRequest) -> Form:
    return NEW[request.param]


@pytest.fixture
def in_place(request: pytest.FixtureRequest, new: Form) -> Form:
    """That of ``new`` which adds to y."""
    return IN_PLACE[next(name for name, form in NEW.items() if form is new)]


@pytest.fixture
def layer(problems: SimpleNamespace) -> Iterator[SimpleNamespace]:
    """A wrapped layer with rank weights in force, and what it returns for x."""
    x, a, b, g, rows, s = problems.make().arguments
    wrapped = RankwiseLoraLinear(nn.Linear(x.shape[1], len(b)), a, b, s).requires_grad_(False)
    with rank_weights(wrapped, g, rows):
        yield SimpleNamespace(module=wrapped, x=x, expected=wrapped(x))


@pytest.mark.parametrize("which", range(5))
def test_a_subclass_in_any_place(problems: SimpleNamespace, new: Form, in_place: Form, which: int) -> None:
    problem = problems.make()
    arguments = list(problem.arguments)
    expected, added = new(*arguments), in_place(problem.y.clone(), *arguments)
    arguments[which] = TwoTensor(arguments[which], arguments[which].clone())
    got = new(*arguments)
    assert type(got) is TwoTensor
    assert torch.equal(got.a, expected)
    assert torch.equal(got.b, expected)
    y = TwoTensor(problem.y.clone(), problem.y.clone())
    in_place(y, *arguments)
    assert torch.equal(y.b, added)


def test_tracers_see_the_product(problems: SimpleNamespace, new: Form, in_place: Form) -> None:
    problem = problems.make()
    x, *rest = problem.arguments
    traced = make_fx(lambda tokens: new(tokens, *rest))(x)
    assert torch.equal(traced(2 * x), new(2 * x, *rest))
    traced = make_fx(lambda y, tokens: in_place(y, tokens, *rest))(problem.y.clone(), x)
    assert torch.equal(traced(problem.y.clone(), 2 * x), in_place(problem.y.clone(), 2 * x, *rest))
    scripted = torch.jit.trace(lambda tokens: new(tokens, *rest), x)
    assert torch.equal(scripted(2 * x), new(2 * x, *rest))


def test_tracers_see_a_layers_product(layer: SimpleNamespace) -> None:
    assert torch.equal(make_fx(lambda x: layer.module(x))(layer.x)(layer.x), layer.expected)
    assert torch.equal(torch.jit.trace(layer.module, layer.x)(layer.x), layer.expected)


def test_forward_mode_is_refused(problems: SimpleNamespace, layer: SimpleNamespace, new: Form, in_place: Form) -> None:
    problem = problems.make()
    x, *rest = problem.arguments
    expected = new(x, *rest)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, torch.ones_like(x))
        calls = (
            lambda: new(dual, *rest),
            lambda: in_place(problem.y.clone(), dual, *rest),
            lambda: layer.module(forward_ad.make_dual(layer.x, layer.x)),
        )
        for call in calls:
            with pytest.raises(InputError, match="no forward-mode derivative"):
                call()
        assert torch.equal(new(x, *rest), expected)  # nothing here has a tangent
    for call in (lambda t: new(t, *rest), lambda t: in_place(problem.y.clone(), t, *rest)):
        with pytest.raises(InputError, match="no forward-mode derivative"):
            torch.func.jvp(call, (x,), (x,))


def test_a_second_derivative_is_refused(problems: SimpleNamespace, new: Form) -> None:
    x, a, b, g, rows, s = problems.make().arguments

    def slope(tokens: Tensor) -> Tensor:
        return torch.func.grad(lambda weights: new(tokens, a, b, weights, rows, s).sum())(g).sum()

    # Torch has no two transforms of an operator whose gradient is Python's.
    with pytest.raises((InputError, NotImplementedError), match=r"has no second derivative|HigherOrderOperator"):
        torch.func.grad(slope)(x)
    if new is not NEW["operator"]:
        slope_of_others = torch.func.grad(lambda factor: factor.square() * slope(x))(torch.tensor(3.0))
        assert torch.equal(slope_of_others, 6 * slope(x))
    leaf, weights = x.clone().requires_grad_(), g.clone().requires_grad_()
    for loss in (new(leaf, a, b, weights, rows, s).square().sum(), new(leaf, a, b, weights, rows, s).sum()):
        (gradient,) = torch.autograd.grad(loss, weights, create_graph=True)
        with pytest.raises(InputError, match="no second derivative"):
            gradient.sum().backward()


def test_adding_in_place_has_no_gradient(problems: SimpleNamespace, in_place: Form) -> None:
    problem = problems.make()
    before = problem.y.clone()
    for leaf in (problem.y, *problem.arguments[:4]):
        leaf.requires_grad_()
        with pytest.raises(InputError, match="has no gradient"):
            in_place(problem.y, *problem.arguments)
        leaf.requires_grad_(False)
    assert torch.equal(problem.y, before)


def test_replaced_experts_count(layer: SimpleNamespace) -> None:
    module, x = layer.module, layer.x
    zeros = {"lora_a": torch.zeros_like(module.lora_a)}
    assert torch.equal(torch.func.functional_call(module, zeros, (x,)), module.base(x))
    got = torch.func.grad(lambda a: torch.func.functional_call(module, {"lora_a": a}, (x,)).sum())(module.lora_a.data)
    leaf = module.lora_a.detach().clone().requires_grad_()
    g, rows, s = module._arguments[:3]
    reference.rankwise_lora(x, leaf, module.lora_b, g, rows, s).sum().backward()
    torch.testing.assert_close(got, leaf.grad)


def test_a_copy_has_no_weights_in_force(layer: SimpleNamespace) -> None:
    other = copy.deepcopy(layer.module)
    assert torch.equal(other(layer.x), other.base(layer.x))
    assert torch.equal(layer.module(layer.x), layer.expected)
    with pytest.raises(InputError, match="itself the wrapped layer"):
        remove_rankwise_lora(other)


def test_a_saved_base_output_is_known_to_have_changed(layer: SimpleNamespace) -> None:
    factor, kept = torch.ones(layer.module.out_features, requires_grad=True), []
    base = layer.module.base

    def forward(x: torch.Tensor) -> torch.Tensor:
        y = type(base).forward(base, x)
        kept.append((factor * y).sum())
        return y

    base.forward = forward
    layer.module(layer.x)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        kept[0].backward()


def test_every_thread_has_torchs_number_of_threads() -> None:
    module, found = extension.load(), []
    assert module is not None
    before = torch.get_num_threads()
    try:
        for wanted in (1, 3):
            torch.set_num_threads(wanted)
            thread = threading.Thread(target=lambda: found.append(module.threads()))
            thread.start()
            thread.join()
    finally:
        torch.set_num_threads(before)
    assert found == [1, 3]


@pytest.mark.parametrize("sizes", [(3, 0, 4, 5), (300, 0, 32, 9), (64, 512, 128, 0), (3, 8, 0, 5), (3, 1, 1, 1)])
def test_empty_and_single_columns(sizes: tuple[int, ...], new: Form) -> None:
    tokens, d_in, rank, d_out = sizes
    x, a, b, g = (torch.randn(n, m) for n, m in ((tokens, d_in), (rank, d_in), (d_out, rank), (1, rank)))
    if not d_out and new is NEW["slices"]:
        with pytest.raises(InputError, match="ends must be rising columns"):
            new(x, a, b, g, None, 1.0)
        return
    expected = reference.rankwise_lora(x, a, b, g)
    torch.testing.assert_close(new(x, a, b, g, None, 1.0), expected)
    leaf = a.clone().requires_grad_()
    new(x, leaf, b, g, None, 1.0).sum().backward()
    assert leaf.grad is not None
    assert leaf.grad.isfinite().all()


def test_negated_views(new: Form, in_place: Form) -> None:
    negated = torch.randn(6, 1, dtype=torch.complex64).conj().imag
    a, b, g = torch.randn(4, 1), torch.randn(5, 4), torch.randn(1, 4)
    assert negated.is_neg()
    assert torch.equal(new(negated, a, b, g, None, 1.0), new(negated.resolve_neg(), a, b, g, None, 1.0))
    y = torch.randn(6, 1, dtype=torch.complex64).conj().imag
    expected = y + reference.rankwise_lora(torch.ones(6, 8), torch.ones(4, 8), b[:1], g)
    torch.testing.assert_close(in_place(y, torch.ones(6, 8), torch.ones(4, 8), b[:1], g, None, 1.0), expected)


@pytest.mark.parametrize("offset", [0, 64])
def test_released_memory_is_refused(problems: SimpleNamespace, offset: int) -> None:
    problem = problems.make()
    whole = torch.zeros(offset + problem.a.numel())
    problem.a = whole[offset:].view_as(problem.a)
    whole.untyped_storage().resize_(0)
    for form in (rankwise_lora_, torch.ops.bdc.rankwise_lora_):
        with pytest.raises(InputError, match="lora_a must have memory"):
            form(problem.y, *problem.arguments)


def test_meta_tensors(problems: SimpleNamespace, new: Form, in_place: Form) -> None:
    problem = problems.make()
    x, a, b, g = (t.to("meta") for t in problem.arguments[:4])
    for form in (new, in_place):
        if form in (NEW["pools"], IN_PLACE["pools"]):
            continue  # its pools are on the CPU here
        y = () if form is new else (problem.y.to("meta"),)
        assert form(*y, x, a, b, g[:1], None, 1.0).shape == problem.y.shape


def test_columns_of_one_buffer(problems: SimpleNamespace) -> None:
    x, a, b, g, rows, s = problems.make().arguments
    d_in = x.shape[1]
    buffer = torch.cat([x, torch.zeros(len(x), len(b))], 1)
    got = rankwise_lora_(buffer[:, d_in:], buffer[:, :d_in], a, b, g, rows, s)
    torch.testing.assert_close(got, reference.rankwise_lora(x, a, b, g, rows, s))
    for first in (d_in - 1, 0):
        with pytest.raises(InputError, match="must not share memory with x"):
            rankwise_lora_(buffer[:, first : first + len(b)], buffer[:, :d_in], a, b, g, rows, s)
