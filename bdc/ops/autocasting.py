"""What torch.autocast does to the product: its arguments are cast, and the products within are not."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

# Half a microsecond cheaper than asking for the device first.
any_autocast = getattr(torch._C, "_is_any_autocast_enabled", lambda: True)


def _is_on(device: str) -> bool:
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


def autocasts(x: Tensor) -> bool:
    """Whether autocast casts x: floats, but not float64, as in torch."""
    return any_autocast() and _is_on(x.device.type) and x.is_floating_point() and x.dtype != torch.float64


def cast(dtype: torch.dtype, x: Tensor, lora_a: Tensor, lora_b: Tensor, g: Tensor) -> tuple[Tensor, ...]:
    """x, lora_a and lora_b in ``dtype``, but experts of int8; and g, which may be float32."""
    experts = (t if t.dtype == torch.int8 else t.to(dtype) for t in (lora_a, lora_b))
    return x.to(dtype), *experts, g if g.dtype == torch.float32 else g.to(dtype)


def without_autocast(x: Tensor) -> AbstractContextManager[Any]:
    """What was cast is multiplied as it is: products that a backend takes from torch are not for autocast."""
    device = x.device.type
    return torch.autocast(device, enabled=False) if any_autocast() and _is_on(device) else nullcontext()
