"""One loaded SmolLM2 behind `Local`, for every test of this folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from bdc.llm import Local


@pytest.fixture(scope="session")
def local(smollm2_folder: Path) -> Local:
    """SmolLM2 in float32 as an `LLM`."""
    return Local(smollm2_folder, dtype="float32", batch_size=3)
