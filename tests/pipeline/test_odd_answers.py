"""A run in which one agent answers nothing but oddities: it goes on, stores each answer once, and ends in a report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from chat_server import ChatServer

from bdc.cli import main
from bdc.runs import Run

ODD: list[Any] = [
    "1. Add the \ud800 numbers \0 together. (8)",
    "a" + " " * 50_000 + "b",
    "[" * 50_000 + "]" * 50_000,
    '[{"thought": "Add \\ud800 the numbers.", "score": NaN}, {"thought": "Count up to it.", "score": 1e999}]',
    "```python\n\0def f(x): return x\n```",
    "```python\n" + "(" * 3000 + ")" * 3000 + "\n```",
    "```python\n" + "x = 1\n" * 50_000 + "```",
    "```python\n# \udcff\ndef f(x):\n    return '\\ud800' * x\n```",
    "```python\nimport sys\ndef f(x):\n    sys.stdout.write('\\x00\\x1b[2J')\n    return float('nan')\n```",
    [{"type": "text", "text": "```python\ndef f(x): return "}, {"type": "text", "text": "10 ** 5000\n```"}],
    "<script>alert(1)</script> ]]> </textarea> Use the numbers. (7)",
    {"text": 3},
    None,
]


def odd(body: dict[str, Any]) -> dict[str, Any]:
    """One oddity after the other, as the request's seed has it."""
    usage = [None, [], "many", {"prompt_tokens": None}, {"completion_tokens": -1}][body["seed"] % 5]
    return {"choices": [{"message": {"content": ODD[body["seed"] % len(ODD)]}, "finish_reason": None}], "usage": usage}


def test_odd_answers_are_paid_once_and_stop_nothing(
    config: Path, tmp_path: Path, server: ChatServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    textbook = server._answer
    monkeypatch.setattr(server, "_answer", lambda body: odd(body) if body["model"] == "right" else textbook(body))
    directory = tmp_path / "run"
    assert main(["run", str(config), "--dir", str(directory), "--quiet"]) == 0
    asked = len(server.bodies)
    with Run(directory) as run:
        ((stored,),) = run.db.execute("SELECT count(*) FROM calls WHERE agent != 'solver'").fetchall()
        assert stored == asked
        with run.transaction() as db:
            db.execute("DELETE FROM stages WHERE name = 'boost'")
    assert main(["boost", str(directory), "--quiet"]) == 0
    assert len(server.bodies) == asked
    assert "<script>alert(1)" not in (directory / "report.html").read_text(encoding="utf-8")
