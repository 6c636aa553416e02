"""The same guarantees without root: the judge's and the escapes' tests again as uid 65534."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


@pytest.mark.skipif(os.geteuid() != 0, reason="these tests run as an ordinary user already; run them as root for both")
def test_as_an_ordinary_user() -> None:
    with tempfile.TemporaryDirectory() as home:
        Path(home).chmod(0o777)
        command = [
            *(sys.executable, HERE / "as_nobody.py", "-m", "pytest", "-q", "-p", "no:cacheprovider"),
            *("--basetemp", f"{home}/pytest", HERE / "test_judge.py", HERE / "test_escapes.py"),
        ]
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": home,
            "PYTHONPATH": str(ROOT),
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=300
        )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout or os.uname().machine != "x86_64"
