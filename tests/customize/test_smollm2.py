"""The whole way on a real model: one adapter trained with PEFT, a solver, generation, export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bdc.customize.hypernetwork import Hypernetwork, HypernetworkConfig
from bdc.customize.solver import Solver
from bdc.customize.stacks import stack_adapters
from bdc.customize.storage import SolverParts
from bdc.disentangle import DisentangleSettings
from bdc.disentangle.examples import encode
from bdc.disentangle.experts import AdapterJob, AdapterTrainer
from bdc.llm import load_model

pytestmark = pytest.mark.models

ASK = ["Write a Python function that adds two numbers.", "Write a Python function that reverses a string."]
ANSWER = ["```python\ndef add(a, b):\n    return a + b\n```", "```python\ndef reverse(s):\n    return s[::-1]\n```"]


class Directions:
    """Each text its own direction, so that the two requests get clearly different weights."""

    def encode(self, texts: list[str]) -> np.ndarray:
        return np.stack([np.eye(4, dtype=np.float32)[len(text) % 4] for text in texts])


@pytest.fixture(scope="module")
def trained(smollm2_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Path], list[dict[str, Any]]]:
    """Two experts, each taught one answer by heart."""
    folder = tmp_path_factory.mktemp("experts")
    model, tokenizer = load_model(smollm2_folder, "float32")
    settings = DisentangleSettings(
        base_model=str(smollm2_folder),
        lr=5e-3,
        epochs=5,
        batch_size=1,
        dropout=0.0,
        warmup=0.0,
        target_modules=("q_proj", "v_proj"),
    )
    trainer = AdapterTrainer(model, tokenizer, settings, folder)
    rows = [
        encode(tokenizer, [{"role": "user", "content": ask}], answer) for ask, answer in zip(ASK, ANSWER, strict=True)
    ]
    records = [trainer.train(AdapterJob(str(i), i, 8, 16.0, [rows[i]], [rows[i]])) for i in range(2)]
    return [folder / "0", folder / "1"], records


@pytest.fixture(scope="module")
def real(smollm2_folder: Path, trained: tuple[list[Path], list[dict[str, Any]]]) -> Solver:
    stack = stack_adapters(trained[0])
    network = Hypernetwork(HypernetworkConfig(4, len(stack.modules), 2, 8))
    with torch.no_grad():
        network.weight_out.normal_(std=3.0, generator=torch.Generator().manual_seed(0))
    network.requires_grad_(False)
    parts = SolverParts(str(smollm2_folder), stack, None, {"hypernetwork": network}, np.eye(4, dtype=np.float32)[:2])
    model, tokenizer = load_model(smollm2_folder, "float32")
    return Solver(model, tokenizer, parts, encoder=Directions())


def test_an_expert_learns_its_answer_and_the_solver_computes_its_loss(
    real: Solver, trained: tuple[list[Path], list[dict[str, Any]]]
) -> None:
    for index, record in enumerate(trained[1]):
        best = min(epoch["validation"] for epoch in record["history"])
        own, base = real.loss([ASK[index]] * 2, [ANSWER[index]] * 2, weights=[index, "none"])
        assert own.per_token == pytest.approx(best, rel=1e-3)
        assert own.per_token < base.per_token - 0.3


def test_a_batch_of_requests_generates_what_each_generates_alone(real: Solver) -> None:
    weights = ["hypernetwork", 0, 1, "none", "uniform", "hypernetwork"]
    prompts = [ASK[0], ASK[0], ASK[1], ASK[1], ASK[0], ASK[1]]
    together = real.generate(prompts, weights=weights, max_new_tokens=10)
    for i, found in enumerate(together):
        (alone,) = real.generate([prompts[i]], weights=[weights[i]], max_new_tokens=10)
        assert alone.tokens == found.tokens
    assert together[1].text.startswith("```python\ndef add")


def test_to_peft_serves_the_same_logits(real: Solver, smollm2_folder: Path, tmp_path: Path) -> None:
    from peft import PeftModel

    folder = real.to_peft(ASK[1], tmp_path / "adapter")
    example = encode(real.tokenizer, [{"role": "user", "content": ASK[1]}], ANSWER[1])
    ids = torch.tensor([example.prompt + example.response])
    model, _ = load_model(smollm2_folder, "float32")
    with torch.no_grad():
        scores = PeftModel.from_pretrained(model, folder).eval()(input_ids=ids).logits[0].log_softmax(-1)
    start = len(example.prompt)
    expected = -sum(float(scores[start + i - 1, token]) for i, token in enumerate(example.response))
    assert real.loss([ASK[1]], [ANSWER[1]])[0].nll == pytest.approx(expected, rel=1e-4)
