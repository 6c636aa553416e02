"""A solver whose model vLLM takes: its attention wants heads of at least 32 numbers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from bdc.customize.hypernetwork import Hypernetwork, HypernetworkConfig
from bdc.customize.stacks import Stack
from bdc.customize.storage import SolverParts
from bdc.llm import SentenceEncoder, load_model

K, RANK = 3, 4


@pytest.fixture(scope="session")
def base(save_tiny: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("base"), hidden_size=128)


@pytest.fixture(scope="session")
def make_parts(base: Path, tiny_encoder: Path) -> Callable[..., SolverParts]:
    """Solver parts with random experts on the layers that end in the given names."""

    def make(*layers: str) -> SolverParts:
        generator = torch.Generator().manual_seed(0)
        model, _ = load_model(base, "float32")
        lora_a, lora_b = {}, {}
        for name, module in model.named_modules():
            if isinstance(module, nn.Linear) and name.endswith(layers):
                lora_a[name] = torch.randn(K * RANK, module.in_features, generator=generator) * 0.2
                lora_b[name] = torch.randn(module.out_features, K * RANK, generator=generator) * 0.2
        stack = Stack(lora_a, lora_b, K, RANK, 8.0, layers)
        centroids = SentenceEncoder(tiny_encoder).encode(["sort arrays", "count letters", "add numbers"])
        network = Hypernetwork(HypernetworkConfig(centroids.shape[1], len(lora_a), K, RANK), seed=1)
        with torch.no_grad():  # so that every request differs
            network.weight_out.normal_(std=2.0, generator=torch.Generator().manual_seed(9))
        network.requires_grad_(False)
        return SolverParts(str(base), stack, str(tiny_encoder), {"hypernetwork": network}, centroids)

    return make


@pytest.fixture(scope="session")
def everywhere(make_parts: Callable[..., SolverParts], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a solver with experts beside every linear layer."""
    folder = tmp_path_factory.mktemp("everywhere") / "run" / "solver"
    make_parts("_proj").save(folder)
    return folder
