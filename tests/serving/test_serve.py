"""The command line of `bdc serve`, up to where it becomes vLLM's server."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from pathlib import Path

import pytest

from bdc.cli import main


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands that the process would have become; vLLM counts as installed."""
    commands: list[list[str]] = []

    def become(path: str, command: list[str]) -> None:
        commands.append(command)
        raise SystemExit(0)  # it does not return

    monkeypatch.setattr(os, "execv", become)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True)
    monkeypatch.delenv("BDC_SERVE", raising=False)
    return commands


def test_a_run_is_served(everywhere: Path, base: Path, tiny_encoder: Path, started: list[list[str]]) -> None:
    run = everywhere.parent
    for arguments in (
        [str(run), "--name", "mine", "--dtype", "float32", "--port", "81", "--max-model-len=9"],
        [str(everywhere), "--base-name", "plain", "--enc", "x"],
    ):
        with pytest.raises(SystemExit):
            main(["serve", *arguments])
    command = started[0]
    value = {name: command[command.index(name) + 1] for name in command if name.startswith("--") and "=" not in name}
    assert command[:4] == [sys.executable, "-P", "-m", "vllm.entrypoints.openai.api_server"]
    assert command[-3:] == ["--dtype", "float32", "--max-model-len=9"]
    assert command[command.index("--served-model-name") + 1 :][:2] == ["mine", "base"]
    assert (value["--model"], value["--host"], value["--port"]) == (str(base), "127.0.0.1", "81")
    assert json.loads(value["--additional-config"]) == {"bdc_solver": str(everywhere), "bdc_cache_salts": True}
    assert started[1][started[1].index("--served-model-name") + 1 :][:2] == [run.name, "plain"]
    assert started[1][-2:] == ["--enc", "x"]  # an option of vLLM's, not short for --encoder
    settings = json.loads(os.environ["BDC_SERVE"])
    assert settings == {"solver": str(everywhere), "encoder": str(tiny_encoder), "base": "plain"}


def test_what_cannot_be_served_is_named(
    everywhere: Path, tmp_path: Path, started: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments, says in (
        ([str(everywhere), "--name", "base"], "would both be called base"),
        ([str(tmp_path)], "is no run directory with a solver"),
        ([str(tmp_path / "none")], "is no run directory with a solver"),
        ([str(everywhere), "--base-model", str(tmp_path)], str(tmp_path)),
        ([str(everywhere), "--encoder", str(tmp_path)], str(tmp_path)),
    ):
        assert main(["serve", *arguments]) == 2
        captured = capsys.readouterr()
        assert says in captured.err and captured.err.count("\n") == 1 and captured.out == ""
    for port in ("0", "65536", "-1", "http", "8000.0", "\u0663", "9" * 90):
        with pytest.raises(SystemExit) as refused:
            main(["serve", str(everywhere), f"--port={port}"])
        assert refused.value.code == 2 and f"from 1 to 65535, got {port}" in capsys.readouterr().err
    assert started == []


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vllm is installed; nothing is missing")
def test_without_vllm_the_extra_is_named(everywhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", str(everywhere)]) == 2
    assert "pip install 'bdc[serve]'" in capsys.readouterr().err
