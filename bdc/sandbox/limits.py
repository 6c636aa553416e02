"""What one test may use."""

from __future__ import annotations

from dataclasses import dataclass, fields

from bdc.errors import InputError

_RANGES = {
    "cpu_seconds": (1e-3, 1e6),
    "wall_seconds": (1e-3, 1e6),
    "memory_mb": (1, 1 << 24),
    "output_kb": (1, 1 << 20),  # the host holds it
    "restarts": (0, 1e6),
}


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of one test of one program.

    Attributes:
        cpu_seconds: CPU time of the program; this decides timeouts, so that a loaded machine changes no verdict.
        wall_seconds: the second, generous limit, for programs that sleep or wait.
        memory_mb: address space over that of an empty interpreter, in MiB.
        output_kb: what it may print, in KiB (at least twice the length of the expected output).
        restarts: how many times a program that was killed in a test is begun anew for the tests that remain; after
            that they share the last verdict unrun.
    """

    cpu_seconds: float = 2.0
    wall_seconds: float = 10.0
    memory_mb: int = 512
    output_kb: int = 64
    restarts: int = 8

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            low, high = _RANGES[item.name]
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
                raise InputError(f"limit {item.name} is {value!r:.100}; it must be a number from {low:g} to {high:g}")
            if item.type == "int" and value != int(value):
                raise InputError(f"limit {item.name} is {value!r:.100}; it must be a whole number")
        if self.wall_seconds < self.cpu_seconds:
            raise InputError(
                f"limit wall_seconds ({self.wall_seconds}) is below cpu_seconds ({self.cpu_seconds}); raise the former"
            )
