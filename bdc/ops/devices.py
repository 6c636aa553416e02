"""On which GPU a launch goes, and which GPUs the kernels run on."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, wraps
from typing import Concatenate, ParamSpec, TypeVar

import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")


def on_its_device(launch: Callable[Concatenate[Tensor, P], R]) -> Callable[Concatenate[Tensor, P], R]:
    """``launch`` with the GPU of its first argument as the current one, to which the kernels of Triton and CUDA go."""

    @wraps(launch)
    def on_device(first: Tensor, /, *args: P.args, **kwargs: P.kwargs) -> R:
        device = first.device
        if device.type != "cuda" or device.index == torch.cuda.current_device():
            return launch(first, *args, **kwargs)
        with torch.cuda.device(device):
            return launch(first, *args, **kwargs)

    return on_device


@cache
def runs_kernels(device: torch.device) -> bool:
    """Whether it is no GPU before compute capability 8.0, for which neither Triton nor the CUDA sources are made."""
    return device.type != "cuda" or torch.cuda.get_device_capability(device) >= (8, 0)
