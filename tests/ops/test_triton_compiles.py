"""The Triton kernels as machine code for sm_80 and sm_90, without a GPU: resources as recorded, nothing spills."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bdc.ops import backends

TABLE = Path(__file__).with_name("triton_resources.json")
# What a block may have on sm_80, where sm_90 has more.
MOST_SHARED = 163 * 1024


def compiled(*dtypes: str) -> dict[str, Any]:
    """Resources of every kernel, from a process of its own: there the kernels are not interpreted."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, str(Path(__file__).with_name("triton_machine_code.py")), *dtypes]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=550)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("dtype", ["bf16", *(pytest.param(name, marks=pytest.mark.slow) for name in ("fp16", "fp32"))])
def test_resources_are_as_recorded(dtype: str) -> None:
    """To record anew after a change: ``python tests/ops/test_triton_compiles.py``."""
    if "triton" not in backends():
        pytest.skip("Triton is missing (pip install --no-deps triton), or bdc was installed without its kernels")
    found, recorded = compiled(dtype), json.loads(TABLE.read_text(encoding="utf-8"))
    same_compiler = found["triton"] == recorded["triton"]
    expected = {name: usage for name, usage in recorded["kernels"].items() if f" {dtype} " in name}
    assert found["kernels"].keys() == expected.keys() and len(expected) >= 40
    for name, usage in found["kernels"].items():
        assert usage["local"] == 0 and usage["stack"] == 0, f"{name} spills: {usage}"
        assert usage["shared"] <= MOST_SHARED and usage["registers"] <= 255, f"{name}: {usage}"
        assert not same_compiler or usage == expected[name], f"{name}: {usage}, recorded {expected[name]}"


if __name__ == "__main__":
    TABLE.write_text(json.dumps(compiled("bf16", "fp16", "fp32"), indent=1) + "\n", encoding="utf-8")
