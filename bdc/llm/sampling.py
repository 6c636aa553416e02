"""Temperature and nucleus sampling with one seed per row, exact, and cheap for vocabularies of 150 000 tokens."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

_HEAD = 64  # candidates looked at before a row's whole distribution is sorted


def uniforms(seeds: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """A number in [0, 1) per row that is a function of (seed, step) only (the SplitMix64 finaliser, applied twice)."""
    with np.errstate(over="ignore"):
        state = _mix(seeds.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(0xD1B54A32D192ED03))
        state = _mix(state + steps.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15))
    return (state >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(z: np.ndarray) -> np.ndarray:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def sample(logits: Tensor, temperature: Tensor, top_p: Tensor, u: Tensor) -> Tensor:
    """One token per row.

    Tokens are put in order of falling probability, cut after the smallest prefix that holds ``top_p`` of it, and the
    one at quantile ``u`` of what remains is taken. Only the 64 likeliest are sorted; a row whose answer lies beyond
    them is sorted whole, so the result is exact for every ``top_p``.

    Args:
        logits: [n, vocabulary], any float dtype.
        temperature: float32 [n]; 0 is greedy.
        top_p: float32 [n], in (0, 1].
        u: float32 [n], uniform in [0, 1).

    Returns:
        int64 [n].
    """
    drawn = temperature > 0
    if not bool(drawn.any()):
        return logits.argmax(-1)
    values, order = logits.topk(min(_HEAD, logits.shape[-1]), dim=-1)
    safe = torch.where(drawn, temperature, 1.0).unsqueeze(1)
    log_total = _log_total(logits, safe)
    choice, settled = _quantile(values.float() / safe - log_total, top_p, u)
    tokens = order.gather(1, choice.unsqueeze(1)).squeeze(1)
    if not bool(drawn.all()):
        tokens = torch.where(drawn, tokens, logits.argmax(-1))
    for row in torch.nonzero(drawn & ~settled).flatten().tolist():
        values, order = (logits[row].float() / temperature[row]).sort(descending=True, stable=True)
        one = slice(row, row + 1)
        choice, _ = _quantile(values.unsqueeze(0) - log_total[one], top_p[one], u[one])
        tokens[row] = order[choice[0]]
    return tokens


def _log_total(logits: Tensor, temperature: Tensor) -> Tensor:
    return torch.logsumexp(logits.float() / temperature, dim=-1, keepdim=True)


def _quantile(log_probs: Tensor, top_p: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """Index of the drawn token among sorted candidates [n, k], and whether the candidates sufficed to know it."""
    cumulative = log_probs.exp().cumsum(-1)
    nucleus = (cumulative < top_p.unsqueeze(1)).sum(-1).clamp_max(log_probs.shape[1] - 1)
    mass = cumulative.gather(1, nucleus.unsqueeze(1)).squeeze(1)
    inside = mass >= top_p
    # Without a cut all of the distribution remains, and its mass is known to be 1.
    mass = torch.where(inside, mass, torch.ones_like(mass))
    target = u * mass
    choice = (cumulative <= target.unsqueeze(1)).sum(-1)
    settled = (choice < log_probs.shape[1]) & (inside | (top_p >= 1))
    return torch.minimum(choice, torch.where(inside, nucleus, log_probs.shape[1] - 1)), settled
