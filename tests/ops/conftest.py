"""Random problems, the float64 truth, and the element-wise error that a backend may have."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sysconfig
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import Tensor

from bdc.ops import backends, reference

# Unit round-off: half the distance from 1 to the next number.
UNIT = {torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}


@dataclass
class Problem:
    y: Tensor
    x: Tensor
    a: Tensor
    b: Tensor
    g: Tensor
    rows: Tensor | None
    scaling: float

    @property
    def arguments(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None, float]:
        return self.x, self.a, self.b, self.g, self.rows, self.scaling


def make(
    tokens: int = 7,
    d_in: int = 37,
    d_out: int = 29,
    rank: int = 13,
    requests: int = 4,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> Problem:
    """A problem on torch's default device, the same numbers on each."""
    generator = torch.Generator("cpu").manual_seed(seed)
    device = torch.get_default_device()

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device="cpu").to(dtype).to(device)

    rows = torch.randint(-1, requests, (tokens,), generator=generator, dtype=torch.int32, device="cpu").to(device)
    g = torch.randn(requests, rank, generator=generator, device="cpu").to(device)
    return Problem(random(tokens, d_out), random(tokens, d_in), random(rank, d_in), random(d_out, rank), g, rows, 0.7)


def truth(problem: Problem) -> Tensor:
    """y after the product was added, in float64 on the inputs as they were rounded."""
    x, a, b, g, rows, scaling = problem.arguments
    delta = reference.rankwise_lora(x.double(), a.double(), b.double(), g.double(), rows, scaling)
    return problem.y.double() + delta


def assert_within_bounds(got: Tensor, problem: Problem, *, product_is_rounded: bool = False) -> None:
    """Rounding of the output and of h, and sums in float32 over d_in and over R, each with its own condition.

    ``product_is_rounded``: also of the product before it is added to y.
    """
    x, a, b, g, rows, s = problem.arguments
    x, a, b, g = x.double(), a.double(), b.double(), g.double()
    place = torch.zeros(len(x), dtype=torch.int64) if rows is None else rows.long().clamp_min(0)
    if rows is None and len(g) > 1:
        place = torch.arange(len(x))
    gated = (x @ a.T * g[place]).abs() @ b.abs().T
    summed = (x.abs() @ a.abs().T * g[place].abs()) @ b.abs().T
    expected, unit = truth(problem), UNIT[got.dtype]
    bound = unit * expected.abs() + s * (unit * gated + 2.0**-23 * (a.shape[1] * summed + a.shape[0] * gated))
    if product_is_rounded:
        bound += unit * (expected - problem.y.double()).abs()
    excess = ((got.double() - expected).abs() - bound).max() if len(x) else torch.tensor(0.0)
    assert bool(excess <= 0), f"the error exceeds its bound by {float(excess)}"


def layer_bound(problem: Problem, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """The layer in float64, and its error bound: the base's sum over d_in, the product's terms, rounding of the output."""
    x, a, b, g, rows, s = problem.arguments
    x, a, b, g, w = (tensor.double() for tensor in (x, a, b, g, weight))
    unit = UNIT[problem.x.dtype]
    assert rows is not None
    gate = torch.where((rows >= 0)[:, None], g[rows.long().clamp_min(0)], 0)
    gated = s * (x @ a.T) * gate
    expected = x @ w.T + bias.double() + gated @ b.T
    summed = s * (x.abs() @ a.abs().T * gate.abs()) @ b.abs().T
    base = x.abs() @ w.abs().T + bias.double().abs()
    after = gated.abs() @ b.abs().T
    steps = 2.0**-23
    return expected, unit * (expected.abs() + after) + steps * (
        len(a) * after + x.shape[1] * summed + (x.shape[1] + len(a)) * base
    )


@pytest.fixture
def problems() -> SimpleNamespace:
    return SimpleNamespace(
        UNIT=UNIT, make=make, truth=truth, assert_within_bounds=assert_within_bounds, layer_bound=layer_bound
    )


WITHOUT = {
    "cpp": "bdc._lora is not built: cmake --build BUILD --target _lora, then copy it beside the package",
    "triton": "Triton is missing (pip install --no-deps triton), or bdc was installed without its kernels",
}


@pytest.fixture
def cpp(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products run in the extension."""
    if "cpp" not in backends():
        pytest.skip(WITHOUT["cpp"])
    monkeypatch.setenv("BDC_OPS_BACKEND", "cpp")


@pytest.fixture(params=["portable", "avx2", "avx512", "avx512_bf16", "amx_bf16"])
def isa(request: pytest.FixtureRequest) -> str:
    """Each instruction set that there is a CPU kernel for."""
    name: str = request.param
    return name


def _run_with_isa(isa: str, command: Sequence[str | Path], timeout: float) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "BDC_CPU_ISA": isa, "OMP_WAIT_POLICY": "passive"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout)
    if done.returncode and "on this machine" in done.stderr:
        assert isa != "portable"
        pytest.skip(f"this CPU has no {isa}: run on one that has it")
    return done


@pytest.fixture
def run_with_isa() -> Callable[..., subprocess.CompletedProcess[str]]:
    """``run_with_isa(isa, command, timeout)`` with that instruction set forced; skips where the CPU lacks it."""
    return _run_with_isa


def _compile_emulator(compiler: str, sources: Path, files: list[Path], library: Path, pybind11_include: str) -> None:
    for old in library.parent.glob("*.*"):
        old.unlink()
    includes = (sources / "cuda", sysconfig.get_paths()["include"], pybind11_include)
    options = [
        "-std=c++20",
        "-O1",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-Wno-unknown-pragmas",
        "-fPIC",
        "-fvisibility=hidden",
    ]
    names = ["-DBDC_MODULE=_lora_emulated", '-DBDC_DEVICE_TYPE="cpu"', *(f"-I{path}" for path in includes)]
    objects = [library.with_suffix(f".{i}.o") for i in range(len(files))]
    commands = [
        subprocess.Popen([compiler, *options, *names, "-c", path, "-o", built])
        for path, built in zip(files, objects, strict=True)
    ]
    failed = [command.wait(timeout=300) for command in commands]
    assert not any(failed)
    subprocess.run([compiler, "-shared", *objects, "-o", library], check=True, timeout=60)


@pytest.fixture(scope="session")
def cuda_emulator(request: pytest.FixtureRequest) -> ModuleType:
    """The CUDA kernels and their binding, compiled for the CPU on the emulated GPU of csrc/cuda/emulator.hpp."""
    compiler = shutil.which("c++")
    if compiler is None or importlib.util.find_spec("pybind11") is None:
        pytest.skip("the emulated GPU is compiled here: install a C++ compiler and pip install pybind11")
    import pybind11

    sources = Path(__file__).parents[2] / "csrc"
    files = [sources / "cuda/emulated/launch.cpp", sources / "python/lora_cuda.cpp"]
    texts = [path.read_bytes() for path in sorted((sources / "cuda").rglob("*.*")) + files]
    digest = hashlib.sha256(b"".join(texts) + sysconfig.get_config_var("EXT_SUFFIX").encode()).hexdigest()[:16]
    folder = request.config.cache.mkdir("cuda_emulator")
    library = folder / f"{digest}.so"
    with (folder / "lock").open("w") as lock:  # one process compiles for all that run tests beside it
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not library.exists():
            _compile_emulator(compiler, sources, files, library, pybind11.get_include())
    spec = importlib.util.spec_from_file_location("_lora_emulated", library)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def cuda_backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The CUDA backend on a GPU, or on the emulated one."""
    if "cuda" not in backends():
        emulator = request.getfixturevalue("cuda_emulator")
        monkeypatch.setattr("bdc.ops.cuda.load", lambda: emulator)
    monkeypatch.setenv("BDC_OPS_BACKEND", "cuda")


@pytest.fixture(params=["torch", "cpp", "triton", "cuda", *(["torch-gpu"] if torch.cuda.is_available() else [])])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Every test that asks for it runs once on each backend, on a GPU where the backend has one."""
    name = request.param.removesuffix("-gpu")
    if name == "cuda":
        request.getfixturevalue("cuda_backend")
    elif name not in backends():
        pytest.skip(WITHOUT[name])
    monkeypatch.setenv("BDC_OPS_BACKEND", name)
    on_gpu = torch.cuda.is_available() and request.param not in ("torch", "cpp")
    with torch.device("cuda") if on_gpu else contextlib.nullcontext():
        yield name
