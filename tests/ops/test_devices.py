"""Several GPUs, streams and old GPUs, as far as a machine without one shows it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from bdc.ops import counters, cuda, devices, triton_gradients, triton_kernels, triton_layer

LAUNCHES: list[Callable[..., Any]] = [
    cuda._run,
    triton_gradients.backward,
    triton_kernels.expand,
    triton_kernels.gate,
    triton_kernels.shrink,
    triton_layer._launch,
    triton_layer.rms_norm_shrink,
    triton_layer.silu_mul_shrink,
]


class EnteredError(Exception):
    """A device was made the current one."""


@pytest.mark.parametrize("launch", LAUNCHES)
def test_launches_go_to_the_device_of_the_tensors(launch: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def enter(device: torch.device) -> None:
        raise EnteredError(device)

    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "device", enter)
    with pytest.raises(EnteredError, match="cuda:1"):
        launch(SimpleNamespace(device=torch.device("cuda", 1)))


@pytest.mark.parametrize(("capability", "runs"), [((7, 5), False), ((8, 0), True), ((12, 0), True)])
def test_old_gpus_are_for_torch(capability: tuple[int, int], runs: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    devices.runs_kernels.cache_clear()
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(cuda, "load", lambda: SimpleNamespace(device_type="cuda"))
    monkeypatch.setattr(triton_kernels, "interpreted", lambda: False)

    class OnGpu(SimpleNamespace):
        device, dtype = torch.device("cuda", 0), torch.float16

        def stride(self, dimension: int) -> int:
            return 1

        def __len__(self) -> int:
            return 2

    for backend in (cuda, triton_kernels, triton_layer):
        assert backend.supports(OnGpu(), OnGpu()) == runs  # type: ignore[arg-type]
    devices.runs_kernels.cache_clear()


def test_counters_are_for_all_streams_and_outside_of_pools(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other streams do not wait for the one that makes zeros; torch.compile's graphs take what a thread allocates into their pool."""
    done: list[str] = []
    caller = threading.get_ident()

    def made(words: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        done.append("here" if threading.get_ident() == caller else "elsewhere")
        return zeros(words, dtype=dtype)

    stream = SimpleNamespace(cuda_stream=7, synchronize=lambda: done.append("waited"))
    zeros = torch.zeros
    monkeypatch.setattr(counters, "_arenas", {})
    monkeypatch.setattr(torch, "zeros", made)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    for _ in range(2):
        assert len(counters.counters(torch.device("cuda", 0), 5)) >= 5
        assert done == ["elsewhere", "waited"]
