"""The script for a machine with a GPU, run dry: tiny sizes, Triton's interpreter, no build."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bdc.ops import backends

ROOT = Path(__file__).parents[2]


def test_dry_run(tmp_path: Path) -> None:
    if "triton" not in backends():
        pytest.skip("Triton is missing (pip install --no-deps triton), or bdc was installed without its kernels")
    command = [str(ROOT / "benchmarks/gpu.sh"), str(tmp_path / "out"), "--dry-run"]
    environment = os.environ | {"PYTHON": sys.executable}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    record = json.loads((tmp_path / "out/gpu.json").read_text(encoding="utf-8"))
    assert len(record["cells"]) == 4 and record["layers"].keys() == {"1", "20"}
    for cell in record["cells"]:
        forms = {"two GEMMs", "triton", "triton 1", "triton layer", "norm+triton", "n-concat", "k-concat"}
        assert forms <= cell["overhead"].keys()
        assert all(error < 2e-3 for error in cell["relative_error"].values())
        assert cell["left_out"]["cuda"].startswith("does not apply")
    assert done.stdout.rstrip().splitlines()[-1].split()[0] == "20"
    assert (tmp_path / "out/table.txt").read_text(encoding="utf-8") == done.stdout


def test_usage(tmp_path: Path) -> None:
    for arguments in ([], [str(tmp_path), "--quick"]):
        done = subprocess.run([str(ROOT / "benchmarks/gpu.sh"), *arguments], capture_output=True, text=True, timeout=60)
        assert done.returncode == 2 and "usage:" in done.stderr
