"""The CPU kernels under AddressSanitizer and UndefinedBehaviorSanitizer, scratch memory included."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def stress(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("c++") is None:
        pytest.skip("needs a C++ compiler (apt install g++)")
    build = tmp_path_factory.mktemp("build")
    tools = Path(sys.executable).parent
    environment = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}"}
    pybind11 = subprocess.run(
        [sys.executable, "-m", "pybind11", "--cmakedir"], check=True, capture_output=True, text=True
    ).stdout.strip()
    flags = "-fsanitize=address,undefined -fno-sanitize-recover=all -O1 -g -fno-omit-frame-pointer"
    options = [f"-DCMAKE_CXX_FLAGS={flags}", f"-DPython_EXECUTABLE={sys.executable}", f"-Dpybind11_DIR={pybind11}"]
    for command in (
        ["cmake", "-S", str(ROOT), "-B", str(build), "-G", "Ninja", "-DCMAKE_BUILD_TYPE=None", *options],
        ["cmake", "--build", str(build), "--target", "lora_stress"],
    ):
        subprocess.run(command, check=True, env=environment, timeout=900)
    return build / "csrc" / "lora" / "lora_stress"


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_products_of_random_shapes(
    stress: Path, isa: str, run_with_isa: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    # Threads that may spin are given smaller products.
    done = run_with_isa(isa, ["env", "-u", "OMP_WAIT_POLICY", stress, "1500", "1"], timeout=900)
    assert (done.returncode, done.stdout) == (0, f"{isa}\n"), done.stdout + done.stderr[-4000:]
