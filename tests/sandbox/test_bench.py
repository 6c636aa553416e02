"""`python -m benchmarks.sandbox` refuses what it cannot measure before it begins."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--repeats", "0"], "bdc: --repeats is 0; it must be at least 1"),
        (["--programs", "0"], "bdc: --programs is 0; it must be at least 1"),
        (["--programs", "-3"], "bdc: --programs is -3; it must be at least 1"),
        (["--json", "."], "bdc: . is a folder; name a file"),
        (["--json", "/proc/none/record.json"], "bdc: /proc/none cannot be made: No such file or directory"),
    ],
)
def test_bad_options_are_refused_in_a_sentence(words: list[str], said: str) -> None:
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", "benchmarks.sandbox", *words]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root)
    assert (done.returncode, done.stderr, done.stdout) == (2, said + "\n", "")
