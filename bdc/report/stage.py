"""The report stage: report.html of a run directory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from bdc.artefacts import atomic_write
from bdc.report.page import render
from bdc.runs import Run

if TYPE_CHECKING:
    from bdc.progress import Progress


def run(run: Run, progress: Progress, models: Sequence[str] = ()) -> dict[str, Any]:
    """Write report.html whole or not at all; ``models`` are those of all stages.

    Returns:
        ``{"path": str, "bytes": int}``.

    Raises:
        InputError: an artefact of the run cannot be read, or the file cannot be written.
    """
    with progress.task("report", total=1) as task:
        content = render(run, models).encode()
        atomic_write(run.report_path, content)
        task.advance(1, note=str(run.report_path))
    return {"path": str(run.report_path), "bytes": len(content)}
