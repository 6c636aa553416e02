"""What a user of torch does with the product on a GPU: graphs, compilation, streams, gradients, checks."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from bdc.errors import InputError
from bdc.ops import (
    RankwiseLoraLinear,
    backends,
    counters,
    rank_weights,
    rankwise_lora,
    rankwise_lora_,
    rankwise_lora_linear,
    rankwise_lora_pools,
    rankwise_lora_slices_,
    reference,
)

if not torch.cuda.is_available():
    pytest.skip("needs a CUDA device: run benchmarks/gpu.sh on one", allow_module_level=True)
pytestmark = pytest.mark.gpu


@pytest.fixture(params=["torch", "triton", "cuda", "default"])
def on_gpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each backend that a GPU has, and the one that is taken where none is asked for."""
    if request.param == "default":
        monkeypatch.delenv("BDC_OPS_BACKEND", raising=False)
    elif request.param not in backends():
        pytest.skip(f"the backend {request.param} is not usable: bdc doctor says why")
    else:
        monkeypatch.setenv("BDC_OPS_BACKEND", request.param)
    return str(request.param)


def problem_on_gpu(problems: SimpleNamespace, *shape: int, dtype: torch.dtype = torch.bfloat16) -> SimpleNamespace:
    with torch.device("cuda"):
        problem: SimpleNamespace = problems.make(*shape, dtype=dtype)
    return problem


def assert_within_bounds(problems: SimpleNamespace, got: Tensor, problem: SimpleNamespace) -> None:
    with torch.device("cuda"):
        problems.assert_within_bounds(got, problem)


@pytest.mark.parametrize("tokens", [1, 8, 16, 64, 200])
def test_graph_replay_sees_new_gates(problems: SimpleNamespace, on_gpu: str, tokens: int) -> None:
    """Serving engines capture a step once, and write each step's gates and rows in place."""
    problem = problem_on_gpu(problems, tokens, 256, 192, 32, 5)
    y = problem.y.clone()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            rankwise_lora_(y, *problem.arguments)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        rankwise_lora_(y, *problem.arguments)
    generator = torch.Generator("cuda").manual_seed(3)
    for _ in range(3):
        problem.g.copy_(torch.randn(problem.g.shape, generator=generator, device="cuda"))
        problem.rows.copy_(torch.randint(-1, 5, (tokens,), generator=generator, device="cuda"))
        problem.x.copy_(torch.randn(problem.x.shape, generator=generator, device="cuda"))
        y.copy_(problem.y)
        graph.replay()
        assert_within_bounds(problems, y, problem)
        assert torch.equal(y[problem.rows < 0], problem.y[problem.rows < 0])
        expected = rankwise_lora_(problem.y.clone(), *problem.arguments)
        assert torch.equal(y, expected)
    assert counters.all_zero()


def test_work_goes_to_the_current_stream(problems: SimpleNamespace, on_gpu: str) -> None:
    problem = problem_on_gpu(problems, 16, 256, 192, 32, 5)
    expected = rankwise_lora_(problem.y.clone(), *problem.arguments)
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    y, x = problem.y.clone(), torch.zeros_like(problem.x)
    torch.cuda.synchronize()
    with torch.cuda.stream(side):
        torch.cuda._sleep(20_000_000)  # a launch on another stream would read x before it is there
        x.copy_(problem.x)
        rankwise_lora_(y, x, *problem.arguments[1:])
    side.synchronize()
    assert torch.equal(y, expected)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_tensors_of_another_gpu_than_the_current(problems: SimpleNamespace, on_gpu: str) -> None:
    for tokens in (2, 16):
        problem = problem_on_gpu(problems, tokens, 256, 192, 32, 5)
        expected = rankwise_lora(*problem.arguments)
        there = [t.to("cuda:1") if isinstance(t, Tensor) else t for t in problem.arguments]
        assert torch.equal(rankwise_lora(*there).cpu(), expected.cpu())


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled(problems: SimpleNamespace, on_gpu: str, dynamic: bool) -> None:
    compiled = torch.compile(lambda *a: rankwise_lora(*a).relu() * 2, fullgraph=True, dynamic=dynamic)
    for tokens in (3, 40) if dynamic else (40,):
        problem = problem_on_gpu(problems, tokens, 128, 96, 32, 5)
        assert torch.equal(compiled(*problem.arguments), rankwise_lora(*problem.arguments).relu() * 2)


def test_compiled_into_graphs(problems: SimpleNamespace, on_gpu: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first launch of all is one whose memory belongs to the graph."""
    monkeypatch.setattr(counters, "_arenas", {})
    problem = problem_on_gpu(problems, 16, 128, 96, 32, 5)
    compiled = torch.compile(lambda *a: rankwise_lora(*a).relu() * 2, fullgraph=True, mode="reduce-overhead")
    found = [compiled(*problem.arguments).clone() for _ in range(4)]
    expected = rankwise_lora(*problem.arguments).relu() * 2
    assert all(torch.equal(got, expected) for got in found)


def test_opcheck(problems: SimpleNamespace, on_gpu: str) -> None:
    problem = problem_on_gpu(problems, 7, 40, 24, 16, 4, dtype=torch.float32)
    for grad in (False, True):
        leaves = [tensor.detach().clone().requires_grad_(grad) for tensor in problem.arguments[:4]]
        torch.library.opcheck(torch.ops.bdc.rankwise_lora.default, (*leaves, problem.rows, 0.7))
    arguments = (problem.y, *(tensor.detach() for tensor in leaves), problem.rows, 0.7)
    torch.library.opcheck(torch.ops.bdc.rankwise_lora_.default, arguments)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients(problems: SimpleNamespace, on_gpu: str, dtype: torch.dtype) -> None:
    problem = problem_on_gpu(problems, 90, 72, 56, 24, 4, dtype=dtype)
    found = []
    for _ in range(3):
        leaves = [tensor.detach().clone().requires_grad_() for tensor in problem.arguments[:4]]
        rankwise_lora(*leaves, problem.rows, 0.7).backward(problem.y)
        found.append([leaf.grad for leaf in leaves])
    exact = [tensor.detach().double().requires_grad_() for tensor in problem.arguments[:4]]
    reference.rankwise_lora(*exact, problem.rows, 0.7).backward(problem.y.double())
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    for got, leaf in zip(found[0], exact, strict=True):
        assert float((got.double() - leaf.grad).norm()) <= tolerance * float(leaf.grad.norm())
    assert all(torch.equal(one, other) for again in found[1:] for one, other in zip(found[0], again, strict=True))


def test_autocast(problems: SimpleNamespace, on_gpu: str) -> None:
    problem = problem_on_gpu(problems, 16, 64, 48, 16, 4, dtype=torch.float32)
    x, a, b, g, rows, s = problem.arguments
    with torch.autocast("cuda", dtype=torch.bfloat16):
        got = rankwise_lora(x, a, b, g, rows, s)
    assert torch.equal(got, rankwise_lora(x.bfloat16(), a.bfloat16(), b.bfloat16(), g, rows, s))


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("tokens", [1, 16, 64, 200])
def test_several_outputs_in_a_graph(problems: SimpleNamespace, on_gpu: str, tokens: int, whole: bool) -> None:
    """As a merged q, k and v: added to what is there, and with the base."""
    problem = problem_on_gpu(problems, tokens, 256, 320, 48, 5)
    x, a, b, g, rows, s = problem.arguments
    b, ends, y = b[:, :16].contiguous(), (128, 192, 320), problem.y.clone()
    weight = torch.randn(320, 256, device="cuda").bfloat16()

    def run() -> Tensor:
        if whole:
            return rankwise_lora_linear(x, weight, None, a, b, g, rows, s, ends)
        return rankwise_lora_slices_(y, x, a, b, g, ends, rows, s)

    with torch.inference_mode():
        run()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = run()
        for seed in (1, 2):
            g.copy_(torch.randn(g.shape, generator=torch.Generator().manual_seed(seed)))
            y.copy_(problem.y)
            graph.replay()
            got = out.clone()
            y.copy_(problem.y)
            assert torch.equal(got, run())
            before = torch.nn.functional.linear(x, weight) if whole else problem.y
            for i, (first, end) in enumerate(((0, 128), (128, 192), (192, 320))):
                own = slice(16 * i, 16 * i + 16)
                product = reference.rankwise_lora(
                    x.double(), a[own].double(), b[first:end].double(), g[:, own].double(), rows, s
                )
                expected = before[:, first:end].double() + product
                assert float((got[:, first:end].double() - expected).norm()) <= 1e-2 * float(expected.norm())
    assert counters.all_zero()


def test_a_layer_is_one_operator_of_a_compiled_graph(problems: SimpleNamespace, on_gpu: str) -> None:
    problem = problem_on_gpu(problems, 7, 64, 48, 16, 4)
    layer = RankwiseLoraLinear(nn.Linear(64, 48, device="cuda").bfloat16(), problem.a, problem.b, problem.scaling)
    seen: list[str] = []

    def record(graph: torch.fx.GraphModule, inputs: object) -> object:
        seen.extend(str(node.target) for node in graph.graph.nodes if node.op == "call_function")
        return graph

    with torch.inference_mode(), rank_weights(layer, problem.g, problem.rows):
        torch.compile(layer, fullgraph=True, backend=record)(problem.x)
        compiled = torch.compile(layer, fullgraph=True, dynamic=True)
        assert torch.equal(compiled(problem.x), layer(problem.x))
    assert "bdc.rankwise_lora_linear" in seen and not any("add" in name for name in seen)


def test_wrapped_layer_in_a_graph(problems: SimpleNamespace, on_gpu: str) -> None:
    """The gates lie in one tensor that the replay reads."""
    torch.manual_seed(0)
    with torch.device("cuda"):
        base = nn.Linear(64, 48).bfloat16()
        layer = RankwiseLoraLinear(base, torch.randn(16, 64).bfloat16(), torch.randn(48, 16).bfloat16(), 0.5)
        g, x = torch.randn(4, 16), torch.randn(4, 64).bfloat16()
        rows = torch.arange(4, dtype=torch.int32)
    with torch.inference_mode(), rank_weights(layer, g, rows):
        layer(x)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = layer(x)
        for seed in (1, 2):
            torch.manual_seed(seed)
            g.copy_(torch.randn(4, 16))
            graph.replay()
            assert torch.equal(out, layer(x))


def test_pools(problems: SimpleNamespace, on_gpu: str) -> None:
    with torch.device("cuda"):
        parts = [problems.make(12, 64, 48, 16, 4, dtype=torch.bfloat16, seed=seed) for seed in range(2)]
        pool = torch.tensor([0, 1, 1, 0], dtype=torch.int32)
    a, b = torch.stack([part.a for part in parts]), torch.stack([part.b for part in parts])
    first = parts[0]
    got = rankwise_lora_pools(first.x, a, b, first.g, pool, first.rows, 0.7)
    for part in parts:
        part.x, part.g, part.rows = first.x, first.g, first.rows
    alone = [rankwise_lora(*part.arguments) for part in parts]
    chosen = pool[first.rows.long().clamp_min(0)].bool()
    expected = torch.where(chosen[:, None], alone[1], alone[0])
    torch.testing.assert_close(got, expected, rtol=2e-2, atol=2e-2)


def test_rows_are_checked_when_asked_for(problems: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = problem_on_gpu(problems, 7, 40, 24, 16, 4)
    problem.rows[3] = 4
    monkeypatch.setenv("BDC_OPS_CHECK", "1")
    before = problem.y.clone()
    with pytest.raises(InputError, match=r"token_to_row must be in \[-1, 4\).*got 4"):
        rankwise_lora_(problem.y, *problem.arguments)
    assert torch.equal(problem.y, before)
    with pytest.raises(InputError, match="lora_a must be on cuda:0, where x is, got cpu"):
        rankwise_lora(problem.x, problem.a.cpu(), *problem.arguments[2:])


def test_memory_is_that_of_the_sums(problems: SimpleNamespace, on_gpu: str) -> None:
    """No experts are gathered per token: beyond the output, [T, R] in float32 a few times and for each of up to 32 splits."""
    tokens, ranks = 64, 128
    problem = problem_on_gpu(problems, tokens, 4096, 512, ranks, 5)
    y = problem.y
    for _ in range(2):
        rankwise_lora_(y, *problem.arguments)
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
    rankwise_lora_(y, *problem.arguments)
    used = torch.cuda.max_memory_allocated() - before
    assert used <= 40 * tokens * ranks * 4 + tokens * 512 * 2, f"{used} bytes"
