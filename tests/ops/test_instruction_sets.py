"""Each instruction set that this machine has, forced in a process of its own, against numpy in float64."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import pytest

SCRIPT = """
import importlib.util, sys
import numpy as np

spec = importlib.util.spec_from_file_location("_lora", sys.argv[1])
lora = importlib.util.module_from_spec(spec)
spec.loader.exec_module(lora)
random = np.random.default_rng(0)
for tokens, d_in, d_out, rank in [(1, 1, 1, 1), (7, 37, 29, 13), (41, 130, 70, 33)]:
    y, x, a, b, g = (
        random.standard_normal(shape).astype(np.float32)
        for shape in [(tokens, d_out), (tokens, d_in), (rank, d_in), (d_out, rank), (3, rank)]
    )
    rows = random.integers(-1, 3, tokens, dtype=np.int32)
    wide = [v.astype(np.float64) for v in (x, a, b, g)]
    gate = wide[3][rows] * (rows >= 0)[:, None]
    expected = y + 0.5 * (wide[0] @ wide[1].T * gate) @ wide[2].T
    lora.add(0, [v.ctypes.data for v in (y, x, a, b, g)], rows.ctypes.data, (tokens, d_in, d_out, rank, 3), (d_out, d_in), 0.5)
    size = (np.abs(wide[0]) @ np.abs(wide[1]).T * np.abs(gate)) @ np.abs(wide[2]).T + np.abs(expected)
    assert (np.abs(y - expected) <= (d_in + rank + 2) * 2.0**-23 * size).all()
print(lora.isa())
"""


def _run(isa: str) -> subprocess.CompletedProcess[str]:
    spec = importlib.util.find_spec("bdc._lora")
    if spec is None or spec.origin is None:
        pytest.skip("bdc._lora is not built: cmake --build BUILD --target _lora, then copy it beside the package")
    environment = {**os.environ, "BDC_CPU_ISA": isa}
    command = [sys.executable, "-c", SCRIPT, spec.origin]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("isa", ["portable", "avx2", "avx512"])
def test_values(isa: str) -> None:
    done = _run(isa)
    if done.returncode and "on this machine" in done.stderr:
        assert isa != "portable"
        pytest.skip(f"this CPU has no {isa}: run on one that has it")
    assert done.stdout.strip() == isa, done.stderr


def test_unknown_name() -> None:
    done = _run("mmx")
    assert done.returncode and "BDC_CPU_ISA must be one of" in done.stderr and "got mmx" in done.stderr
