"""Sampling against its definition: a full sort, a cut, an inverse CDF, in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bdc.llm.sampling import sample, uniforms


def reference(logits: torch.Tensor, temperature: float, top_p: float, u: float) -> tuple[int, float]:
    """The token by definition, and how far ``u`` is from a boundary between tokens (in probability)."""
    log_probs = torch.log_softmax(logits.double() / temperature, -1)
    values, order = log_probs.sort(descending=True, stable=True)
    probs = values.exp().numpy()
    cut = min(int((probs.cumsum() < top_p).sum()), len(probs) - 1)
    kept = probs[: cut + 1].cumsum() / probs[: cut + 1].sum()
    index = min(int((kept <= u).sum()), cut)
    margin = min(float(np.abs(kept - u).min()), float(np.abs(probs.cumsum() - top_p).min()))
    return int(order[index]), margin


@settings(max_examples=150, deadline=None)
@given(
    st.integers(0, 2**31),
    st.sampled_from([0.3, 0.8, 1.0, 2.0]),
    st.sampled_from([0.1, 0.5, 0.95, 1.0]),
    st.floats(0, 0.999),
    st.sampled_from([5, 300, 3000]),
    st.sampled_from([0.5, 3.0]),
)
def test_sample_is_exact_nucleus_sampling(
    seed: int, temperature: float, top_p: float, u: float, size: int, spread: float
) -> None:
    logits = spread * torch.randn(1, size, generator=torch.Generator().manual_seed(seed))
    expected, margin = reference(logits[0], temperature, top_p, u)
    got = sample(logits, torch.tensor([temperature]), torch.tensor([top_p]), torch.tensor([u], dtype=torch.float32))
    if margin > 1e-5:  # closer than that, float32 may fall on the other side
        assert int(got[0]) == expected


def test_rows_do_not_depend_on_their_neighbours() -> None:
    logits = torch.randn(40, 2000, generator=torch.Generator().manual_seed(0)) * 2
    temperature = torch.tensor([0.0, 0.5, 1.0, 3.0]).repeat(10)
    top_p = torch.tensor([1.0, 0.9, 0.5, 0.99, 0.2]).repeat(8)
    u = torch.rand(40, generator=torch.Generator().manual_seed(1))
    together = sample(logits, temperature, top_p, u)
    for i in range(40):
        row = slice(i, i + 1)
        assert int(sample(logits[row], temperature[row], top_p[row], u[row])[0]) == int(together[i])
    assert torch.equal(together[temperature == 0], logits[temperature == 0].argmax(-1))


@pytest.mark.parametrize("top_p", [0.95, 1.0])
@pytest.mark.parametrize("heat", [1e-3, 1e-5, 1e-7, 1e-30])
def test_the_coldest_sampling_draws_one_of_the_best(heat: float, top_p: float) -> None:
    logits = 2 * torch.randn(3000, generator=torch.Generator().manual_seed(0))
    logits[[7, 100]] = 20.5  # their rounding must not matter, whatever it is divided by
    u = torch.cat([(torch.arange(500) + 0.5) / 500, torch.tensor([1 - 2**-24, 1.0])])  # 1: a uniform, rounded up
    n = len(u)
    drawn = sample(logits.expand(n, -1), torch.full((n,), heat), torch.full((n,), top_p), u)
    assert torch.bincount(drawn)[[7, 100]].sum() == n
    assert (drawn == 7).sum() == pytest.approx(n / 2, abs=2)


def test_nothing_of_probability_zero_is_drawn() -> None:
    logits = torch.tensor([[3.0, 2.0] + [-300.0] * 100])
    assert int(sample(logits, torch.ones(1), torch.ones(1), torch.ones(1))[0]) == 1


def test_frequencies_follow_the_distribution() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]])
    n = 20_000
    u = torch.from_numpy(uniforms(np.arange(n), np.zeros(n))).float()
    drawn = sample(logits.expand(n, -1), torch.ones(n), torch.ones(n), u)
    seen = torch.bincount(drawn, minlength=4).double() / n
    assert torch.allclose(seen, torch.softmax(logits[0].double(), -1), atol=0.015)


def test_uniforms_are_uniform_and_depend_on_seed_and_step_only() -> None:
    seeds, steps = np.meshgrid(np.arange(200), np.arange(200))
    u = uniforms(seeds.ravel(), steps.ravel())
    assert u.min() >= 0 and u.max() < 1
    assert u.mean() == pytest.approx(0.5, abs=0.01)
    assert np.histogram(u, 20)[0].std() < 150
    grid = u.reshape(200, 200)
    assert abs(np.corrcoef(grid[:, :-1].ravel(), grid[:, 1:].ravel())[0, 1]) < 0.02
    assert abs(np.corrcoef(grid[:-1].ravel(), grid[1:].ravel())[0, 1]) < 0.02
    assert len(np.unique(u)) == u.size
    assert uniforms(np.array([7]), np.array([3])) == u.reshape(200, 200)[3, 7]
