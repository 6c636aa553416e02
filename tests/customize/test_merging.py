from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from bdc.customize.merging import merged_delta
from bdc.customize.solver import Solver
from bdc.customize.stacks import stack_adapters


def test_ties_keeps_the_largest_elects_signs_and_averages(adapters: list[Path]) -> None:
    stack = stack_adapters(adapters)
    module = stack.modules[0]
    deltas = [stack.delta(module, index) for index in range(3)]
    found = merged_delta(stack, module, "ties", density=0.3)
    trimmed = []
    for delta in deltas:
        cut = delta.abs().flatten().sort(descending=True).values[round(0.3 * delta.numel()) - 1]
        trimmed.append(delta * (delta.abs() >= cut))
    rows, columns = found.shape
    for i in range(rows):
        for j in range(columns):
            values = [float(t[i, j]) for t in trimmed]
            agreeing = [v for v in values if v * sum(values) > 0]
            assert float(found[i, j]) == pytest.approx(sum(agreeing) / max(1, len(agreeing)), abs=1e-6)
    assert 0.2 < float((found != 0).float().mean()) < 0.8


def test_ties_of_one_expert_at_full_density_is_the_expert(adapters: list[Path]) -> None:
    stack = stack_adapters(adapters[:1])
    for module in stack.modules:
        torch.testing.assert_close(merged_delta(stack, module, "ties", density=1.0), stack.delta(module, 0))


def test_dare_keeps_a_share_and_the_mean(adapters: list[Path]) -> None:
    stack = stack_adapters(adapters[:1])
    module = stack.modules[0]
    found, delta = merged_delta(stack, module, "dare", density=0.3, seed=1), stack.delta(module, 0)
    kept = found != 0
    assert 0.2 < float(kept.float().mean()) < 0.4
    torch.testing.assert_close(found[kept], delta[kept] / 0.3)
    assert not torch.equal(found, merged_delta(stack, module, "dare", density=0.3, seed=2))
    torch.testing.assert_close(merged_delta(stack, module, "dare", density=1.0), delta)


@pytest.mark.parametrize("method", ["ties", "dare"])
def test_a_merged_solver_answers_differently_and_is_restored(solver: Solver, method: Any) -> None:
    def loss() -> float:
        return solver.loss(["sort arrays"], ["fine"], weights="none")[0].nll

    before = loss()
    with solver.merged(method):
        assert abs(loss() - before) > 1e-3
    assert loss() == before


def test_merging_one_expert_whole_is_that_expert(tiny: Path, adapters: list[Path]) -> None:
    solver = Solver.from_adapters([adapters[2]], tiny, dtype="float32")
    expected = solver.loss(["sort arrays"], ["fine"], weights=0)[0].nll
    with solver.merged("ties", density=1.0):
        assert solver.loss(["sort arrays"], ["fine"], weights="none")[0].nll == pytest.approx(expected, rel=1e-5)


def test_a_merge_is_in_force_where_answers_are_sampled(tiny: Path, adapters: list[Path]) -> None:
    solver = Solver.from_adapters([adapters[2]], tiny, dtype="float32")
    base, expert = (solver.generate(["sort arrays"], weights=w, max_new_tokens=12) for w in ("none", 0))
    assert base != expert
    with solver.merged("ties", density=1.0):
        assert solver.generate(["sort arrays"], weights="none", max_new_tokens=12) == expert
    assert solver.generate(["sort arrays"], weights="none", max_new_tokens=12) == base


def test_a_merge_is_as_precise_as_an_expert_in_bfloat16(tiny: Path, adapters: list[Path]) -> None:
    """Added to weights of one, its numbers would be rounded away."""
    solver = Solver.from_adapters([adapters[2]], tiny, dtype="bfloat16")
    stack, name = solver.parts.stack, solver.parts.stack.modules[0]
    stack.lora_b[name].mul_(1e-3)
    linear = solver._mixture.linears[name]
    torch.nn.init.ones_(linear.weight)
    x = torch.ones(1, linear.in_features, dtype=torch.bfloat16)
    x[:, ::2] = -1
    assert not linear(x).any()
    with solver.merged("ties", density=1.0), torch.no_grad():
        found = linear(x)
        assert torch.equal(linear.weight, torch.ones_like(linear.weight))
    expected = x.float() @ stack.delta(name, 0).T
    torch.testing.assert_close(found.float(), expected, rtol=0.05, atol=0.02 * float(expected.abs().max()))
