"""Read the artefacts of a run directory that are files; a file that is not there gives None."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from bdc.errors import InputError
from bdc.runs import Run


def read_json(path: Path, stage: str, required: tuple[str, ...]) -> dict[str, Any] | None:
    """A JSON object with the fields ``required``.

    Raises:
        InputError: the file is there and is not that.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}); repeat `bdc {stage} {path.parent}`") from error
    missing = [field for field in required if not isinstance(data, dict) or field not in data]
    if missing:
        raise InputError(f"{path} has no field {missing[0]!r}; repeat `bdc {stage}` to write it again")
    return dict(data)


def read_traces(run: Run) -> list[dict[str, Any]] | None:
    """Rows of traces.parquet without the long texts.

    Raises:
        InputError: the file is there and cannot be read.
    """
    if not run.traces_path.is_file():
        return None
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = ["id", "problem_id", "node", "kind", "agent", "value", "split"]
    try:
        return list(pq.read_table(run.traces_path, columns=columns).to_pylist())
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{run.traces_path} cannot be read ({error}); repeat `bdc boost {run.path}`") from error


def finite(value: Any) -> Any:
    """The same JSON value with NaN and infinities, which JSON cannot hold, as null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return value
