"""LoRA adapters on a frozen base model, with PEFT."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bdc.artefacts import atomic_folder, fingerprints, first_changed
from bdc.disentangle.examples import Batch, Example
from bdc.disentangle.loss import example_nll
from bdc.disentangle.settings import DisentangleSettings
from bdc.disentangle.training import Fit, Trainer, checkpoint_in
from bdc.errors import InputError
from bdc.llm.catalogue import public_name
from bdc.runs import digest, seal_holds, sealed

_RECORD = "training.json"


@dataclass(frozen=True, slots=True)
class AdapterJob:
    """One adapter to train: ``index`` makes its initial weights its own."""

    name: str
    index: int
    rank: int
    alpha: float
    train: list[Example]
    validation: list[Example]


class AdapterTrainer:
    """Trains adapters one after another on one copy of the base model.

    Args:
        model, tokenizer: the base model, as `bdc.llm.load_model` gives it.
        folder: ``folder/<job name>`` gets each adapter.
    """

    def __init__(self, model: Any, tokenizer: Any, settings: DisentangleSettings, folder: Path) -> None:
        self.model, self.tokenizer, self.settings, self.folder = model, tokenizer, settings, folder
        for parameter in model.parameters():
            parameter.requires_grad_(False)

    def train(self, job: AdapterJob, on_step: Callable[[str], None] | None = None) -> dict[str, Any]:
        """Train and store one adapter, or take the one that an earlier call with the same inputs stored.

        Returns:
            Its record: name, examples, tokens, history, best_epoch, seconds.
        """
        examples = [(e.prompt, e.response) for e in [*job.train, *job.validation]]
        settings = asdict(self.settings)
        key = digest(
            "adapter", settings, job.index, job.rank, job.alpha, str(self.model.dtype), len(job.train), examples
        )
        target, checkpoint = self.folder / job.name, checkpoint_in(self.folder, job.name)
        if (record := _stored(target, key)) is not None:
            checkpoint.unlink(missing_ok=True)  # left by a process that was killed right after storing
            return record
        adapter = self._adapter(job)
        trainer = Trainer(
            parameters={name: p for name, p in adapter.named_parameters() if p.requires_grad},
            module=adapter,
            nll=self._nll,
            device=self.model.device,
            pad=self.tokenizer.pad_token_id,
            settings=self.settings,
            checkpoint=checkpoint,
            key=key,
            whole=self.settings.loss_on == "all",
        )
        try:
            fit = trainer.fit(job.train, job.validation, on_step)
            record = _record(job, fit, key)
            record = _store(adapter, target, record, self.settings.base_model)
        finally:
            self.model = adapter.unload().eval()
        checkpoint.unlink(missing_ok=True)
        return record

    def _adapter(self, job: AdapterJob) -> Any:
        from peft import LoraConfig, get_peft_model

        modules = self.settings.target_modules
        config = LoraConfig(
            r=job.rank,
            lora_alpha=job.alpha,  # type: ignore[arg-type]
            lora_dropout=self.settings.dropout,
            target_modules="all-linear" if modules == ("all-linear",) else list(modules),
            task_type="CAUSAL_LM",
        )
        with torch.random.fork_rng():
            torch.manual_seed(self.settings.seed * 1000 + job.index)
            try:
                adapter: Any = get_peft_model(self.model, config)
            except ValueError as error:
                reason = " ".join(str(error).split())
                raise InputError(
                    f"disentangle.target_modules = {list(modules)} does not fit the model: {reason:.300}"
                ) from error
        if (misfit := self._misfit(adapter)) is not None:
            self.model = adapter.unload().eval()
            raise InputError(f"disentangle.target_modules = {list(modules)} does not fit the model: {misfit}")
        return adapter

    def _misfit(self, adapter: Any) -> str | None:
        """What PEFT passes over in silence, or adapts and the customize stage cannot stack."""
        if adapter.peft_config["default"].target_parameters:  # set by PEFT itself for experts that are no modules
            return "the model has parameters without a linear layer, as of a mixture of experts; name linear layers"
        adapted = adapter.base_model.targeted_module_names
        head = self.model.get_output_embeddings()
        for name in adapted:
            layer = self.model.get_submodule(name)
            if layer is head or not isinstance(layer.base_layer, torch.nn.Linear):
                return f"{name} is no linear layer of attention or MLP"
        if self.settings.target_modules != ("all-linear",):
            for ending in self.settings.target_modules:
                if not any(f".{name}".endswith(f".{ending}") for name in adapted):
                    return f"no layer is called {ending}"
        return None

    def _nll(self, batch: Batch) -> Tensor:
        low = self.model.dtype is not torch.float32
        with torch.autocast(self.model.device.type, self.model.dtype if low else torch.bfloat16, enabled=low):
            return example_nll(self.model, batch)


def _record(job: AdapterJob, fit: Fit, key: str) -> dict[str, Any]:
    return {
        "name": job.name,
        "rank": job.rank,
        "alpha": job.alpha,
        "train_examples": len(job.train),
        "validation_examples": len(job.validation),
        "trained_tokens": fit.tokens,
        "best_epoch": fit.best_epoch,
        "history": fit.history,
        "seconds": round(fit.seconds, 3),
        "key": key,
    }


def _stored(target: Path, key: str) -> dict[str, Any] | None:
    try:
        record = json.loads((target / _RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    whole = isinstance(record, dict) and record.get("key") == key and isinstance(record.get("files"), dict)
    return record if whole and seal_holds(record) and first_changed(target, record["files"]) is None else None


def _store(adapter: Any, target: Path, record: dict[str, Any], base_model: str) -> dict[str, Any]:
    """Write the adapter's folder whole or not at all; returns the record that lies in it, with fingerprints of the rest."""
    config = adapter.peft_config["default"]
    config.base_model_name_or_path = public_name(base_model)
    config.target_modules = sorted(config.target_modules)  # a set, whose order changes from process to process
    with atomic_folder(target) as temporary:
        adapter.save_pretrained(temporary, save_embedding_layers=False)
        (temporary / "README.md").unlink(missing_ok=True)  # PEFT's empty model card
        record = sealed(record | {"files": fingerprints(temporary, [temporary])})
        (temporary / _RECORD).write_text(json.dumps(record, indent=1), encoding="utf-8")
    return record


def cluster_jobs(
    settings: DisentangleSettings,
    k: int,
    train: Sequence[tuple[int, Example]],
    validation: Sequence[tuple[int, Example]],
) -> list[AdapterJob]:
    """One job per cluster, from (cluster, example) pairs, and last the single LoRA of the same size on everything.

    A cluster without validation examples of its own is judged on all of them.
    """
    everything = [example for _, example in validation]
    jobs = []
    for index in range(k):
        own = [example for at, example in validation if at == index]
        mine = [example for at, example in train if at == index]
        jobs.append(AdapterJob(str(index), index, settings.rank, settings.alpha, mine, own or everything))
    all_train = [example for _, example in train]
    return [*jobs, AdapterJob("single", k, k * settings.rank, k * settings.alpha, all_train, everything)]
