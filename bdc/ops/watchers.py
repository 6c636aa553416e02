"""Who sees operators of torch, and nothing of a kernel that is called directly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from bdc.errors import InputError

PLAIN = (Tensor, torch.nn.Parameter)
"""The types of tensors that are their memory and nothing else."""

WATCHERS: tuple[Callable[[], Any], ...] = (
    torch._C._len_torch_dispatch_stack,
    torch._C._is_tracing,
    torch._C._are_functorch_transforms_active,
)
"""Whether dispatch modes, torch.jit.trace or torch.func watch."""


def unwatched(*tensors: Tensor | None) -> bool:
    """Whether a kernel may be called directly: these are plain tensors, and nobody watches.

    :data:`bdc.ops.extension.unwatched` is the same in C++.
    """
    plain = all(tensor is None or type(tensor) in PLAIN for tensor in tensors)
    return plain and not any(watcher() for watcher in WATCHERS) and forward_ad._current_level < 0


def no_forward_mode() -> InputError:
    """What forward-mode differentiation is told."""
    return InputError("the rank-wise product has no forward-mode derivative: use reverse mode")


def check_no_tangents(*tensors: Tensor) -> None:
    """None of them is a dual number of forward-mode differentiation."""
    if forward_ad._current_level < 0:
        return
    if any(forward_ad.unpack_dual(tensor).tangent is not None for tensor in tensors):
        raise no_forward_mode()
