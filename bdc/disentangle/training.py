"""The training loop of everything that bdc trains: small float32 parameters in front of a frozen model.

A plain loop rather than a trainer framework: every random choice is a function of (seed, epoch, step), so that
training that was killed goes on from its last checkpoint to the very same result.
"""

from __future__ import annotations

import hashlib
import io
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from bdc.artefacts import atomic_write
from bdc.disentangle.examples import Batch, Example, collate, epoch_batches, parts
from bdc.errors import BdcError
from bdc.machine import memory_is_full

_CHECKPOINT_SECONDS = 60.0
_CHECKPOINT = ".{}.checkpoint.pt"
_SEAL = hashlib.sha256().digest_size  # a checkpoint begins with the digest of the rest


def checkpoint_in(folder: Path, name: str) -> Path:
    """Where a job's unfinished training lies."""
    return folder / _CHECKPOINT.format(name)


def remove_checkpoints(folder: Path) -> None:
    """Delete those of all jobs once a stage is done: also of jobs that other settings had."""
    for checkpoint in folder.glob(_CHECKPOINT.format("*")):
        checkpoint.unlink(missing_ok=True)


class FitSettings(Protocol):
    """The fields that both stages' settings have."""

    @property
    def lr(self) -> float: ...
    @property
    def epochs(self) -> int: ...
    @property
    def batch_size(self) -> int: ...
    @property
    def micro_tokens(self) -> int: ...
    @property
    def warmup(self) -> float: ...
    @property
    def weight_decay(self) -> float: ...
    @property
    def max_grad_norm(self) -> float: ...
    @property
    def seed(self) -> int: ...


@dataclass(slots=True)
class Fit:
    """History per epoch (``train`` and ``validation`` are nats per token) and the epoch whose parameters were kept."""

    history: list[dict[str, float | int | None]] = field(default_factory=list)
    best_epoch: int = 0
    tokens: int = 0
    seconds: float = 0.0


@dataclass(slots=True)
class Trainer:
    """What is trained on what.

    Args:
        parameters: by name; float32.
        module: switched between train and eval mode.
        nll: sums of negative log-likelihoods per example of a batch, [B].
        pad: token id for padding.
        whole: the prompt's tokens count in the loss too.
        from_start: the untrained parameters are a candidate for the best ones (epoch 0).
        checkpoint: file for unfinished training; removed by the caller once the result is stored.
        key: digest of everything that the result depends on; a checkpoint with another key is ignored.
    """

    parameters: Mapping[str, nn.Parameter]
    module: nn.Module
    nll: Callable[[Batch], Tensor]
    device: torch.device
    pad: int
    settings: FitSettings
    checkpoint: Path
    key: str
    whole: bool = False
    from_start: bool = False

    def fit(
        self, train: Sequence[Example], validation: Sequence[Example], on_step: Callable[[str], None] | None = None
    ) -> Fit:
        """Train, and leave the best parameters by validation loss (without validation: the last).

        Raises:
            BdcError: the loss is no longer finite, or the memory does not suffice.
        """
        try:
            return self._fit(train, validation, on_step)
        except RuntimeError as error:
            if not memory_is_full(error):
                raise
            raise BdcError(
                "training needs more memory than there is; lower micro_tokens, max_length or rank"
            ) from error

    def _fit(
        self, train: Sequence[Example], validation: Sequence[Example], on_step: Callable[[str], None] | None
    ) -> Fit:
        settings = self.settings
        optimizer = torch.optim.AdamW(
            list(self.parameters.values()), lr=settings.lr, weight_decay=settings.weight_decay
        )
        per_epoch = math.ceil(len(train) / settings.batch_size)
        state = self._load(optimizer) or self._start(validation)
        saved = time.monotonic()
        for epoch in range(state["epoch"], settings.epochs):
            batches = epoch_batches(train, settings.batch_size, settings.seed, epoch)
            for step in range(state["step"], per_epoch):
                began = time.monotonic()
                self._rate(optimizer, epoch * per_epoch + step, per_epoch * settings.epochs)
                nll, count = self._step(optimizer, batches[step], f"{settings.seed}/{epoch}/{step}")
                state["step"] = step + 1
                state["nll"] += nll
                state["count"] += count
                state["tokens"] += sum(len(example) for example in batches[step])
                state["seconds"] += time.monotonic() - began
                if on_step is not None:
                    on_step(f"loss {state['nll'] / state['count']:.3f}")
                if time.monotonic() - saved > _CHECKPOINT_SECONDS and step + 1 < per_epoch:
                    self._save(optimizer, state)
                    saved = time.monotonic()
            self._end_epoch(state, epoch + 1, validation, batches[-1])
            self._save(optimizer, state)
            saved = time.monotonic()
        self._restore(state["best"])
        return Fit(state["history"], state["best_epoch"], state["tokens"], state["seconds"])

    def evaluate(self, examples: Sequence[Example]) -> float | None:
        """Nats per token over all examples; None without any."""
        if not examples:
            return None
        total, count = 0.0, 0
        self.module.eval()
        with torch.no_grad():
            for part in parts(examples, 2 * self.settings.micro_tokens):
                batch = collate(part, self.pad, self.device, whole=self.whole)
                total += float(self.nll(batch).sum())
                count += len(batch.targets)
        return total / count

    def _step(self, optimizer: Any, examples: Sequence[Example], name: str) -> tuple[float, int]:
        """One optimizer step; returns the summed loss and the number of tokens in it."""
        self.module.train()
        batches = [
            collate(part, self.pad, self.device, whole=self.whole)
            for part in parts(examples, self.settings.micro_tokens)
        ]
        count = sum(len(batch.targets) for batch in batches)
        total = 0.0
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(_seed(name))
            for batch in batches:
                nll = self.nll(batch).sum()
                (nll / count).backward()
                total += float(nll.detach())
        if not math.isfinite(total):
            raise _diverged(f"at epoch/step {name.split('/', 1)[1]}", total)
        nn.utils.clip_grad_norm_(list(self.parameters.values()), self.settings.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return total, count

    def _rate(self, optimizer: Any, step: int, total: int) -> None:
        climb = max(1, round(self.settings.warmup * total))
        share = (step + 1) / climb if step < climb else (total - step) / max(1, total - climb)
        for group in optimizer.param_groups:
            group["lr"] = self.settings.lr * min(1.0, share)

    def _start(self, validation: Sequence[Example]) -> dict[str, Any]:
        state: dict[str, Any] = {
            "epoch": 0,
            "step": 0,
            "nll": 0.0,
            "count": 0,
            "tokens": 0,
            "seconds": 0.0,
            "history": [],
        }
        state |= {"best": self._copy(), "best_epoch": 0, "best_loss": math.inf}
        if self.from_start and validation:
            loss = self.evaluate(validation)
            state["history"].append({"epoch": 0, "train": None, "validation": loss})
            state["best_loss"] = loss
        return state

    def _end_epoch(
        self, state: dict[str, Any], epoch: int, validation: Sequence[Example], last: Sequence[Example]
    ) -> None:
        loss = self.evaluate(validation)
        after = self.evaluate(last) if loss is None else loss
        if after is None or not math.isfinite(after):
            raise _diverged(f"in epoch {epoch}", after)
        state["history"].append({"epoch": epoch, "train": state["nll"] / state["count"], "validation": loss})
        if loss is None or loss < state["best_loss"]:
            state |= {"best": self._copy(), "best_epoch": epoch, "best_loss": math.inf if loss is None else loss}
        state |= {"epoch": epoch, "step": 0, "nll": 0.0, "count": 0}

    def _copy(self) -> dict[str, Tensor]:
        return {name: parameter.detach().cpu().clone() for name, parameter in self.parameters.items()}

    def _restore(self, values: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(values[name])

    def _save(self, optimizer: Any, state: dict[str, Any]) -> None:
        buffer = io.BytesIO()
        payload = {"key": self.key, "state": state, "parameters": self._copy(), "optimizer": optimizer.state_dict()}
        torch.save(payload, buffer)
        data = buffer.getvalue()
        atomic_write(self.checkpoint, hashlib.sha256(data).digest() + data)

    def _load(self, optimizer: Any) -> dict[str, Any] | None:
        try:
            stored = self.checkpoint.read_bytes()
        except OSError:
            return None
        seal, data = stored[:_SEAL], stored[_SEAL:]
        if hashlib.sha256(data).digest() != seal:  # cut, damaged or foreign: this training starts anew
            return None
        saved = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        if saved["key"] != self.key:
            return None
        self._restore(saved["parameters"])
        optimizer.load_state_dict(saved["optimizer"])
        return dict(saved["state"])


def _diverged(where: str, loss: float | None) -> BdcError:
    return BdcError(f"training diverged {where} (loss {loss}); lower the learning rate")


def _seed(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:7], "big")
