"""How a request's rank weights travel to vLLM's workers: as text among its sampling parameters' extra arguments."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bdc.errors import InputError

KEY = "bdc_rank_weights"
"""The name of the extra argument."""


def encode(weights: Tensor) -> str:
    """Float32 of any shape, on the CPU, as text."""
    return base64.b64encode(weights.contiguous().numpy().astype("<f4").tobytes()).decode("ascii")


def decode(extra_args: Mapping[str, Any] | None, count: int) -> Tensor | None:
    """The float32 [count] of a request's extra arguments; None if it has no rank weights.

    Raises:
        InputError: they are not what :func:`encode` makes of so many finite numbers.
    """
    text = (extra_args or {}).get(KEY)
    if text is None:
        return None
    try:
        numbers = np.frombuffer(base64.b64decode(text, validate=True), "<f4")
    except (TypeError, ValueError) as error:
        raise InputError(f"{KEY} is no text that bdc wrote ({error})") from error
    if len(numbers) != count:
        raise InputError(f"{KEY} holds {len(numbers)} numbers, and this solver has {count} for each request")
    if not np.isfinite(numbers).all():
        raise InputError(f"{KEY} holds numbers that are not finite")
    return torch.from_numpy(numbers.astype(np.float32))


def cache_salt(text: str, given: str = "") -> str:
    """What keeps requests with other rank weights out of this one's cached prefixes, besides the salt it came with."""
    return hashlib.sha256(f"{given}\n{text}".encode(errors="surrogatepass")).hexdigest()
