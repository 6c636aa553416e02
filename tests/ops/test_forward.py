"""Values of each backend against float64, and the cases where a product must leave its output alone."""

from __future__ import annotations

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from bdc.machine import cpu_field, memory_bytes
from bdc.ops import backends, cuda, extension, rankwise_lora, rankwise_lora_, reference

SHAPES = [
    (150, 96, 200, 24, 9),
    (1, 1, 1, 1, 1),
    (7, 37, 29, 13, 4),
    (3, 64, 48, 16, 2),
    (33, 129, 65, 40, 5),
    (70, 20, 31, 128, 3),
    (2, 4096, 8, 5, 1),
    (5, 9001, 33, 40, 3),
    (4, 30, 45, 520, 3),
]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_error_is_within_the_bound(
    problems: SimpleNamespace, backend: str, dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    for seed in range(5):
        problem = problems.make(*shape, dtype=dtype, seed=seed)
        got = rankwise_lora_(problem.y.clone(), *problem.arguments)
        # Matrix products of a library may round before they add, and larger batches go to torch.
        library = got.is_cuda and (backend == "torch" or (backend == "cuda" and len(got) > cuda.MOST_TOKENS))
        problems.assert_within_bounds(got, problem, product_is_rounded=library)
        problem.y.zero_()
        problems.assert_within_bounds(rankwise_lora(*problem.arguments), problem)


@pytest.mark.parametrize("ranks", [16, 64])
@pytest.mark.parametrize("tokens", [1, 2])
def test_a_large_y_is_rounded_once(problems: SimpleNamespace, backend: str, tokens: int, ranks: int) -> None:
    """A BLAS may add to y rank by rank where the columns of B are contiguous."""
    problem = problems.make(tokens=tokens, d_in=64, d_out=256, rank=ranks, requests=1)
    problem.rows = None
    problem.x, problem.y = problem.x / 100, problem.y * 100
    problem.b = problem.b.T.contiguous().T
    y = problem.y.clone()
    problems.assert_within_bounds(rankwise_lora_(y, *problem.arguments), problem)


def test_cancellation(problems: SimpleNamespace, backend: str) -> None:
    problem = problems.make(d_in=512, rank=64)
    problem.x[:, 256:] = problem.x[:, :256]
    problem.a[:, 256:] = -problem.a[:, :256] * (1 + 1e-6)
    problem.b[:, 32:] = -problem.b[:, :32]
    problem.y = -problems.truth(problem).sub(problem.y.double()).float()
    problems.assert_within_bounds(rankwise_lora_(problem.y.clone(), *problem.arguments), problem)


def test_tokens_without_adapter_are_not_written(problems: SimpleNamespace, backend: str) -> None:
    problem = problems.make(tokens=12)
    problem.rows[::3] = -1
    problem.y[::3] = -0.0
    problem.x[0] = float("nan")
    problem.b[0, 0] = float("inf")
    got = rankwise_lora_(problem.y.clone(), *problem.arguments)
    assert torch.equal(got[::3].view(torch.int32), problem.y[::3].view(torch.int32))
    problem.rows[:] = -1
    got = rankwise_lora_(problem.y.clone(), *problem.arguments)
    assert torch.equal(got.view(torch.int32), problem.y.view(torch.int32))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_zero_weights_leave_the_output_alone(problems: SimpleNamespace, backend: str, dtype: torch.dtype) -> None:
    problem = problems.make(dtype=dtype)
    problem.g.zero_()
    assert torch.equal(rankwise_lora_(problem.y.clone(), *problem.arguments), problem.y)


def test_one_hot_weights_are_plain_lora(problems: SimpleNamespace, backend: str) -> None:
    problem = problems.make(rank=12, requests=3)
    problem.g = torch.eye(3).repeat_interleave(4, 1)
    got = rankwise_lora(*problem.arguments)
    for t, row in enumerate(problem.rows.tolist()):
        ranks = slice(4 * row, 4 * row + 4)
        expected = problem.scaling * (problem.x[t] @ problem.a[ranks].T) @ problem.b[:, ranks].T
        torch.testing.assert_close(got[t], expected if row >= 0 else torch.zeros_like(got[t]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_no_leak_from_other_rows(problems: SimpleNamespace, backend: str, poison: float) -> None:
    problem = problems.make(tokens=9)
    problem.rows = torch.tensor([0, 1, 2, 0, 1, 2, -1, 3, 0], dtype=torch.int32)
    clean = rankwise_lora(*problem.arguments)
    problem.g[1] = poison
    problem.x[5] = poison
    got = rankwise_lora(*problem.arguments)
    kept = torch.tensor([0, 2, 3, 6, 7, 8])
    assert torch.equal(got[kept], clean[kept])
    assert not got[torch.tensor([1, 4, 5])].isfinite().all(1).any()


def test_no_tokens(problems: SimpleNamespace, backend: str) -> None:
    problem = problems.make(tokens=0)
    assert rankwise_lora(*problem.arguments).shape == (0, 29)
    assert rankwise_lora_(problem.y, *problem.arguments) is problem.y
    assert reference.rankwise_lora(*problem.arguments).shape == (0, 29)


def test_strided_tensors(problems: SimpleNamespace, backend: str) -> None:
    problem = problems.make(tokens=8, d_in=24)
    expected = rankwise_lora_(problem.y.clone(), *problem.arguments)
    rest = problem.arguments[1:]
    layouts = {"columns": problem.x.T.contiguous().T, "rows": problem.x.repeat_interleave(2, 0)[::2]}
    for x in layouts.values():
        torch.testing.assert_close(rankwise_lora_(problem.y.clone(), x, *rest), expected, rtol=1e-6, atol=1e-5)
    for y in (torch.zeros(8, 58)[:, ::2], torch.zeros(16, 40)[::2, 3:32], torch.zeros(29, 8).T):
        y.copy_(problem.y)
        torch.testing.assert_close(rankwise_lora_(y, problem.x, *rest), expected, rtol=1e-6, atol=1e-5)
    x, a, b, g, rows, s = problem.arguments
    got = rankwise_lora_(
        problem.y.clone(), x, a.T.contiguous().T, b.T.contiguous().T, g.T.contiguous().T, rows.long(), s
    )
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-5)


def test_rows_may_be_left_out(problems: SimpleNamespace, backend: str) -> None:
    problem = problems.make(tokens=4, requests=4)
    x, a, b, g, _, s = problem.arguments
    each, same = torch.arange(4, dtype=torch.int32), torch.zeros(4, dtype=torch.int32)
    assert torch.equal(rankwise_lora(x, a, b, g, None, s), rankwise_lora(x, a, b, g, each, s))
    assert torch.equal(rankwise_lora(x, a, b, g[:1], None, s), rankwise_lora(x, a, b, g, same, s))


@pytest.mark.usefixtures("cpp")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("tokens", [2, 40])
def test_cpp_offsets_above_two_to_the_31(problems: SimpleNamespace, tokens: int, dtype: torch.dtype) -> None:
    """Rows that far apart; only the pages in use take memory."""
    if (memory_bytes("MemTotal") or 0) < 4 * dtype.itemsize << 30:
        pytest.skip("the system may refuse to reserve that much memory")
    problem = problems.make(tokens, 32, 24, 8, 2, dtype=dtype)
    expected = rankwise_lora_(problem.y.clone(), *problem.arguments)
    problems.assert_within_bounds(expected, problem)

    def spread(values: torch.Tensor) -> torch.Tensor:
        """The same in rows the last of which starts beyond 2^31 elements."""
        rows, width = values.shape
        far = torch.empty(rows, (1 << 31) // (rows - 1) + width, dtype=dtype)[:, :width]
        return far.copy_(values)

    x, a, b, g, rows, s = problem.arguments
    assert torch.equal(rankwise_lora_(spread(problem.y), spread(x), a, b, g, rows, s), expected)
    assert extension.try_add(problem.y, x, spread(a), spread(b), g, rows, s)
    assert torch.equal(problem.y, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_same_bits_every_time(problems: SimpleNamespace, backend: str, dtype: torch.dtype) -> None:
    problem = problems.make(tokens=40, d_in=300, d_out=200, rank=48, dtype=dtype)
    first = rankwise_lora(*problem.arguments)
    assert all(torch.equal(rankwise_lora(*problem.arguments), first) for _ in range(5))


@pytest.mark.usefixtures("cpp")
@pytest.mark.parametrize("tokens", [2, 3, 9, 39])
def test_cpp_token_depends_on_the_number_of_tokens_only(problems: SimpleNamespace, tokens: int) -> None:
    problem = problems.make(tokens=tokens, d_in=100, d_out=50)
    x, a, b, g, rows, s = problem.arguments
    rows.clamp_min_(0)
    expected = rankwise_lora(x, a, b, g, rows, s)
    order = torch.randperm(tokens, generator=torch.Generator().manual_seed(1))
    assert torch.equal(rankwise_lora(x[order], a, b, g, rows[order], s), expected[order])
    others = torch.randn(tokens, 100)
    others[0] = x[0]
    assert torch.equal(rankwise_lora(others, a, b, g, rows, s)[0], expected[0])


@pytest.mark.usefixtures("cpp")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("tokens", "parts"),
    # AMX takes float16 from nine tokens on. A may be turned from 64 on, with 40 ranks from 160 on. Each has its order.
    [
        (8, ((0, 5), (2, 8))),
        (16, ((0, 9), (3, 16))),
        (63, ((0, 9), (3, 16), (20, 51), (7, 63))),
        (400, ((0, 160), (100, 350), (7, 400))),
    ],
)
def test_cpp_more_than_four_tokens_do_not_change_each_other(
    problems: SimpleNamespace, dtype: torch.dtype, tokens: int, parts: tuple[tuple[int, int], ...]
) -> None:
    problem = problems.make(tokens=tokens, d_in=100, d_out=50, rank=40, dtype=dtype)
    problem.rows.clamp_min_(0)
    x, a, b, g, rows, s = problem.arguments
    whole = rankwise_lora(x, a, b, g, rows, s)
    if tokens == 63 and dtype != torch.float16:
        parts += ((0, 5),)
    zen5 = cpu_field("vendor_id") == "AuthenticAMD" and int(cpu_field("cpu family") or 0) >= 26
    if zen5 and tokens == 8 and dtype == torch.float32:
        pytest.skip("Zen 5 sums eight tokens in an order of their own: run on another processor")
    for first, last in parts:
        part = slice(first, last)
        assert torch.equal(rankwise_lora(x[part], a, b, g, rows[part], s), whole[part])


@pytest.mark.usefixtures("cpp")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("tokens", [1, 4, 23, 300])
def test_cpp_bits_do_not_depend_on_threads(problems: SimpleNamespace, tokens: int, dtype: torch.dtype) -> None:
    problem = problems.make(tokens=tokens, d_in=2080, d_out=333, rank=40, dtype=dtype)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3, 16):
            torch.set_num_threads(threads)
            assert f", {threads} thread" in backends()["cpp"]
            results.append(rankwise_lora(*problem.arguments))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(result, results[0]) for result in results)
    problems.assert_within_bounds(rankwise_lora_(problem.y.clone(), *problem.arguments), problem)


FEW_TOKENS_ON_SEVERAL_THREADS = """
import torch
from bdc.ops import rankwise_lora

for dtype in (torch.float32, torch.bfloat16, torch.float16):
    for tokens, d_in, rank in [(1, 8192, 160), (3, 8192, 160), (8, 6100, 128), (16, 4864, 40), (23, 4096, 72)]:
        x, a, b = (torch.randn(n, m).to(dtype) for n, m in [(tokens, d_in), (rank, d_in), (2100, rank)])
        g = torch.rand(tokens, rank)
        results = []
        for threads in (1, 2, 3, 16):
            torch.set_num_threads(threads)
            results.append(rankwise_lora(x, a, b, g))
        assert all(torch.equal(result, results[0]) for result in results), (dtype, tokens)
"""


@pytest.mark.usefixtures("cpp")
def test_cpp_few_tokens_have_their_bits_on_threads_that_spin() -> None:
    # Threads that sleep, as this process was told to let them, are not woken for so little.
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    command = [sys.executable, "-c", FEW_TOKENS_ON_SEVERAL_THREADS]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
