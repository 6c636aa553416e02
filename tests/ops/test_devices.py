"""Several GPUs, streams and old GPUs, as far as a machine without one shows it."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

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


def test_counters_are_zero_before_another_stream_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The zeros come from the stream that asks first: others would not wait for it."""
    done: list[str] = []
    stream = SimpleNamespace(cuda_stream=7, synchronize=lambda: done.append("waited"))
    zeros = torch.zeros
    monkeypatch.setattr(counters, "_arenas", {})
    monkeypatch.setattr(torch, "zeros", lambda n, dtype, device: done.append("zeros") or zeros(n, dtype=dtype))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    for _ in range(2):
        assert len(counters.counters(torch.device("cuda", 0), 5)) >= 5
        assert done == ["zeros", "waited"]
