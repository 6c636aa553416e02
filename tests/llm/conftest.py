"""One loaded SmolLM2 behind `Local`, for every test of this folder."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from bdc.llm import Local

sys.path.insert(0, str(Path(__file__).parent))  # server.py: tests are not a package


@pytest.fixture(scope="session")
def local(smollm2_folder: Path) -> Local:
    """SmolLM2 in float32 as an `LLM`."""
    return Local(smollm2_folder, dtype="float32", batch_size=3)
