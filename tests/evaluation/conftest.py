"""A run directory as the customize stage leaves it, around a tiny model, encoder and experts with random weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from bdc.problems import Problem
from bdc.runs import Run
from bdc.testcase import CallTest

K, RANK, DIM = 2, 2, 16


def make_problem(index: int, *, solution: bool = True) -> Problem:
    word = ("sort", "count", "sum")[index % 3]
    return Problem(
        id=f"t/{index}",
        source="t",
        statement=f"def f(x):\n    {word} {index}",
        entry_point="f",
        public_tests=(),
        private_tests=tuple(CallTest("f", [value], value + index, {}) for value in range(4)),
        solution=f"def f(x):\n    return x + {index}" if solution else None,
    )


@pytest.fixture(scope="session")
def made(tiny: Path, tiny_encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with ``solver/`` and ``experts/single/``."""
    from peft import LoraConfig, get_peft_model

    from bdc.customize.hypernetwork import Hypernetwork, HypernetworkConfig
    from bdc.customize.stacks import stack_adapters
    from bdc.customize.storage import SolverParts
    from bdc.llm import load_model

    folder = tmp_path_factory.mktemp("made")
    for index, name in enumerate([*map(str, range(K)), "single"]):
        model, _ = load_model(tiny, "float32")
        config = LoraConfig(r=RANK, lora_alpha=4.0, target_modules="all-linear", task_type="CAUSAL_LM")  # type: ignore[arg-type]
        adapter = get_peft_model(model, config)
        generator = torch.Generator().manual_seed(index)
        with torch.no_grad():
            for parameter_name, parameter in adapter.named_parameters():
                if "lora_" in parameter_name:
                    parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
        adapter.save_pretrained(folder / "experts" / name)
    stack = stack_adapters([folder / "experts" / str(index) for index in range(K)])
    network = Hypernetwork(HypernetworkConfig(DIM, len(stack.modules), K, RANK), seed=1)
    with torch.no_grad():
        network.weight_out.normal_(std=2.0, generator=torch.Generator().manual_seed(9))
    centroids = np.random.default_rng(0).standard_normal((K, DIM)).astype(np.float32)
    centroids /= np.linalg.norm(centroids, axis=1, keepdims=True)
    SolverParts(str(tiny), stack, str(tiny_encoder), {"hypernetwork": network}, centroids).save(folder / "solver")
    return folder


@pytest.fixture
def new_run(made: Path, tmp_path: Path) -> Callable[[str], Path]:
    """Make a run directory with 7 test problems (one without a solution) and one training problem."""

    def make(name: str) -> Path:
        with Run(tmp_path / name, create=True) as run:
            shutil.copytree(made / "solver", run.solver_dir)
            shutil.copytree(made / "experts", run.experts_dir)
            problems = [(make_problem(i, solution=i != 3), "test" if i < 7 else "train") for i in range(8)]
            run.insert(
                "problems",
                [
                    {"id": p.id, "position": i, "split": split, "source": p.source, "json": json.dumps(p.to_json())}
                    for i, (p, split) in enumerate(problems)
                ],
            )
        return tmp_path / name

    return make
