"""Several pools of experts: the same as one call per pool, in values, gradients and refusals."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from bdc.errors import InputError
from bdc.ops import rankwise_lora, rankwise_lora_, rankwise_lora_pools, rankwise_lora_pools_, reference

POOLS = torch.tensor([2, 0, 2, 3, 0])  # of five rows, among four pools; the second has none


def make(
    problems: SimpleNamespace, tokens: int = 17, dtype: torch.dtype = torch.float32, seed: int = 0
) -> SimpleNamespace:
    """A problem with five rows of weights, and four pools of experts in place of one."""
    problem = problems.make(tokens=tokens, requests=5, dtype=dtype, seed=seed)
    generator = torch.Generator().manual_seed(seed + 100)
    problem.a = torch.randn(4, *problem.a.shape, generator=generator).to(dtype)
    problem.b = torch.randn(4, *problem.b.shape, generator=generator).to(dtype)
    return problem


def arguments(problem: SimpleNamespace, pools: Tensor = POOLS) -> tuple[object, ...]:
    return problem.x, problem.a, problem.b, problem.g, pools, problem.rows, problem.scaling


def masked(problem: SimpleNamespace, pool: int) -> Tensor:
    """The rows of one pool's tokens, -1 for all others."""
    mine = (problem.rows >= 0) & (POOLS[problem.rows.clamp_min(0).long()] == pool)
    return torch.where(mine, problem.rows, -1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("tokens", [1, 17, 90])
def test_error_is_within_the_bound(problems: SimpleNamespace, backend: str, dtype: torch.dtype, tokens: int) -> None:
    problem = make(problems, tokens, dtype)
    given = problem.y.clone()
    got = rankwise_lora_pools_(given, *arguments(problem))
    assert got is given
    y, fresh = problem.y, rankwise_lora_pools(*arguments(problem))
    for pool in range(4):
        at = masked(problem, pool) >= 0
        part = problems.make(requests=5)
        part.x, part.g, part.rows = problem.x[at], problem.g, problem.rows[at]
        part.a, part.b = problem.a[pool], problem.b[pool]
        part.y = y[at]
        problems.assert_within_bounds(got[at], part)
        part.y = torch.zeros_like(y[at])
        problems.assert_within_bounds(fresh[at], part)
    absent = problem.rows < 0
    assert torch.equal(got[absent], y[absent]) and not fresh[absent].any()


@pytest.mark.parametrize("long", [False, True])
def test_same_bits_as_a_call_per_pool(problems: SimpleNamespace, backend: str, long: bool) -> None:
    problem = make(problems, 40)
    problem.rows = problem.rows.long() if long else problem.rows
    expected = problem.y.clone()
    for pool in range(4):
        rankwise_lora_(expected, problem.x, problem.a[pool], problem.b[pool], problem.g, masked(problem, pool), 0.7)
    pools = POOLS if long else POOLS.int()
    assert torch.equal(rankwise_lora_pools_(problem.y.clone(), *arguments(problem, pools)), expected)


def test_reference_is_the_sum_over_pools(problems: SimpleNamespace) -> None:
    problem = make(problems)
    x, a, b, g, pools, rows, s = (
        t.double() if torch.is_tensor(t) and t.is_floating_point() else t for t in arguments(problem)
    )
    for t, row in enumerate(rows.tolist()):
        pool = int(POOLS[row])
        alone = s * (x[t] @ a[pool].T * g[row]) @ b[pool].T if row >= 0 else torch.zeros(29).double()
        torch.testing.assert_close(reference.rankwise_lora_pools(x, a, b, g, pools, rows, s)[t], alone)


def test_rows_may_be_left_out(problems: SimpleNamespace, backend: str) -> None:
    problem = make(problems, 5)
    x, a, b, g, pools, _, s = arguments(problem)
    each = torch.arange(5)
    assert torch.equal(rankwise_lora_pools(x, a, b, g, pools, None, s), rankwise_lora_pools(x, a, b, g, pools, each, s))
    one = rankwise_lora_pools(x, a, b, g[:1], pools[:1], None, s)
    assert torch.equal(one, rankwise_lora_pools(x, a, b, g[:1], pools[:1], each * 0, s))


def test_no_tokens_and_no_rows(problems: SimpleNamespace, backend: str) -> None:
    problem = make(problems, 0)
    assert rankwise_lora_pools(*arguments(problem)).shape == (0, 29)
    problem = make(problems, 6)
    problem.rows[:], problem.g = -1, problem.g[:0]
    assert not rankwise_lora_pools(*arguments(problem, POOLS[:0])).any()


def test_strided_tensors(problems: SimpleNamespace, backend: str) -> None:
    problem = make(problems)
    expected = rankwise_lora_pools_(problem.y.clone(), *arguments(problem))
    problem.a, problem.b = problem.a.mT.contiguous().mT, problem.b.transpose(0, 1).contiguous().transpose(0, 1)
    problem.x = problem.x.T.contiguous().T
    got = rankwise_lora_pools_(problem.y.clone(), *arguments(problem))
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-5)


def test_no_leak_from_other_pools(problems: SimpleNamespace, backend: str) -> None:
    problem = make(problems)
    clean = rankwise_lora_pools(*arguments(problem))
    problem.a[2] = problem.b[1] = float("nan")
    got = rankwise_lora_pools(*arguments(problem))
    other = masked(problem, 2) < 0
    assert torch.equal(got[other], clean[other]) and got[~other].isnan().all()


@pytest.mark.parametrize("rows", [True, False])
def test_gradcheck(problems: SimpleNamespace, rows: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = ((5, 3), (2, 4, 3), (2, 2, 4), (5, 4))
    leaves = [torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in shapes]
    place = torch.tensor([3, -1, 0, 3, 1]) if rows else None
    pools = torch.tensor([1, 0, 0, 1, 1])
    assert torch.autograd.gradcheck(lambda *tensors: rankwise_lora_pools(*tensors, pools, place, 0.7), leaves)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_are_those_of_a_call_per_pool(problems: SimpleNamespace, dtype: torch.dtype) -> None:
    problem = make(problems, 40, dtype)
    leaves = [t.clone().requires_grad_() for t in (problem.x, problem.a, problem.b, problem.g)]
    rankwise_lora_pools(*leaves, POOLS, problem.rows, 0.7).backward(problem.y)
    dx, da, db, dg = (leaf.grad for leaf in leaves)
    sums = torch.zeros_like(dg)
    for pool in range(4):
        at = masked(problem, pool) >= 0
        part = [t.clone().requires_grad_() for t in (problem.x[at], problem.a[pool], problem.b[pool], problem.g)]
        rankwise_lora(*part, problem.rows[at], 0.7).backward(problem.y[at])
        assert torch.equal(dx[at], part[0].grad)
        assert torch.equal(da[pool], part[1].grad) and torch.equal(db[pool], part[2].grad)
        sums += part[3].grad
    assert torch.equal(dg, sums)
    assert not dx[problem.rows < 0].any() and not da[1].any()


def test_gradients_agree_with_the_reference(problems: SimpleNamespace, backend: str) -> None:
    problem = make(problems, 30)
    leaves = [t.clone().requires_grad_() for t in (problem.x, problem.a, problem.b, problem.g)]
    exact = [t.detach().double().requires_grad_() for t in leaves]
    rankwise_lora_pools(*leaves, POOLS, problem.rows, 0.7).backward(problem.y)
    reference.rankwise_lora_pools(*exact, POOLS, problem.rows, 0.7).backward(problem.y.double())
    for got, wanted in zip(leaves, exact, strict=True):
        torch.testing.assert_close(
            got.grad.double(), wanted.grad, rtol=1e-4, atol=1e-5 * float(wanted.grad.abs().max())
        )


@pytest.mark.parametrize("grad", [False, True])
def test_opcheck(problems: SimpleNamespace, grad: bool) -> None:
    problem = make(problems)
    given = [t.requires_grad_(grad) if t.is_floating_point() else t for t in arguments(problem)[:6]]
    tests = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    torch.library.opcheck(torch.ops.bdc.rankwise_lora_pools.default, (*given, 0.7), test_utils=tests)
    if not grad:
        torch.library.opcheck(torch.ops.bdc.rankwise_lora_pools_.default, (problem.y, *given, 0.7), test_utils=tests)
        parts = ("test_schema", "test_faketensor")
        torch.library.opcheck(torch.ops.bdc.rankwise_lora_pools_with_h.default, (*given, 0.7), test_utils=parts)
        _, h = torch.ops.bdc.rankwise_lora_pools_with_h(*given, 0.7)
        for needed in ([True] * 4, [False, False, False, True]):
            torch.library.opcheck(
                torch.ops.bdc.rankwise_lora_pools_backward.default,
                (problem.y, *given, h, 0.7, needed),
                test_utils=parts,
            )


def test_compile_is_one_graph_for_all_numbers_of_tokens(problems: SimpleNamespace) -> None:
    compiled = torch.compile(
        lambda *given: rankwise_lora_pools(*given).relu(), fullgraph=True, backend="aot_eager", dynamic=True
    )
    in_place = torch.compile(rankwise_lora_pools_, fullgraph=True, backend="aot_eager", dynamic=True)
    for tokens in (3, 7, 12):
        problem = make(problems, tokens)
        assert torch.equal(compiled(*arguments(problem)), rankwise_lora_pools(*arguments(problem)).relu())
        expected = rankwise_lora_pools_(problem.y.clone(), *arguments(problem))
        assert torch.equal(in_place(problem.y.clone(), *arguments(problem)), expected)


def test_compiled_gradients(problems: SimpleNamespace) -> None:
    compiled = torch.compile(rankwise_lora_pools, fullgraph=True, backend="aot_eager")
    problem = make(problems)
    found, expected = ([t.clone().requires_grad_() for t in arguments(problem)[:4]] for _ in range(2))
    compiled(*found, POOLS, problem.rows, 0.7).square().sum().backward()
    rankwise_lora_pools(*expected, POOLS, problem.rows, 0.7).square().sum().backward()
    for got, wanted in zip(found, expected, strict=True):
        assert got.grad is not None and torch.equal(got.grad, wanted.grad)


def test_modes_and_transforms(problems: SimpleNamespace) -> None:
    problem = make(problems)
    x, a, b, g, pools, rows, s = arguments(problem)
    expected = rankwise_lora_pools(*arguments(problem))
    with torch.inference_mode():
        assert torch.equal(rankwise_lora_pools(*arguments(problem)), expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        halves = rankwise_lora_pools(*arguments(problem))
    assert torch.equal(halves, rankwise_lora_pools(x.bfloat16(), a.bfloat16(), b.bfloat16(), g, pools, rows, s))
    got = torch.func.grad(lambda weights: rankwise_lora_pools(x, a, b, weights, pools, rows, s).square().sum())(g)
    leaf = g.clone().requires_grad_()
    rankwise_lora_pools(x, a, b, leaf, pools, rows, s).square().sum().backward()
    assert torch.equal(got, leaf.grad)
    with pytest.raises(InputError, match=r"no torch.func.vmap"):
        torch.func.vmap(lambda tokens: rankwise_lora_pools(tokens, a, b, g, pools, rows, s))(torch.stack([x, x]))
    before = problem.y._version
    rankwise_lora_pools_(problem.y, *arguments(problem))
    assert problem.y._version > before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"a": torch.zeros(13, 37)}, r"lora_a must be \[P, R, d_in\] with at least one pool, got \[13, 37\]"),
        ({"a": torch.zeros(0, 13, 37)}, r"lora_a must be .*at least one pool, got \[0, 13, 37\]"),
        ({"b": torch.zeros(3, 29, 13)}, r"lora_b must be \[P, d_out, R\] with P = 4 .*got \[3, 29, 13\]"),
        ({"pools": torch.zeros(4, dtype=torch.int64)}, r"row_to_pool must be \[5\].*got \[4\]"),
        ({"pools": torch.zeros(5)}, "row_to_pool must be int32 or int64, got torch.float32"),
        ({"pools": torch.tensor([0, 1, 2, 4, 0])}, r"row_to_pool must be in \[0, 4\).*got 4"),
        (
            {"pools": torch.tensor([0, 1, 2, 99, 0]), "rows": torch.zeros(17, dtype=torch.int64)},
            "row_to_pool must be.*99",
        ),
        ({"pools": torch.tensor([0, 1, 2, -1, 0])}, r"row_to_pool must be in \[0, 4\).*got -1"),
        ({"rows": torch.full((17,), 5)}, r"token_to_row must be in \[-1, 5\).*got 5"),
        ({"scaling": float("nan")}, "scaling must be finite, got nan"),
    ],
)
def test_refused_before_anything_is_written(
    problems: SimpleNamespace, backend: str, change: dict[str, object], message: str
) -> None:
    problem = make(problems)
    problem.rows = torch.arange(17, dtype=torch.int32) % 5
    for name, value in change.items():
        setattr(problem, name, value)
    pools = change.get("pools", POOLS)
    before = problem.y.clone()
    with pytest.raises(InputError, match=message):
        rankwise_lora_pools_(problem.y, *arguments(problem, pools))
    assert torch.equal(problem.y, before)
    with pytest.raises(InputError, match=message):
        rankwise_lora_pools(*arguments(problem, pools))


def test_shared_memory_and_gradients_in_place_are_refused(problems: SimpleNamespace, backend: str) -> None:
    problem = make(problems, 5)
    storage = torch.zeros(5 * 29, dtype=torch.int64)
    with pytest.raises(InputError, match="y must not share memory with row_to_pool"):
        rankwise_lora_pools_(storage.view(torch.float32)[: 5 * 29].view(5, 29), *arguments(problem, storage[:5]))
    problem.g.requires_grad_()
    with pytest.raises(InputError, match="rankwise_lora_pools_ has no gradient"):
        rankwise_lora_pools_(problem.y, *arguments(problem))


def test_gradients_of_strided_experts_are_what_compilers_expect(problems: SimpleNamespace) -> None:
    x, a, b, g, pools, rows, s = arguments(make(problems))
    strided = b.transpose(1, 2).contiguous().transpose(1, 2)
    grad, h = torch.ones(len(x), b.shape[1]), torch.ones(len(x), a.shape[1])
    torch.library.opcheck(
        torch.ops.bdc.rankwise_lora_pools_backward.default,
        (grad, x, a, strided, g, pools, rows, h, s, [True] * 4),
        test_utils="test_faketensor",
    )
