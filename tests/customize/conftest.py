"""A tiny model with three experts that differ, and solvers built on them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from bdc.customize.hypernetwork import Hypernetwork, HypernetworkConfig
from bdc.customize.settings import Weighting
from bdc.customize.solver import Solver
from bdc.customize.stacks import stack_adapters
from bdc.customize.storage import SolverParts
from bdc.llm import load_model

K, RANK, ALPHA = 3, 4, 8.0


SORTING = ("sort", "order", "ascending", "descending", "array")
STRINGS = ("vowels", "letters", "reverse the word", "capital letters", "palindrome")


def write_traces(path: Path, problems: int = 12, validation: int = 4) -> Path:
    """Two families of problems, half each, two traces per problem; the last ``validation`` problems are held out."""
    rows = []
    for index in range(problems):
        family, words = ("sorting", SORTING) if index % 2 else ("strings", STRINGS)
        statement = f"Write a function that works on {words[index % 5]} and {words[(index // 2) % 5]} number {index}."
        for kind in ("thoughts", "program"):
            rows.append(
                {
                    "id": f"{family}-{index:02d}#1/{kind}",
                    "problem_id": f"{family}-{index:02d}",
                    "node": 1,
                    "kind": kind,
                    "statement": statement,
                    "messages": json.dumps([{"role": "user", "content": f"{kind}: {statement}"}]),
                    "response": f"def f(x):\n    return {family}(x)" if kind == "program" else f"1. Use {family}.",
                    "agent": "test",
                    "value": 1.0,
                    "split": "validation" if index >= problems - validation else "train",
                }
            )
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


class WordEncoder:
    """A deterministic stand-in that needs no weights: a random unit vector per word, averaged and normalised."""

    dim = 12

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        rows = [np.mean([self._word(word) for word in text.split() or [""]], axis=0) for text in texts]
        return np.stack([row / np.linalg.norm(row) for row in rows]).astype(np.float32)

    def _word(self, word: str) -> np.ndarray:
        return np.random.default_rng(list(word.encode())).standard_normal(self.dim)


@pytest.fixture(scope="session")
def adapters(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """PEFT adapters with random A and B (PEFT's own start would leave B at zero), as PEFT stores them."""
    from peft import LoraConfig, get_peft_model

    folder = tmp_path_factory.mktemp("adapters")
    for index in range(K):
        model, _ = load_model(tiny, "float32")
        config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM")  # type: ignore[arg-type]
        adapter = get_peft_model(model, config)
        generator = torch.Generator().manual_seed(index)
        with torch.no_grad():
            for name, parameter in adapter.named_parameters():
                if "lora_" in name:
                    parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
        adapter.save_pretrained(folder / str(index))
    return [folder / str(index) for index in range(K)]


def make_parts(tiny: Path, adapters: list[Path], weighting: Weighting = "rank", *, trained: bool = True) -> SolverParts:
    """Solver parts; ``trained`` fills the hypernetwork's last layer with numbers, so that every request differs."""
    stack = stack_adapters(adapters)
    config = HypernetworkConfig(WordEncoder.dim, len(stack.modules), K, RANK, weighting=weighting)
    network = Hypernetwork(config, seed=1)
    if trained:
        with torch.no_grad():
            network.weight_out.normal_(std=2.0, generator=torch.Generator().manual_seed(9))
    network.requires_grad_(False)
    centroids = WordEncoder().encode(["sort arrays", "count letters", "add numbers"])
    return SolverParts(str(tiny), stack, None, {"hypernetwork": network}, centroids)


@pytest.fixture(scope="session")
def parts(tiny: Path, adapters: list[Path]) -> SolverParts:
    return make_parts(tiny, adapters)


def make_solver(parts: SolverParts) -> Solver:
    model, tokenizer = load_model(parts.base_model, "float32")
    return Solver(model, tokenizer, parts, encoder=WordEncoder())


@pytest.fixture(scope="session")
def solver(parts: SolverParts) -> Solver:
    return make_solver(parts)


@pytest.fixture(scope="session")
def helpers() -> SimpleNamespace:
    """The makers above, for tests that need other variants."""
    return SimpleNamespace(make_parts=make_parts, make_solver=make_solver, write_traces=write_traces)
