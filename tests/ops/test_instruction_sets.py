"""Each instruction set that this machine has, forced in a process of its own, against numpy in float64."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable

import pytest

LOAD = """
import importlib.util, sys

spec = importlib.util.spec_from_file_location("_lora", sys.argv[1])
lora = importlib.util.module_from_spec(spec)
spec.loader.exec_module(lora)
"""

SCRIPT = """
import itertools
import numpy as np

random = np.random.default_rng(0)
def bfloat16(values):
    bits = values.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)

# Of each storage: its number, how to round to it, how to read it, and its unit round-off.
STORAGES = [
    (0, lambda v: v.astype(np.float32), lambda v: v, 2.0**-24),
    (1, bfloat16, lambda v: (v.astype(np.uint32) << 16).view(np.float32), 2.0**-8),
    (2, lambda v: v.astype(np.float16), lambda v: v, 2.0**-11),
]
SHAPES = [(1, 1, 1, 1), (7, 37, 29, 13), (41, 130, 70, 33), (3, 64, 128, 24), (70, 96, 64, 32), (9, 40, 90, 21)]
SHAPES += [(2, 70, 37, 47), (4, 50, 41, 515), (3, 8301, 5, 7), (2, 30, 45, 20), (20, 5003, 40, 17), (8, 4100, 70, 12)]
SHAPES += [(tokens, 90, 35 + tokens, 40 + tokens) for tokens in range(5, 60)]  # every tile of tokens
SHAPES += [(tokens, 60 + tokens, 35, tokens) for tokens in range(90, 114)]  # and with A turned
SHAPES += [(tokens, 50, 30 + tokens, 64 + tokens) for tokens in range(2, 24)]  # and tokens abreast
SHAPES += [(7, 2048, 20, 9), (10, 6144, 33, 70)]  # rows of x that lie pages apart
SHAPES += [(1, 1029, 20, 37), (2, 1700, 33, 20), (2, 9001, 40, 17), (1, 19000, 16, 5)]  # and A row by row
SHAPES += [(300, 2077, 33, 24), (130, 1100, 70, 40), (110, 1030, 37, 290)]
for storage, narrow, widen, unit in STORAGES:
    for (tokens, d_in, d_out, rank), int8, spread in itertools.product(SHAPES, (False, True), (0, 12)):
        # Spread, many are subnormal in float16.
        y, x, a, b = (
            narrow(random.standard_normal(shape) * 2.0 ** random.integers(-2 * spread, spread // 4 + 1, shape))
            for shape in [(tokens, d_out), (tokens, d_in), (rank, d_in), (d_out, rank)]
        )
        g = random.standard_normal((3, rank)).astype(np.float32)
        if int8:
            a, b = (random.integers(-127, 128, v.shape, dtype=np.int8) for v in (a, b))
            g *= 1e-4
        rows = random.integers(-1, 3, tokens, dtype=np.int32)
        before, x64 = (widen(v).astype(np.float64) for v in (y, x))
        a64, b64 = ((v if int8 else widen(v)).astype(np.float64) for v in (a, b))
        gate = g.astype(np.float64)[rows] * (rows >= 0)[:, None]
        expected = before + 0.5 * (x64 @ a64.T * gate) @ b64.T
        addresses = [v.ctypes.data for v in (y, x, a, b, g)]
        lora.add(storage, int8, addresses, rows.ctypes.data, (tokens, d_in, d_out, rank, 3), (d_out, d_in), 0.5)
        gated = 0.5 * np.abs(x64 @ a64.T * gate) @ np.abs(b64).T
        summed = 0.5 * (np.abs(x64) @ np.abs(a64).T * np.abs(gate)) @ np.abs(b64).T
        bound = unit * (np.abs(expected) + gated) + 2.0**-23 * (d_in * summed + rank * gated)
        bound += 2.0**-25 if storage == 2 else 0  # half of its least number
        assert (np.abs(widen(y) - expected) <= bound).all(), (storage, tokens, int8)
        assert (np.isnan(expected) == np.isnan(widen(y))).all()
    # Rounding of the special values: infinities stay, a NaN stays one, what is too large for the storage overflows.
    specials = [np.inf, -np.inf, np.nan, 6e-8, -3e-6, 65519.0, 70000.0, 1.0009765625]
    y, one = narrow(np.array([specials])), narrow(np.ones((1, 1)))
    zero = narrow(np.zeros((8, 1)))
    kept = y.copy()
    gate = np.ones((1, 1), dtype=np.float32)
    lora.add(storage, False, [v.ctypes.data for v in (y, one, one, zero, gate)], 0, (1, 1, 8, 1, 1), (8, 1), 1.0)
    got, wanted = widen(y).astype(np.float64), widen(kept).astype(np.float64)
    assert ((got == wanted) | (np.isnan(got) & np.isnan(wanted))).all(), (storage, got, wanted)
print(lora.isa())
"""

# Every array ends where the memory does: who reads or writes beyond it dies.
BOUNDS = """
import ctypes, itertools, mmap
import numpy as np

libc = ctypes.CDLL(None, use_errno=True)
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
maps = []
def at_the_end(values):
    pages = -(-values.nbytes // mmap.PAGESIZE)
    maps.append(mmap.mmap(-1, (pages + 1) * mmap.PAGESIZE))
    memory = np.frombuffer(maps[-1], np.uint8)
    end = pages * mmap.PAGESIZE
    assert libc.mprotect(memory.ctypes.data + end, mmap.PAGESIZE, 0) == 0
    array = memory[end - values.nbytes : end].view(values.dtype).reshape(values.shape)
    array[...] = values
    return array
SHAPES = [(17, 33, 31, 20), (40, 64, 48, 32), (5, 2049, 17, 7), (64, 96, 33, 129), (1, 65, 19, 40), (2, 40, 16, 300)]
SHAPES += [(99, 65, 21, 61), (80, 1031, 40, 96), (8, 4096, 33, 133), (7, 2048, 15, 67), (16, 40, 47, 31), (2, 2051, 33, 21)]
SHAPES += [(1, 14337, 20, 18)]
for storage, (tokens, d_in, d_out, rank), int8 in itertools.product((0, 1, 2), SHAPES, (False, True)):
    size = np.uint32 if storage == 0 else np.uint16
    sizes = [(tokens, d_out), (tokens, d_in), (rank, d_in), (d_out, rank)]
    y, x, a, b = (np.zeros(shape, np.int8 if int8 and i > 1 else size) for i, shape in enumerate(sizes))
    g = np.ones((tokens, rank), np.float32)
    rows = np.arange(tokens, dtype=np.int32)
    y, x, a, b, g, rows = (at_the_end(v) for v in (y, x, a, b, g, rows))
    addresses = [v.ctypes.data for v in (y, x, a, b, g)]
    lora.add(storage, int8, addresses, rows.ctypes.data, (tokens, d_in, d_out, rank, tokens), (d_out, d_in), 1.0)
print(lora.isa())
"""


def _command(script: str = SCRIPT) -> list[str]:
    spec = importlib.util.find_spec("bdc._lora")
    if spec is None or spec.origin is None:
        pytest.skip("bdc._lora is not built: cmake --build BUILD --target _lora, then copy it beside the package")
    return [sys.executable, "-c", LOAD + script, spec.origin]


@pytest.mark.parametrize("script", [SCRIPT, BOUNDS], ids=["values", "bounds"])
def test_script(isa: str, script: str, run_with_isa: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    done = run_with_isa(isa, _command(script), timeout=60)
    assert done.stdout.strip() == isa, done.stderr


def test_unknown_name() -> None:
    done = subprocess.run(
        _command(), env={**os.environ, "BDC_CPU_ISA": "mmx"}, capture_output=True, text=True, timeout=60
    )
    assert done.returncode and "BDC_CPU_ISA must be one of" in done.stderr and "got mmx" in done.stderr


def test_an_unknown_instruction_set_is_one_sentence() -> None:
    environment = {**os.environ, "BDC_CPU_ISA": "nope"}
    command = [sys.executable, "-c", "from bdc.ops import backends; backends()"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100)
    last = done.stderr.strip().rpartition("\n")[2]
    assert "InputError: BDC_CPU_ISA must be one of" in last and last.endswith("on this machine, got nope")
