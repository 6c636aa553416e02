"""Batched sampling from a causal language model: one call, many prompts, rows that end at different times.

Costs that matter on a CPU and what is done about them: identical prompts are prefilled once and their cache rows
copied; prompts are prefilled in groups of similar length, so that little padding is computed; the cache is written in
place; only last positions reach the output head; finished rows leave the batch.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import operator
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bdc.errors import InputError
from bdc.llm.attention import check_attention, decoding
from bdc.llm.base import storable
from bdc.llm.chat import end_of_turn
from bdc.llm.kvcache import ROOM, KVCache
from bdc.llm.packing import using_packed
from bdc.llm.sampling import sample, uniforms
from bdc.llm.stopping import StopStrings, decode

ForwardContext = Callable[[Tensor, int], AbstractContextManager[Any]]
Progress = Callable[[int, int], None]
Stop = str | Sequence[str] | Sequence[Sequence[str]] | None

_PREFILL_TOKENS = 2048  # per forward: enough to fill the machine, little enough to bound activations
_COMPACT_AT = 8  # rows leave the cache once 1/8 of those in it are done


@dataclass(frozen=True, slots=True)
class Generation:
    """What one prompt got: ``tokens`` as sampled (an end-of-turn token included), ``text`` up to the stop, made
    `storable`."""

    tokens: list[int]
    text: str
    finish_reason: str


@torch.inference_mode()
def generate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: Sequence[int] | int,
    temperature: Sequence[float] | float = 0.8,
    top_p: Sequence[float] | float = 0.95,
    seeds: Sequence[int],
    stop: Stop = None,
    forward_context: ForwardContext | None = None,
    progress: Progress | None = None,
) -> list[Generation]:
    """Continue every prompt; all of them form one batch.

    A row's random numbers depend on its own seed and position only (its logits differ from those in another batch by
    rounding, so in rare cases a token does too). The same batch gives the same result.

    Args:
        model: a transformers causal language model with full attention caches.
        tokenizer: its tokenizer, for stop strings and text.
        prompts: token ids, each non-empty; order them by length across batches, to pad less.
        max_new_tokens, temperature, top_p: one for all, or one per prompt; temperature 0 is greedy.
        seeds: one per prompt.
        stop: strings before which a text ends: one or a list for all prompts, or a list of such lists, one per prompt.
        forward_context: called as ``forward_context(rows, n)`` around every forward of the model, where ``rows``
            (int64) are the indices of the prompts in the forward's batch and ``n`` the tokens per row (padding
            included); for weights that differ per request. Identical prompts are then prefilled apart.
        progress: called as ``progress(tokens sampled, rows finished)`` after every step, and after each group of prompts
            that was read. What it raises ends the call.

    Raises:
        InputError: an empty prompt, a setting of the wrong length or kind, one that the model's context cannot hold, or
            a model whose attention is of another kind (`check_attention`).
    """
    if not prompts:
        return []
    check_attention(model)
    rows = _Rows.of(model, tokenizer, prompts, max_new_tokens, temperature, top_p, seeds, stop)
    with _evaluating(model), using_packed(model), decoding(model):
        batch = _prefill(model, prompts, forward_context, progress)
        if bool((broken := batch.logits.isnan().any(1)).any()):
            raise InputError(
                f"the model gives NaN for prompt {int(broken.nonzero()[0])}: its weights or its dtype, {model.dtype}, are at fault"
            )
        while True:
            done = rows.step(batch.rows, batch.logits)
            if progress is not None:
                progress(rows.sampled, rows.finished_count)
            if rows.finished_count == len(prompts):
                return rows.results()
            batch.leave(done)
            batch.forward(model, rows.last[batch.rows], forward_context)


class _Rows:
    """The sampling state of every prompt, finished or not."""

    def __init__(
        self,
        tokenizer: Any,
        limits: np.ndarray,
        temperature: np.ndarray,
        top_p: np.ndarray,
        seeds: np.ndarray,
        stops: Sequence[Sequence[str]],
        end_tokens: set[int],
        device: torch.device,
    ) -> None:
        n = len(limits)
        self.tokenizer, self.limits, self.seeds, self.end_tokens = tokenizer, limits, seeds, end_tokens
        self.temperature = torch.from_numpy(temperature).to(device)
        self.top_p = torch.from_numpy(top_p).to(device)
        self.stops = [StopStrings(tokenizer, strings) for strings in stops]
        self.tokens: list[list[int]] = [[] for _ in range(n)]
        self.reason = [""] * n
        self.last = torch.zeros(n, dtype=torch.long, device=device)
        self.sampled = 0
        self.finished_count = 0

    @classmethod
    def of(
        cls,
        model: Any,
        tokenizer: Any,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: Sequence[int] | int,
        temperature: Sequence[float] | float,
        top_p: Sequence[float] | float,
        seeds: Sequence[int],
        stop: Stop,
    ) -> _Rows:
        n = len(prompts)
        limits = _per_row("max_new_tokens", max_new_tokens, n, np.int64)
        heat = _per_row("temperature", temperature, n, np.float32)
        nucleus = _per_row("top_p", top_p, n, np.float32)
        if (limits < 1).any():
            raise InputError(f"max_new_tokens must be at least 1, not {limits.min()}.")
        if not ((heat >= 0) & (heat < np.inf)).all() or not ((nucleus > 0) & (nucleus <= 1)).all():
            raise InputError("temperature must be >= 0 and finite, and top_p in (0, 1].")
        context = context_length(model)
        for i, prompt in enumerate(prompts):
            if len(prompt) == 0:
                raise InputError(f"Prompt {i} is empty; a model needs at least one token to continue.")
            if context is not None and len(prompt) + limits[i] > context:
                raise InputError(
                    f"Prompt {i} has {len(prompt)} tokens and asks for {limits[i]} more, but the model's context is "
                    f"{context}; shorten one of them."
                )
        drawn = _seeds(seeds, n)
        ends = end_tokens(model, tokenizer)
        return cls(tokenizer, limits, heat, nucleus, drawn, _stops(stop, n), ends, model.device)

    def step(self, rows: Tensor, logits: Tensor) -> list[bool]:
        """Sample one token for each active row; says which of them are finished now."""
        index = rows.tolist()
        position = np.array([len(self.tokens[i]) for i in index], dtype=np.uint64)
        u = torch.from_numpy(uniforms(self.seeds[index], position)).to(logits.device, torch.float32)
        drawn = sample(logits, self.temperature[rows], self.top_p[rows], u)
        self.last[rows] = drawn
        done = []
        for i, token in zip(index, drawn.tolist(), strict=True):
            if self.reason[i]:  # finished earlier and still in the batch
                done.append(True)
                continue
            self.tokens[i].append(token)
            self.sampled += 1
            if token in self.end_tokens or self.stops[i].hit(self.tokens[i]):
                self.reason[i] = "stop"
            elif len(self.tokens[i]) >= self.limits[i]:
                self.reason[i] = "length"
            done.append(bool(self.reason[i]))
            self.finished_count += done[-1]
        return done

    def results(self) -> list[Generation]:
        out = []
        for tokens, reason, stops in zip(self.tokens, self.reason, self.stops, strict=True):
            ended = tokens[-1] in self.end_tokens
            text = storable(stops.cut(decode(self.tokenizer, tokens[:-1] if ended else tokens)))
            out.append(Generation(tokens, text, reason))
        return out


class _Batch:
    """The rows that the model still runs: their cache, padding and latest logits."""

    def __init__(self, rows: Tensor, padding: Tensor, cache: KVCache, logits: Tensor, length: int) -> None:
        self.rows, self.padding, self.cache, self.logits, self.length = rows, padding, cache, logits, length

    def leave(self, done: list[bool]) -> None:
        """Let finished rows go, once there are enough of them to be worth copying the others together."""
        if sum(done) * _COMPACT_AT < len(done):
            return
        keep = torch.tensor([i for i, finished in enumerate(done) if not finished], device=self.rows.device)
        self.rows, self.padding = self.rows[keep], self.padding[keep]
        spare = int(self.padding.min())
        self.padding = self.padding - spare
        self.length -= spare
        self.cache.keep(keep, spare)

    def forward(self, model: Any, tokens: Tensor, context: ForwardContext | None) -> None:
        self.length += 1
        # A finished row that has not left yet may be beyond the context, where learned positions end.
        positions = (self.length - 1 - self.padding).clamp_max((context_length(model) or self.length) - 1).unsqueeze(1)
        mask = _mask(model, self.padding, 1, self.length, self.cache.capacity_for(1))
        self.logits = _run(model, tokens.unsqueeze(1), positions, mask, self.cache, self.rows, context)


def check_prompt(
    model: Any,
    tokenizer: Any,
    prompt: Sequence[int],
    *,
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    seed: int = 0,
    stop: Sequence[str] = (),
) -> None:
    """Check what `generate` would refuse about a prompt and its settings.

    Raises:
        InputError: as `generate` does.
    """
    _Rows.of(model, tokenizer, [prompt], max_new_tokens, temperature, top_p, [seed], [stop])


def _prefill(
    model: Any, prompts: Sequence[Sequence[int]], context: ForwardContext | None, progress: Progress | None = None
) -> _Batch:
    """Run the prompts, grouped by length, each distinct one once, into one left-padded cache."""
    device, total = model.device, len(prompts)
    where: dict[tuple[int, ...], list[int]] = {}
    for i, prompt in enumerate(prompts):
        where.setdefault((*prompt, -1 - i) if context is not None else tuple(prompt), []).append(i)
    owners = sorted(where.values(), key=lambda own: len(prompts[own[0]]))
    longest = len(prompts[owners[-1][0]])
    layers = model.config.get_text_config().num_hidden_layers
    cache = KVCache(layers, longest + ROOM)
    logits: Tensor | None = None
    for group in _groups(owners, prompts):
        width = max(len(prompts[own[0]]) for own in group)
        padding = torch.tensor([width - len(prompts[own[0]]) for own in group], device=device)
        ids = torch.tensor(
            [[prompts[own[0]][0]] * (width - len(prompts[own[0]])) + list(prompts[own[0]]) for own in group]
        )
        positions = (torch.arange(width, device=device) - padding.unsqueeze(1)).clamp_min(0)
        part = KVCache(layers, width)
        rows = torch.tensor([own[0] for own in group], device=device)
        last = _run(model, ids.to(device), positions, _mask(model, padding, width, width, width), part, rows, context)
        source = torch.tensor([k for k, own in enumerate(group) for _ in own], device=device)
        target = torch.tensor([i for own in group for i in own], device=device)
        cache.adopt(part, source, target, total, longest)
        if logits is None:
            logits = last.new_empty((total, last.shape[-1]))
        logits[target] = last[source]
        if progress is not None:
            progress(0, 0)
    assert logits is not None
    padding = torch.tensor([longest - len(prompt) for prompt in prompts], device=device)
    return _Batch(torch.arange(total, device=device), padding, cache, logits, longest)


def _groups(owners: list[list[int]], prompts: Sequence[Sequence[int]]) -> Iterator[list[list[int]]]:
    """Consecutive prompts (sorted by length) whose padded size stays below `_PREFILL_TOKENS`."""
    group: list[list[int]] = []
    for own in owners:
        width = len(prompts[own[0]])
        if group and (len(group) + 1) * width > _PREFILL_TOKENS:
            yield group
            group = []
        group.append(own)
    yield group


def _run(
    model: Any, ids: Tensor, positions: Tensor, mask: Any, cache: KVCache, rows: Tensor, context: ForwardContext | None
) -> Tensor:
    """Logits [rows, vocabulary] of the last position."""
    around = context(rows, ids.shape[1]) if context is not None else contextlib.nullcontext()
    own = model.get_base_model() if hasattr(model, "get_base_model") else model  # PEFT passes arguments on
    with around:
        out = model(
            input_ids=ids,
            position_ids=positions,
            attention_mask=mask,
            use_cache=True,
            logits_to_keep=1,
            **{_cache_argument(type(own).forward): cache},
        )
    logits: Tensor = out.logits[:, -1]
    return logits


@functools.cache
def _cache_argument(forward: Callable[..., Any]) -> str:
    """What a model's forward calls the cache: transformers renamed it and drops the old name in 5.40."""
    return "cache" if "cache" in inspect.signature(forward).parameters else "past_key_values"


def _mask(model: Any, padding: Tensor, queries: int, length: int, capacity: int) -> Any:
    """Additive attention mask [rows, 1, queries, capacity] for the last of ``length`` positions, or None where
    causality alone decides. A padding position sees itself: with nothing to see its softmax would be NaN.
    """
    config = model.config.get_text_config()
    window = _window(config)
    kinds = getattr(config, "layer_types", None)
    if not window and queries > 1 and not bool(padding.any()):
        return None
    key = torch.arange(capacity, device=padding.device)
    query = torch.arange(length - queries, length, device=padding.device).unsqueeze(1)
    seen = (key <= query) & ((key >= padding.view(-1, 1, 1, 1)) | (key == query))
    full = _additive(seen, model.dtype)
    if not window:
        return full
    near = _additive(seen & (key > query - window), model.dtype)
    return {"full_attention": full, "sliding_attention": near} if kinds else near


def _window(config: Any) -> int:
    """Positions that a layer with a sliding window sees, 0 where no layer has one.

    Without ``layer_types`` all layers have the window.
    """
    kinds = getattr(config, "layer_types", None)
    if not getattr(config, "use_sliding_window", True) or (kinds and "sliding_attention" not in kinds):
        return 0
    return int(getattr(config, "sliding_window", None) or 0)


def _additive(seen: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, torch.finfo(dtype).min)


def context_length(model: Any) -> int | None:
    """Tokens that the model takes in all, prompt and answer; None where its configuration does not say.

    With "longrope" these are the original ones: a longer request would change the positions of all others in its batch.
    """
    config = model.config.get_text_config()
    length: int | None = getattr(config, "max_position_embeddings", None)
    rope = getattr(config, "rope_parameters", None) or {}
    original = rope.get("original_max_position_embeddings") if rope.get("rope_type") == "longrope" else None
    return length if original is None or length is None else min(length, original)


def end_tokens(model: Any, tokenizer: Any) -> set[int]:
    """Every id that ends a turn: the generation config's, the tokenizer's and the chat template's."""
    configured = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ids = configured if isinstance(configured, list) else [configured]
    return {int(token) for token in [*ids, tokenizer.eos_token_id, end_of_turn(tokenizer)] if token is not None}


@contextlib.contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    training = model.training
    if training:
        model.eval()
    try:
        yield
    finally:
        if training:
            model.train()


def _listed(name: str, values: Sequence[Any], n: int) -> Sequence[Any]:
    if len(values) != n:
        raise InputError(f"generate() got {len(values)} {name} for {n} prompts; give one per prompt.")
    return values


def _per_row(name: str, value: Any, n: int, dtype: Any) -> np.ndarray:
    whole = np.issubdtype(dtype, np.integer)
    try:
        given = np.asarray(value) if np.ndim(value) == 0 else np.asarray(_listed(name, value, n))
    except ValueError:  # lists of several lengths
        given = np.array(None)
    if given.dtype.kind not in ("iu" if whole else "iuf") or given.ndim > 1:
        raise InputError(f"{name} must be {'whole numbers' if whole else 'numbers'}, one for all or one per prompt.")
    return np.array(np.broadcast_to(given, n), dtype=dtype)


def _seeds(seeds: Sequence[int], n: int) -> np.ndarray:
    try:
        return np.array([operator.index(seed) % 2**64 for seed in _listed("seeds", seeds, n)], dtype=np.uint64)
    except TypeError as error:
        raise InputError("seeds must be a list of whole numbers, one per prompt.") from error


def _stops(stop: Stop, n: int) -> Sequence[Sequence[str]]:
    """One list of stop strings per prompt."""
    try:
        given: Any = [stop] if isinstance(stop, str) else list(stop or [])
        if all(isinstance(string, str) for string in given):
            return [given] * n
        if len(given) != n:
            raise InputError(f"generate() got {len(given)} stop lists for {n} prompts; give one per prompt.")
        if any(isinstance(strings, str) or not all(isinstance(s, str) for s in strings) for strings in given):
            raise TypeError
    except TypeError as error:
        raise InputError("stop must be a string, a list of strings, or one list of strings per prompt.") from error
    return list(given)
