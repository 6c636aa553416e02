"""Which level of isolation this machine offers."""

from __future__ import annotations

import functools
import warnings
from dataclasses import dataclass

from bdc.errors import InputError
from bdc.sandbox.server import ForkServer, LevelRefusedError, SandboxError

LEVELS = {
    "L3": "namespaces, Landlock and seccomp",
    "L2": "Landlock and seccomp",
    "L1": "resource limits only: programs can read and write this user's files",
    "L0": "no isolation",
}


@dataclass(frozen=True, slots=True)
class LevelReport:
    """The strongest level on offer, and why each stronger one is missing (level, reason)."""

    level: str
    missing: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        """One line per fact."""
        lines = [f"{self.level}: {LEVELS[self.level]}"]
        return "\n".join(lines + [f"{level} is missing: {reason}" for level, reason in self.missing])


@functools.cache
def detect_level(python: str | None = None) -> LevelReport:
    """Try the levels from the strongest down, each with a live fork server; L0 is never chosen by itself."""
    missing: list[tuple[str, str]] = []
    for level in ("L3", "L2", "L1"):
        try:
            ForkServer(level, python).close()
        except LevelRefusedError as error:
            missing.append((level, str(error)))
        else:
            return LevelReport(level, tuple(missing))
    raise SandboxError(f"no isolation level works here: {missing[-1][1]}; only level 'L0' can be asked for")


def resolve_level(level: str, python: str | None = None) -> str:
    """Turn "auto" into the strongest level on offer (with a warning below L3); check any other name.

    Raises:
        InputError: unknown level.
    """
    if level == "auto":
        report = detect_level(python)
        if report.level != "L3":
            warnings.warn(f"untrusted programs run at a reduced isolation level, {report}", stacklevel=3)
        return report.level
    if level not in LEVELS:
        raise InputError(f"isolation level {level!r} is unknown; it must be auto, {', '.join(LEVELS)}")
    return level
