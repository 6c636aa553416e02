"""What the machine is: processor, cores, memory, and which checkout this is, for decisions and for records."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path


def describe_machine() -> str:
    """Processor, usable cores, memory and system in one line, as far as the platform tells."""
    cores = usable_cores()
    parts = [processor(), f"{cores} core{'' if cores == 1 else 's'}"]
    if memory := memory_bytes("MemTotal"):
        parts.append(f"{memory / 2**30:.0f} GiB")
    return ", ".join([*parts, f"{platform.system()} {platform.machine()}"])


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processor() -> str:
    """The processor's name, else its architecture, with family and model where the system tells: virtual machines have
    one name for several generations."""
    name = cpu_field("model name") or platform.processor() or platform.machine()
    family, model = cpu_field("cpu family"), cpu_field("model")
    return f"{name} (family {family}, model {model})" if family and model else name


def cpu_field(name: str) -> str | None:
    """A field of /proc/cpuinfo, such as ``flags``, of the first processor."""
    return _field(Path("/proc/cpuinfo"), name)


def memory_bytes(name: str) -> int | None:
    """A field of /proc/meminfo, such as ``MemAvailable``."""
    text = _field(Path("/proc/meminfo"), name)
    return int(text.split()[0]) * 1024 if text else None


def memory_is_full(error: BaseException) -> bool:
    """Whether an error says so; torch has a class of its own for a GPU's, and none for the machine's."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def commit() -> str | None:
    """The commit of the checkout that this package lies in, with a plus where files have changed since."""
    folder = Path(__file__).parent
    try:
        # It may be installed below a checkout of something else.
        ours = subprocess.run(
            ["git", "ls-files", "--error-unmatch", Path(__file__).name], cwd=folder, capture_output=True
        )
        if ours.returncode:
            return None
        done = subprocess.run(["git", "describe", "--always", "--dirty=+"], cwd=folder, capture_output=True, text=True)
    except OSError:  # no git
        return None
    return done.stdout.strip() or None


def _field(path: Path, name: str) -> str | None:
    """The first value of ``name`` in a file of ``name : value`` lines."""
    try:
        with path.open(encoding="utf-8", errors="replace") as lines:
            parts = (line.partition(":") for line in lines)
            return next((value.strip() for key, _, value in parts if key.strip() == name), None)
    except OSError:
        return None
