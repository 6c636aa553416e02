"""Running untrusted programs and judging them, with the oracle outside."""

from __future__ import annotations

from bdc.sandbox.level import LevelReport, detect_level
from bdc.sandbox.limits import Limits
from bdc.sandbox.pool import JudgePool, Sandbox, run
from bdc.sandbox.server import LevelRefusedError, SandboxError
from bdc.sandbox.verdict import TestResult, Verdict

__all__ = [
    "JudgePool",
    "LevelRefusedError",
    "LevelReport",
    "Limits",
    "Sandbox",
    "SandboxError",
    "TestResult",
    "Verdict",
    "detect_level",
    "run",
]
