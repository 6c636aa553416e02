"""Progress of long work: a bar on a terminal, a line now and then in a log, nothing when quiet."""

from __future__ import annotations

import contextlib
import io
import sys
import time
from collections.abc import Iterator
from typing import Any, Literal

_LOG_EVERY = 20.0  # seconds between two lines of one task when stderr is not a terminal


class Task:
    """One piece of work with a known or unknown number of steps."""

    def __init__(self, owner: Progress, label: str, total: int | None) -> None:
        self._owner, self.label, self.total = owner, label, total
        self.done, self.note, self._said = 0, "", ""
        self.started = self._logged = time.monotonic()
        self._bar_id: Any = owner._bar.add_task(label, total=total, note="") if owner._bar is not None else None

    def advance(self, steps: int = 1, note: str | None = None) -> None:
        """Count ``steps`` more as done; ``note`` says what was found so far."""
        self.update(self.done + steps, note)

    def update(self, done: int, note: str | None = None) -> None:
        """Set the number of steps done."""
        self.done = done
        self.note = self.note if note is None else note
        if self._owner._bar is not None:
            self._owner._bar.update(self._bar_id, completed=done, note=self.note)
        elif self._owner.mode == "log" and time.monotonic() - self._logged >= _LOG_EVERY:
            self.log()

    def log(self) -> None:
        """Say how far it is, unless the last line said just that."""
        self._logged = time.monotonic()
        line = self._line()
        if line != self._said:
            self._said = line
            self._owner.say(line)

    def _line(self) -> str:
        steps = f"{self.done}/{self.total}" if self.total is not None else f"{self.done}"
        return f"  {self.label}: {steps}, {time.monotonic() - self.started:.0f} s{', ' if self.note else ''}{self.note}"


class Progress:
    """Where long work reports to.

    Args:
        mode: ``auto`` (a bar if stderr is a terminal, else ``log``), ``log`` (a line every 20 s) or ``quiet``.
    """

    def __init__(self, mode: Literal["auto", "log", "quiet"] = "auto") -> None:
        self.mode: str = ("bar" if sys.stderr.isatty() else "log") if mode == "auto" else mode
        self._bar: Any = None

    def say(self, text: str) -> None:
        """One line for a person, on stderr."""
        if self.mode == "quiet":
            return
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False)
        else:
            print(text, file=_Stderr(), flush=True)

    @contextlib.contextmanager
    def task(self, label: str, total: int | None = None) -> Iterator[Task]:
        """A task that lives as long as the ``with`` block."""
        outermost = self.mode == "bar" and self._bar is None
        if outermost:
            self._bar = _make_bar()
            self._bar.start()
        task = Task(self, label, total)
        try:
            yield task
            if self.mode == "log":
                task.log()
        finally:
            if outermost:
                self._bar.stop()
                self._bar = None


class _Stderr(io.TextIOBase):
    """stderr, or nowhere once writing fails: a log on a full disk, a terminal that is gone, are no reason to stop the work."""

    def __init__(self) -> None:
        self._stream = sys.stderr  # as it is now: rich puts itself in its place

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._stream.encoding

    def isatty(self) -> bool:
        return self._stream.isatty()

    def fileno(self) -> int:
        return self._stream.fileno()

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self._stream.flush()


def _make_bar() -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as RichProgress

    return RichProgress(
        TextColumn("  {task.description}"),
        BarColumn(bar_width=28),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}"),
        console=Console(file=_Stderr()),  # type: ignore[arg-type]
    )
