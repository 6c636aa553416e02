"""The CUDA kernels on a GPU where there is one, else the same sources on the emulated GPU of csrc/cuda/emulator.hpp."""

from __future__ import annotations

from types import ModuleType, SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from bdc.errors import BdcError, InputError
from bdc.ops import counters, cuda, rankwise_lora_

UNIT = {torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
# tokens, d_in, d_out, ranks, requests: the smallest, ends of tiles, more tiles and splits than blocks.
TILED = [(9, 8, 8, 8, 1), (16, 520, 136, 24, 3), (17, 64, 64, 16, 4), (33, 192, 72, 72, 4), (64, 1032, 200, 136, 5)]


def on_device(problem: SimpleNamespace) -> SimpleNamespace:
    """The problem where the backend runs."""
    if torch.cuda.is_available():
        for name in ("y", "x", "a", "b", "g", "rows"):
            setattr(problem, name, getattr(problem, name).cuda())
    return problem


def added(problem: SimpleNamespace) -> Tensor:
    y = problem.y.clone()
    assert cuda.supports(y, problem.x)
    cuda.add(y, *problem.arguments)
    return y


@pytest.mark.usefixtures("cuda_backend")
@pytest.mark.parametrize("shape", TILED)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_tiles_are_within_the_bound(problems: SimpleNamespace, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    problem = problems.make(*shape, dtype=dtype)
    got = added(on_device(problem)).cpu()
    problems.assert_within_bounds(got, problems.make(*shape, dtype=dtype))


@pytest.mark.usefixtures("cuda_backend")
@pytest.mark.parametrize("tokens", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_vectors_are_within_the_bound(problems: SimpleNamespace, dtype: torch.dtype, tokens: int) -> None:
    for shape in [(tokens, 264, 72, 136, 3), (tokens, 1, 1, 1, 1), (tokens, 300, 33, 7, 2)]:
        got = added(on_device(problems.make(*shape, dtype=dtype))).cpu()
        problems.assert_within_bounds(got, problems.make(*shape, dtype=dtype))


@pytest.mark.usefixtures("cuda_backend")
@pytest.mark.parametrize("shape", TILED)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_layer_in_one_launch(problems: SimpleNamespace, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    problem = problems.make(*shape, dtype=dtype)
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(shape[2], shape[1], generator=generator).to(dtype)
    bias = torch.randn(shape[2], generator=generator).to(dtype)
    expected, bound = problems.layer_bound(problem, weight, bias)
    problem = on_device(problem)
    got = cuda.linear(problem.x, weight.to(problem.x.device), bias.to(problem.x.device), *problem.arguments[1:]).cpu()
    assert bool(((got.double() - expected).abs() <= bound).all())


@pytest.mark.usefixtures("cuda_backend")
@pytest.mark.parametrize("base", [False, True])
@pytest.mark.parametrize("tokens", [3, 40])
def test_slices(problems: SimpleNamespace, tokens: int, base: bool) -> None:
    """Three outputs of x, as q, k and v: one launch in all, each output with its own experts."""
    widths, d_in, dtype = (128, 64, 72), 136, torch.bfloat16
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parts = [problems.make(tokens, d_in, width, 24, 3, dtype=dtype, seed=i) for i, width in enumerate(widths)]
    weights = [torch.randn(width, d_in).to(dtype) * base for width in widths]
    for part in parts:
        part.x, part.rows = parts[0].x, parts[0].rows
    a, b, weight = (torch.cat(m).to(device) for m in ([p.a for p in parts], [p.b for p in parts], weights))
    g, y = (torch.cat(m, 1).to(device) for m in ([p.g for p in parts], [p.y for p in parts]))
    x, rows = parts[0].x.to(device), parts[0].rows.to(device)
    arguments = (None, a, b, g, rows, 0.7, None if base else y)
    got = cuda.linear(x, weight if base else None, *arguments, (128, 192, 264)).cpu()
    for part, own, piece in zip(parts, weights, got.split(widths, 1), strict=True):
        expected, bound = problems.layer_bound(part, own, torch.zeros(len(own)))
        if not base:
            expected, bound = expected + part.y.double(), bound + UNIT[dtype] * part.y.double().abs()
        assert bool(((piece.double() - expected).abs() <= bound).all())
    with pytest.raises(InputError, match="ends must be rising columns up to 264"):
        cuda.linear(x, weight, *arguments, (128, 100, 264))


@pytest.mark.usefixtures("cuda_backend")
def test_layer_without_adapter_is_the_base(problems: SimpleNamespace) -> None:
    problem = problems.make(20, 64, 64, 16, 3, dtype=torch.bfloat16)
    weight = torch.randn(64, 64).to(torch.bfloat16)
    problem.rows[4] = -1
    problem.b[3, 3] = float("inf")
    problem = on_device(problem)
    weight = weight.to(problem.x.device)
    arguments = problem.arguments[1:]
    got = cuda.linear(problem.x, weight, None, *arguments)
    nobody = torch.full_like(problem.rows, -1)
    base = cuda.linear(problem.x, weight, None, *arguments[:3], nobody, problem.scaling)
    assert torch.equal(got[4], base[4]) and base.isfinite().all()
    assert not got[problem.rows >= 0, 3].isfinite().any()


@pytest.mark.usefixtures("cuda_backend")
@pytest.mark.parametrize("tokens", [3, 20])
def test_nothing_is_written_without_need(problems: SimpleNamespace, tokens: int) -> None:
    problem = problems.make(tokens, 64, 64, 16, 3, dtype=torch.bfloat16)
    problem.rows[1] = -1
    problem.x[1] = float("nan")
    problem.y[1] = float("nan")
    problem.y[0] = -0.0
    problem.g[problem.rows[0].clamp_min(0)] = 0
    problem.rows[0] = problem.rows[0].clamp_min(0)
    problem = on_device(problem)
    got = added(problem)
    assert torch.equal(got[:2].view(torch.int16), problem.y[:2].view(torch.int16))


@pytest.mark.usefixtures("cuda_backend")
def test_no_leak_between_tokens(problems: SimpleNamespace) -> None:
    problem = problems.make(24, 64, 64, 16, 4, dtype=torch.bfloat16)
    problem.rows = torch.arange(24, dtype=torch.int32) % 4
    problem = on_device(problem)
    clean = added(problem)
    problem.g[1] = float("nan")
    problem.x[2] = float("inf")
    got = added(problem)
    touched = (problem.rows == 1) | (torch.arange(24, device=got.device) == 2)
    assert torch.equal(got[~touched], clean[~touched])
    assert not got[touched].isfinite().all(1).any()


@pytest.mark.usefixtures("cuda_backend")
def test_offsets_above_two_to_the_31(problems: SimpleNamespace) -> None:
    """Rows that far apart: only the pages in use take memory on a CPU."""
    for tokens in (2, 9):
        problem = problems.make(tokens, 32, 24, 8, 2, dtype=torch.float16)
        problem = on_device(problem)
        expected = added(problem)
        if problem.x.is_cuda and torch.cuda.mem_get_info()[0] < 3 * tokens << 30:
            pytest.skip(f"needs {3 * tokens} GiB of free GPU memory")
        stride = (1 << 31) // (tokens - 1) + 64
        far = torch.empty(tokens, stride, dtype=torch.float16, device=problem.x.device)
        far[:, :32], far[:, 32:56] = problem.x, problem.y
        y = far[:, 32:56]
        cuda.add(y, far[:, :32], *problem.arguments[1:])
        assert torch.equal(y, expected)


@pytest.fixture
def emulated(cuda_emulator: ModuleType, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The emulated GPU, whatever this machine has; the arguments stay on the CPU."""
    monkeypatch.setattr(cuda, "load", lambda: cuda_emulator)
    for cached in (cuda._processors, cuda._capacity):
        cached.cache_clear()
    return cuda_emulator


@pytest.mark.usefixtures("emulated")
def test_bits_do_not_depend_on_who_comes_first(problems: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any order of the threads, any depth of the pipeline, and as few blocks at once as one: none waits for one that has not begun."""
    weight = torch.randn(136, 520).to(torch.bfloat16)
    for tokens in (7, 20):
        problem = problems.make(tokens, 520, 136, 40, 3, dtype=torch.bfloat16)
        results, layers = [], []
        for seed, at_once in enumerate((1, 2, 4, 4)):
            monkeypatch.setenv("BDC_EMULATOR_SEED", str(seed))
            monkeypatch.setenv("BDC_EMULATOR_AT_ONCE", str(at_once))
            monkeypatch.setenv("BDC_EMULATOR_SHARED_BYTES", str((227 if seed % 2 else 99) << 10))
            cuda._capacity.cache_clear()
            results.append(added(problem))
            layers.append(cuda.linear(problem.x, weight, None, *problem.arguments[1:]))
        assert all(torch.equal(result, results[0]) for result in results)
        assert all(torch.equal(layer, layers[0]) for layer in layers)
        assert counters.all_zero()


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_shape(cuda_emulator: ModuleType, problems: SimpleNamespace, data: st.DataObject) -> None:
    """Random shapes, alignments and strides, against float64; the emulator refuses any access outside the arguments."""
    tokens = data.draw(st.integers(1, 64))
    multiple = data.draw(st.sampled_from((1, 8)))
    d_in, d_out, ranks = (multiple * data.draw(st.integers(1, 200 // multiple)) for _ in range(3))
    dtype = data.draw(st.sampled_from((torch.float32, torch.bfloat16, torch.float16)))
    problem = problems.make(tokens, d_in, d_out, ranks, data.draw(st.integers(1, 5)), dtype)
    padding = data.draw(st.sampled_from((0, 8, 3)))
    problem.x = torch.nn.functional.pad(problem.x, (0, padding))[:, :d_in]
    y = torch.nn.functional.pad(problem.y, (0, padding))[:, :d_out]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cuda, "load", lambda: cuda_emulator)
        cuda.add(y, *problem.arguments)
    problems.assert_within_bounds(y, problem)


@pytest.mark.usefixtures("emulated")
def test_refused_layers(problems: SimpleNamespace) -> None:
    for shape, dtype in [((9, 64, 64, 16, 1), torch.float32), ((9, 60, 64, 16, 1), torch.float16)]:
        problem = problems.make(*shape, dtype=dtype)
        weight = torch.zeros(shape[2], shape[1], dtype=dtype)
        with pytest.raises(InputError, match="one-launch layer takes up to 64 tokens in 16 bits"):
            cuda.linear(problem.x, weight, None, *problem.arguments[1:])


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize(("d_in", "ranks"), [(16, 0), (0, 8)])
def test_layers_of_nothing_are_refused(problems: SimpleNamespace, d_in: int, ranks: int) -> None:
    problem = problems.make(3, 16, 16, 8, 1, dtype=torch.float16)
    problem.x, problem.a = problem.x[:, :d_in], problem.a[:ranks, :d_in]
    problem.b, problem.g = problem.b[:, :ranks], problem.g[:, :ranks]
    with pytest.raises(InputError, match=rf"takes inputs, ranks and outputs, got \[{ranks}, {d_in}\]"):
        cuda.linear(problem.x, torch.zeros(16, d_in).half(), None, *problem.arguments[1:])


@pytest.mark.usefixtures("emulated")
def test_layers_and_autograd(problems: SimpleNamespace) -> None:
    problem = problems.make(3, 16, 16, 8, 1, dtype=torch.float16)
    version = problem.y._version
    cuda.linear(problem.x, None, None, *problem.arguments[1:], problem.y)
    assert problem.y._version == version + 1
    weight = torch.zeros(16, 16, dtype=torch.float16, requires_grad=True)
    with pytest.raises(InputError, match="the one-launch layer has no gradient"):
        cuda.linear(problem.x, weight, None, *problem.arguments[1:])
    with torch.no_grad():
        assert not cuda.linear(problem.x, weight, None, *problem.arguments[1:]).requires_grad


def test_more_tokens_go_to_torch(
    problems: SimpleNamespace, emulated: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = problems.make(65, 16, 16, 8)
    assert not cuda.supports(problem.y, problem.x)
    monkeypatch.setattr(emulated, "device_type", "cuda")
    assert not cuda.supports(problem.y[:4], problem.x[:4])


def test_extension_loads_without_a_gpu(problems: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    if not cuda.built():
        pytest.skip("bdc._lora_cuda is not built: it needs nvcc on the PATH when bdc is installed")
    import bdc._lora_cuda as extension

    assert extension.device_type == "cuda"
    if torch.cuda.is_available():
        assert extension.processors() == torch.cuda.get_device_properties(0).multi_processor_count
        return
    monkeypatch.setattr(cuda, "load", lambda: extension)
    cuda._processors.cache_clear()
    with pytest.raises(BdcError, match=r"did not start: asking for the CUDA device failed: .*CUDA"):
        problem = problems.make(2)
        cuda.add(problem.y, *problem.arguments)
    full = torch.OutOfMemoryError("CUDA out of memory")
    monkeypatch.setattr(cuda, "_processors", Mock(side_effect=full))
    with pytest.raises(torch.OutOfMemoryError):
        cuda.add(problem.y, *problem.arguments)
    monkeypatch.undo()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert cuda.load.__wrapped__() is None  # a driver that the extension's CUDA runtime cannot use
    monkeypatch.undo()
    monkeypatch.setenv("BDC_OPS_BACKEND", "cuda")
    with pytest.raises(InputError, match="BDC_OPS_BACKEND=cuda is not usable here: it needs a GPU"):
        rankwise_lora_(problem.y, *problem.arguments)
