"""Runs that end badly: killed in every stage, or on a full disk; the same command then reaches the same result."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from chat_server import ChatServer

from bdc.runs import STAGES, Run

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}


def command(config: Path, directory: Path) -> list[str]:
    return [sys.executable, "-m", "bdc.cli", "run", str(config), "--dir", str(directory)]


def kill_within(stage: str, config: Path, directory: Path, delay: float) -> bool:
    """Start the pipeline and kill it ``delay`` seconds after ``stage`` began; False if the pipeline ended by itself."""
    with subprocess.Popen(
        command(config, directory),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
        start_new_session=True,
    ) as process:
        assert process.stderr is not None
        any(line.startswith(f"{stage}: started") for line in process.stderr)  # reads up to that line
        time.sleep(delay)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        return process.wait() == -signal.SIGKILL


def result(directory: Path) -> dict[str, Any]:
    """Everything a run found, without times and without its own place."""
    evaluation = json.loads((directory / "evaluation.json").read_text(encoding="utf-8"))
    systems = [
        {key: system[key] for key in ("name", "loss", "pass_rate", "ac", "per_problem")}
        for system in evaluation["systems"]
    ]
    with Run(directory) as run:
        nodes = list(run.rows("SELECT * FROM nodes ORDER BY problem_id, node"))
        calls = list(run.rows("SELECT key, text FROM calls ORDER BY key"))
    weights = {str(path.relative_to(directory)): path.read_bytes() for path in sorted(directory.rglob("*.safetensors"))}
    assert len(weights) >= 5  # two experts, the single LoRA, the solver's experts and hypernetwork
    return {
        "systems": systems,
        "nodes": nodes,
        "calls": calls,
        "weights": weights,
        "traces": (directory / "traces.parquet").read_bytes(),
    }


def finish(config: Path, directory: Path) -> dict[str, Any]:
    done = subprocess.run(command(config, directory), env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return result(directory)


def test_killed_in_every_stage_it_ends_with_the_same_result(config: Path, tmp_path: Path, server: ChatServer) -> None:
    expected = finish(config, tmp_path / "whole")
    server.bodies.clear()
    server.faults = [0.02] * 10_000  # slow answers, so that the first kill meets a search at work
    killed = {
        stage: kill_within(stage, config, tmp_path / "killed", delay)
        for stage, delay in zip(STAGES, (0.6, 1.5, 0.7, 0.05, 0.0), strict=True)
    }
    found = finish(config, tmp_path / "killed")
    # So small a run may evaluate and report before the signal arrives.
    assert all(killed[stage] for stage in STAGES[:3]), f"killed while at work: {killed}"
    assert found == expected
    # Stored answers are never asked for again; at most those in flight at the kill are.
    asked = Counter(json.dumps(body, sort_keys=True) for body in server.bodies)
    in_flight = 2 * 4 * 2  # agents, calls of each, and stages that ask: boost, and evaluate for its search
    assert sum(asked.values()) - len(asked) <= in_flight


def test_a_cluster_that_judges_changes_no_result(config: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'bdc[ray]'")
    expected = finish(config, tmp_path / "here")
    environment = ENVIRONMENT | {"RAY_USAGE_STATS_ENABLED": "0"}
    there = [*command(config, tmp_path / "there"), "--ray", "local"]
    done = subprocess.run(there, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert result(tmp_path / "there") == expected


@pytest.mark.skipif(
    shutil.which("unshare") is None
    or subprocess.run(["unshare", "-Urm", "true"], capture_output=True, check=False).returncode != 0,
    reason="needs `unshare -Urm` (util-linux, unprivileged user namespaces) for a small file system of its own",
)
def test_a_full_disk_is_said_in_one_line_and_loses_nothing(config: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    # No second user namespace may be made in one that has mounts of its own; the textbook's programs are harmless.
    text = config.read_text(encoding="utf-8")
    config.write_text(text.replace("[sandbox]", '[sandbox]\nlevel = "L0"'), encoding="utf-8")
    run = " ".join(command(config, disk / "run"))
    script = f"""
        set -u
        mount -t tmpfs -o size=300k tmpfs {disk} || exit 90
        {run} --quiet 2> {tmp_path}/first.err; echo $? > {tmp_path}/first.code
        mount -o remount,size=100m {disk} || exit 91
        {run} --quiet 2> {tmp_path}/second.err || exit 92
        cp {disk}/run/evaluation.json {tmp_path}/evaluation.json
    """
    done = subprocess.run(["unshare", "-Urm", "sh", "-c", script], env=ENVIRONMENT, capture_output=True, timeout=300)
    first = (tmp_path / "first.err").read_text(encoding="utf-8")
    assert done.returncode == 0, (done, first, (tmp_path / "second.err").read_text(encoding="utf-8"))
    assert (tmp_path / "first.code").read_text().strip() == "2"
    assert first.startswith("bdc: ") and first.count("\n") == 1 and ("disk" in first or "space" in first)
    assert json.loads((tmp_path / "evaluation.json").read_text(encoding="utf-8"))["systems"]
