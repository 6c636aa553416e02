"""Try a few escapes live and say which were held: `bdc sandbox check` and `bdc doctor`."""

from __future__ import annotations

import os
import secrets
import socket
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bdc.sandbox.level import LevelReport, detect_level
from bdc.sandbox.limits import Limits
from bdc.sandbox.pool import run
from bdc.testcase import CallTest

_ATTEMPTS = {
    "read a file of this user": "def f(a):\n    return open(a['secret']).read()",
    "write beside that file": "def f(a):\n    open(a['folder'] + '/written', 'w').write('x')\n    return 'written'",
    "connect to a local port": (
        "import socket\n"
        "def f(a):\n    return socket.create_connection(('127.0.0.1', a['port']), 1).close() or 'connected'"
    ),
    "start a process": "import os\ndef f(a):\n    return 'forked' if os.fork() else os._exit(0)",
    "signal this process": "import os\ndef f(a):\n    os.kill(a['pid'], 0)\n    return 'reached'",
    "read this process's memory map": "def f(a):\n    return open('/proc/%d/maps' % a['pid']).read(9)",
    "take more memory than allowed": "def f(a):\n    return len(bytearray(1 << 30)) and 'taken'",
    "print for ever": "def f(a):\n    while True:\n        print('x' * 1000)",
    "run for ever": "def f(a):\n    while True:\n        pass",
    "leave before the verdict": "import os\ndef f(a):\n    os._exit(0)",
}
_LIMITS = Limits(cpu_seconds=0.5, wall_seconds=5.0, memory_mb=256)


@dataclass(frozen=True, slots=True)
class Attempt:
    """One escape: what was tried, whether it was held, and what the program met or got."""

    name: str
    held: bool
    detail: str


@dataclass(frozen=True, slots=True)
class CheckReport:
    """The level on offer and the escapes tried at it."""

    level: LevelReport
    attempts: tuple[Attempt, ...]

    @property
    def held(self) -> bool:
        """Whether every escape was held."""
        return all(attempt.held for attempt in self.attempts)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        attempts = [asdict(attempt) for attempt in self.attempts]
        return {"level": self.level.level, "missing": self.level.missing, "held": self.held, "attempts": attempts}

    def __str__(self) -> str:
        """Lines for a terminal."""
        tried = (f"  {'held' if a.held else 'ESCAPED':8}{a.name} ({a.detail})" for a in self.attempts)
        return "\n".join([str(self.level), *tried])


def self_check(level: str = "auto") -> CheckReport:
    """Run each escape as a program under ``level``; an escape that returns a value or passes was not held.

    Raises:
        LevelRefusedError: the machine does not offer ``level``.
    """
    report = detect_level() if level == "auto" else LevelReport(level)
    with tempfile.TemporaryDirectory() as folder, socket.create_server(("127.0.0.1", 0)) as listener:
        secret, written = Path(folder, "secret"), Path(folder, "written")
        secret.write_text(secrets.token_hex())
        secret.chmod(0o644)
        Path(folder).chmod(0o777)
        prize = {"secret": str(secret), "folder": folder, "port": listener.getsockname()[1], "pid": os.getpid()}
        attempts = []
        for name, program in _ATTEMPTS.items():
            (result,) = run(program, [CallTest("f", (prize,), None)], _LIMITS, level=report.level).results
            held = result.status not in ("passed", "wrong_answer") and not written.exists()
            written.unlink(missing_ok=True)
            detail = result.message.rpartition("}): ")[2] if held else f"got {result.actual[:60]}"
            attempts.append(Attempt(name, held, detail[-90:]))
    return CheckReport(report, tuple(attempts))
