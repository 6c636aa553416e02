"""Token sequences for supervised training, and batches of them."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bdc.errors import InputError
from bdc.llm.chat import encode_chat, end_of_turn

_WINDOW = 8  # batches that are sorted by length together


@dataclass(frozen=True, slots=True)
class Example:
    """Token ids of a prompt and its response; ``source`` is the row of whatever belongs to it (an embedding)."""

    prompt: tuple[int, ...]
    response: tuple[int, ...]
    source: int = 0

    def __len__(self) -> int:
        return len(self.prompt) + len(self.response)


def encode(tokenizer: Any, messages: Sequence[dict[str, str]], response: str, source: int = 0) -> Example:
    """One example; the response ends as the chat template ends an answer (`end_of_turn`).

    Raises:
        InputError: the prompt has no token, or cannot be encoded, or nothing ends a response.
    """
    end = end_of_turn(tokenizer)
    if end is None:
        raise InputError("The tokenizer has no end-of-text token (eos_token), which a response ends with.")
    prompt = encode_chat(tokenizer, messages)
    if not prompt:
        raise InputError("A prompt is empty; a response needs at least one token before it.")
    answer = [*tokenizer.encode(response, add_special_tokens=False), end]
    return Example(tuple(prompt), tuple(answer), source)


def longest_example(model: Any, max_length: int) -> int:
    """Tokens that an example may have: as many as the settings say, and no more than the model's context."""
    from bdc.llm.generate import context_length

    return min(max_length, context_length(model) or max_length)


@dataclass(frozen=True, slots=True)
class Batch:
    """Right-padded ids [B, S]; ``predicts`` [B, S] marks the positions whose next token counts, ``targets`` [n] are
    these tokens in row-major order and ``rows`` [n] their rows. Causal attention needs no mask for padding on the
    right.
    """

    ids: Tensor
    lengths: Tensor
    predicts: Tensor
    targets: Tensor
    rows: Tensor
    sources: Tensor


def collate(examples: Sequence[Example], pad: int, device: torch.device, *, whole: bool = False) -> Batch:
    """Examples as one batch; the loss is on the responses, or on the ``whole`` text."""
    width = max(len(example) for example in examples)
    ids = torch.full((len(examples), width), pad, dtype=torch.long)
    predicts = torch.zeros((len(examples), width), dtype=torch.bool)
    for row, example in enumerate(examples):
        ids[row, : len(example)] = torch.tensor(example.prompt + example.response)
        predicts[row, 0 if whole else len(example.prompt) - 1 : len(example) - 1] = True
    rows, columns = predicts.nonzero(as_tuple=True)
    lengths = torch.tensor([len(example) for example in examples])
    sources = torch.tensor([example.source for example in examples])
    parts = (ids, lengths, predicts, ids[rows, columns + 1], rows, sources)
    return Batch(*(part.to(device) for part in parts))


def epoch_batches(examples: Sequence[Example], batch_size: int, seed: int, epoch: int) -> list[list[Example]]:
    """All examples once, shuffled, in batches of similar length; a function of its arguments only."""
    rng = random.Random(f"{seed}/{epoch}")
    order = list(examples)
    rng.shuffle(order)
    batches = []
    for start in range(0, len(order), batch_size * _WINDOW):
        window = sorted(order[start : start + batch_size * _WINDOW], key=len)
        batches += [window[i : i + batch_size] for i in range(0, len(window), batch_size)]
    rng.shuffle(batches)
    return batches


def parts(examples: Sequence[Example], max_tokens: int) -> Iterator[list[Example]]:
    """Examples in order of length, in parts of at most ``max_tokens`` padded tokens (one example at least)."""
    part: list[Example] = []
    for example in sorted(examples, key=len):
        if part and (len(part) + 1) * len(example) > max_tokens:
            yield part
            part = []
        part.append(example)
    if part:
        yield part
