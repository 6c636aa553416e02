"""The script for a machine with a GPU, run dry: tiny sizes, Triton's interpreter, no build."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

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
        forms |= {"bdc.ops layer", "bdc.ops added"}
        assert forms <= cell["overhead"].keys()
        assert all(error < 2e-3 for error in cell["relative_error"].values())
        assert cell["left_out"]["cuda"].startswith("does not apply")
    assert done.stdout.rstrip().splitlines()[-1].split()[0] == "20"
    assert (tmp_path / "out/table.txt").read_text(encoding="utf-8") == done.stdout


@pytest.mark.parametrize("tokens", [1, 20, 4096])
def test_errors_are_seen_from_the_first_to_the_last_token(tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    forms, op = importlib.import_module("gpu_forms"), importlib.import_module("gpu_op")
    case = forms.Case.random(tokens, 16, (8, 8), 4, torch.float32, torch.device("cpu"))
    layer = forms.two_gemms(case)
    assert op.error_of(layer, case) < 1e-5

    def wrong() -> torch.Tensor:
        y = layer()
        y[-1] += 10
        return y

    assert op.error_of(wrong, case) > 1e-2


def test_handing_over_a_graph_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The GPU is kept busy meanwhile: few input sets would share that time, and forms of more launches pay more of it."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    clock = importlib.import_module("gpu_clock")
    done: list[str] = []
    timer = object.__new__(clock.Timer)
    timer.launches = [None, None]
    timer.graph = SimpleNamespace(replay=lambda: done.append("replay"))
    timer.start = SimpleNamespace(record=lambda: done.append("start"), elapsed_time=lambda end: 0.5)
    timer.end = SimpleNamespace(record=lambda: done.append("end"), synchronize=lambda: done.append("wait"))
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: done.append("busy"))
    assert timer.microseconds() == 250
    assert done == ["busy", "start", "replay", "end", "wait"]


def test_usage(tmp_path: Path) -> None:
    for arguments in ([], [str(tmp_path), "--quick"]):
        done = subprocess.run([str(ROOT / "benchmarks/gpu.sh"), *arguments], capture_output=True, text=True, timeout=60)
        assert done.returncode == 2 and "usage:" in done.stderr
