"""What the kernels of ``bdc.ops`` have in common: their extensions, and the layout that they read."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

import torch
from torch import Tensor

from bdc.errors import InputError

DTYPE_CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
"""The number of a dtype in calls of the extensions."""

HALVES = (torch.bfloat16, torch.float16)
"""Of 16 bits."""


def built(name: str) -> bool:
    """Whether the extension ``bdc.<name>`` is installed."""
    return importlib.util.find_spec(f"bdc.{name}") is not None


def load_extension(name: str) -> Any:
    """The module ``bdc.<name>``, which is built.

    Raises:
        InputError: it does not load.
    """
    try:
        return importlib.import_module(f"bdc.{name}")
    except ImportError as error:
        if "BDC_CPU_ISA" in str(error):
            raise InputError(str(error)) from error
        raise InputError(f"the extension bdc.{name} is there but does not load, build it again: {error}") from error


def contiguous_rows(matrix: Tensor) -> Tensor:
    """The matrix with neighbouring elements in its rows, copied where it has not."""
    return matrix if matrix.stride(1) == 1 else matrix.contiguous()
