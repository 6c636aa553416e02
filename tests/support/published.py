"""Problem sets as their authors published them, where they are at hand."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

_BESIDE = Path(__file__).resolve().parents[3] / "shared" / "data"


def published(name: str) -> Path:
    """``name``.jsonl.gz in the folder that BDC_TEST_DATA names (else ../shared/data); skips the test without it."""
    path = Path(os.environ.get("BDC_TEST_DATA") or _BESIDE) / f"{name}.jsonl.gz"
    if not path.is_file():
        pytest.skip(f"{name}.jsonl.gz is not at hand; put it in a folder and set BDC_TEST_DATA to that folder")
    return path
