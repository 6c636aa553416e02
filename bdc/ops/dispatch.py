"""Which backend computes a product."""

from __future__ import annotations

import os

from torch import Tensor

from bdc.errors import InputError
from bdc.ops import extension, matmul

_KNOWN = ("cpp", "torch")


def backends() -> dict[str, str]:
    """Usable backends, and what each of them runs on.

    The environment variable BDC_OPS_BACKEND names the one to use where it can; without it the faster one is taken.
    """
    found: dict[str, str] = {}
    module = extension.load()
    if module is not None:
        threads = module.threads()
        width = f"{threads} threads" if threads > 1 else "1 thread"
        found["cpp"] = f"CPU ({module.isa()}, {width}), float32, bfloat16 and float16; no gradients"
    found["torch"] = "every device and dtype, and gradients"
    return found


def add_product(
    y: Tensor, x: Tensor, lora_a: Tensor, lora_b: Tensor, g: Tensor, rows: Tensor | None, scaling: float
) -> Tensor:
    """:func:`bdc.ops.rankwise_lora_` without checks, for arguments that were checked, and without a gradient."""
    if not len(x):
        return y
    backend = extension if _chosen(y, x) == "cpp" else matmul
    backend.add(y, x, lora_a, lora_b, g, rows, scaling)
    return y


def _chosen(y: Tensor, x: Tensor) -> str:
    forced = os.environ.get("BDC_OPS_BACKEND")
    if forced and forced not in _KNOWN:
        raise InputError(f"BDC_OPS_BACKEND must be one of {', '.join(_KNOWN)}, got {forced}")
    if forced == "torch" or not extension.supports(y, x):
        return "torch"
    module = extension.load()
    if module is None:
        if forced:
            raise InputError("BDC_OPS_BACKEND=cpp needs the extension bdc._lora, which is not built: install bdc again")
        return "torch"
    return "cpp" if forced or module.isa() != "portable" else "torch"
