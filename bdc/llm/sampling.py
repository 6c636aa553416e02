"""Temperature and nucleus sampling with one seed per row, exact, and cheap for vocabularies of 150 000 tokens."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

_HEADS = (64, 1024)  # candidates sorted before a row's whole distribution is
_PIECE = 1 << 18  # logits worked on at a time


def uniforms(seeds: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """A number in [0, 1) per row that is a function of (seed, step) only (the SplitMix64 finaliser, applied twice)."""
    with np.errstate(over="ignore"):
        state = _mix(seeds.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(0xD1B54A32D192ED03))
        state = _mix(state + steps.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15))
    return (state >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(z: np.ndarray) -> np.ndarray:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray = z ^ (z >> np.uint64(31))
    return mixed


def sample(logits: Tensor, temperature: Tensor, top_p: Tensor, u: Tensor) -> Tensor:
    """One token per row.

    Tokens are put in order of falling probability, cut after the smallest prefix that holds ``top_p`` of it, and the
    one at quantile ``u`` of what remains is taken. The 64 likeliest are sorted first, more of them only for rows whose
    answer lies beyond, so the result is exact for every ``top_p``.

    Args:
        logits: [n, vocabulary], any float dtype.
        temperature: float32 [n]; 0 is greedy.
        top_p: float32 [n], in (0, 1].
        u: float32 [n], uniform in [0, 1).

    Returns:
        int64 [n].
    """
    greedy = temperature <= 0
    if bool(greedy.all()):
        return logits.argmax(-1)
    heat = torch.where(greedy, 1.0, temperature).unsqueeze(1)
    values, order = logits.topk(min(_HEADS[0], logits.shape[-1]), dim=-1)
    largest = values[:, :1].float()
    total = _log_total(logits, heat, largest)
    size = logits.shape[-1]
    choice, settled = _quantile((values.float() - largest) / heat - total, top_p, u, size)
    tokens = order.gather(1, choice.unsqueeze(1)).squeeze(1)
    if bool(greedy.any()):
        tokens[greedy] = logits[greedy].argmax(-1)
    for head in (*_HEADS[1:], logits.shape[-1]):
        rows = torch.nonzero(~settled & ~greedy).flatten()
        if not len(rows):
            break
        values, order = logits[rows].topk(min(head, logits.shape[-1]), dim=-1)
        log_probs = (values.float() - largest[rows]) / heat[rows] - total[rows]
        choice, settled[rows] = _quantile(log_probs, top_p[rows], u[rows], size)
        tokens[rows] = order.gather(1, choice.unsqueeze(1)).squeeze(1)
    return tokens


def _log_total(logits: Tensor, heat: Tensor, largest: Tensor) -> Tensor:
    """Log of each row's sum of exp((logit - largest) / heat) [n, 1], in pieces that stay in a CPU's cache."""
    n, size = logits.shape
    step = n if logits.is_cuda else max(1, _PIECE // size)
    sums = []
    for part in (slice(start, start + step) for start in range(0, n, step)):
        sums.append((logits[part].float() - largest[part]).div_(heat[part]).exp_().sum(-1, keepdim=True))
    return torch.cat(sums).log_()


def _quantile(log_probs: Tensor, top_p: Tensor, u: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Index of the drawn token among sorted candidates [n, k] of ``size``, and whether they sufficed to know it."""
    cumulative = log_probs.exp().cumsum(-1)
    nucleus = (cumulative < top_p.unsqueeze(1)).sum(-1).clamp_max(log_probs.shape[1] - 1)
    mass = cumulative.gather(1, nucleus.unsqueeze(1)).squeeze(1)
    inside = mass >= top_p
    # Without a cut all of the distribution remains: its mass is 1, or what rounding made of it once all of it is here.
    end = cumulative[:, -1]
    mass = torch.where(inside, mass, end if log_probs.shape[1] == size else torch.ones_like(end))
    target = u * mass
    choice = (cumulative <= target.unsqueeze(1)).sum(-1)
    settled = (choice < log_probs.shape[1]) & (inside | (top_p >= 1))
    # The last candidate that adds anything; those after it have probability 0.
    last = (cumulative < end.unsqueeze(1)).sum(-1)
    return torch.minimum(choice, torch.where(inside, nucleus, last)), settled
