"""PEFT adapters stacked into one per layer: A [K*r, d_in], B [d_out, K*r], expert k in rows k*r .. (k+1)*r."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from bdc.artefacts import describe_os_error
from bdc.errors import InputError, needs_extra
from bdc.llm.catalogue import public_name

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
# Other starts of PEFT's change the base weights, so that an adapter is no difference to the base model alone.
_STARTS = (True, False, None, "gaussian", "orthogonal", "eva")
# Fields that make of A and B something else than scaling * B A beside their layer, once each.
_SPECIAL = (
    "use_rslora",
    "use_dora",
    "use_qalora",
    "use_bdlora",
    "fan_in_fan_out",
    "rank_pattern",
    "alpha_pattern",
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "monteclora_config",
    "layer_replication",
    "lora_bias",
    "target_parameters",
    "trainable_token_indices",
)
_KEY = re.compile(re.escape(_PREFIX) + r"(?P<module>.+)\.lora_(?P<part>[AB])\.weight")


@dataclass(frozen=True, slots=True)
class Stack:
    """K experts of the same rank on the same layers; tensors float32 by module name, in the model's order of layers."""

    lora_a: dict[str, Tensor]
    lora_b: dict[str, Tensor]
    k: int
    rank: int
    alpha: float
    target_modules: tuple[str, ...]

    @property
    def modules(self) -> list[str]:
        return list(self.lora_a)

    @property
    def scaling(self) -> float:
        return self.alpha / self.rank

    def delta(self, module: str, index: int) -> Tensor:
        """One expert's change of a layer's weight, alpha / r * B A, float32 [d_out, d_in]."""
        rows = slice(index * self.rank, (index + 1) * self.rank)
        return self.scaling * self.lora_b[module][:, rows] @ self.lora_a[module][rows]

    def folded(self, weights: Tensor) -> dict[str, Tensor]:
        """A of one request, [K * r, d_in] by module: its rank weights [L, K, r] (or [L, K * r]) multiplied into the experts'."""
        gates = weights.flatten(1).unsqueeze(2)
        return {module: gate * self.lora_a[module] for module, gate in zip(self.modules, gates, strict=True)}

    def tensors(self) -> dict[str, Tensor]:
        """What experts.safetensors holds."""
        both = {f"{m}.lora_A": a for m, a in self.lora_a.items()} | {f"{m}.lora_B": b for m, b in self.lora_b.items()}
        return {name: tensor.contiguous() for name, tensor in both.items()}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor], modules: Sequence[str], **fields: Any) -> Stack:
        """The inverse of :meth:`tensors`.

        Raises:
            InputError: a module's tensors are missing, or there are those of other modules.
        """
        try:
            lora_a = {m: tensors[f"{m}.lora_A"] for m in modules}
            lora_b = {m: tensors[f"{m}.lora_B"] for m in modules}
        except KeyError as error:
            raise InputError(f"the stacked experts have no tensor {error}; run `bdc customize` again") from error
        if len(tensors) != 2 * len(lora_a):
            raise InputError(
                f"the stacked experts have {len(tensors)} tensors for {len(lora_a)} modules; copy them again"
            )
        return cls(lora_a, lora_b, **fields)


@needs_extra("run")
def stack_adapters(folders: Sequence[Path]) -> Stack:
    """Stack PEFT LoRA adapters, in the given order.

    Raises:
        InputError: an adapter is missing, is no plain LoRA, or differs from the first in rank, alpha or layers.
        MissingExtraError: safetensors is not installed.
    """
    if not folders:
        raise InputError("no adapters to stack; run `bdc disentangle` first")
    configs, parts = zip(*(_read(folder) for folder in folders), strict=True)
    first = configs[0]
    modules = sorted({module for module, _ in parts[0]}, key=_natural)
    # A pattern, or endings that hold for some layers only, would have to be applied again: name the layers themselves.
    by_name = isinstance(first.get("target_modules"), list) and not first.get("layers_to_transform")
    shapes = [{name: tensor.shape for name, tensor in tensors.items()} for tensors in parts]
    for folder, config, own in zip(folders, configs, shapes, strict=True):
        if (config["r"], config["lora_alpha"], own) != (first["r"], first["lora_alpha"], shapes[0]):
            raise InputError(
                f"{folder} differs from {folders[0]} in rank, alpha or layers; run `bdc disentangle` again"
            )
    return Stack(
        {m: torch.cat([tensors[m, "A"] for tensors in parts], dim=0) for m in modules},
        {m: torch.cat([tensors[m, "B"] for tensors in parts], dim=1) for m in modules},
        k=len(folders),
        rank=first["r"],
        alpha=float(first["lora_alpha"]),
        target_modules=tuple(sorted(first["target_modules"]) if by_name else modules),
    )


def _read(folder: Path) -> tuple[dict[str, Any], dict[tuple[str, str], Tensor]]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        config = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
        tensors = load_file(folder / _WEIGHTS)
        if not isinstance(config, dict):
            raise ValueError("adapter_config.json holds no object")
    except (OSError, ValueError, SafetensorError) as error:
        raise InputError(f"{folder} is no readable PEFT adapter ({error}); run `bdc disentangle` again") from error
    special = [name for name in _SPECIAL if config.get(name)]
    if config.get("init_lora_weights") not in _STARTS:
        special.append(f"init_lora_weights={config['init_lora_weights']}")
    if config.get("peft_type") != "LORA" or special or config.get("bias", "none") != "none":
        raise InputError(
            f"{folder} is no plain LoRA adapter ({special or config.get('peft_type')}); only these can be stacked"
        )
    parts = {}
    for name, tensor in tensors.items():
        match = _KEY.fullmatch(name)
        if match is None:
            raise InputError(f"{folder} adapts {name}, which is no linear layer's LoRA; only these can be stacked")
        parts[match["module"], match["part"]] = tensor.float()
    rank, alpha = config.get("r"), config.get("lora_alpha")
    pairs = {(module, part) for module, _ in parts for part in "AB"}
    whole = parts.keys() == pairs and all(
        tensor.dim() == 2 and tensor.shape["AB".index(part)] == rank for (_, part), tensor in parts.items()
    )
    if not parts or not whole or not isinstance(alpha, int | float) or alpha == 0:
        raise InputError(
            f"{folder} does not hold A and B of rank {rank} and alpha {alpha} for each layer; "
            "run `bdc disentangle` again"
        )
    damaged = next((".".join(key) for key, tensor in parts.items() if not tensor.isfinite().all()), None)
    if damaged is not None:
        raise InputError(f"{folder} does not hold finite numbers in {damaged}; run `bdc disentangle` again")
    return config, parts


def _natural(name: str) -> list[tuple[int, str]]:
    """Sort key that puts layer 2 before layer 10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in name.split(".")]


@needs_extra("run")
def write_adapter(
    folder: Path,
    lora_a: dict[str, Tensor],
    lora_b: dict[str, Tensor],
    scaling: float,
    target_modules: Sequence[str],
    base_model: str,
) -> None:
    """Write a plain PEFT LoRA of A [R, d_in] and B [d_out, R] per module, applied with ``scaling``.

    Raises:
        InputError: the folder cannot be written.
        MissingExtraError: peft or safetensors is not installed.
    """
    from peft import LoraConfig
    from safetensors.torch import save_file

    rank = next(iter(lora_a.values())).shape[0]
    config = LoraConfig(
        r=rank,
        lora_alpha=scaling * rank,  # type: ignore[arg-type]
        target_modules=list(target_modules),
        task_type="CAUSAL_LM",
        base_model_name_or_path=public_name(base_model),
        inference_mode=True,
    )
    config.target_modules = sorted(target_modules)  # PEFT keeps a set, whose order changes from process to process
    named = {f"{_PREFIX}{m}.lora_A.weight": a for m, a in lora_a.items()}
    named |= {f"{_PREFIX}{m}.lora_B.weight": b for m, b in lora_b.items()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=".", dir=folder) as staged:  # a kill leaves no half adapter
            save_file({name: tensor.contiguous() for name, tensor in named.items()}, Path(staged, _WEIGHTS))
            config.save_pretrained(staged)
            for name in (_WEIGHTS, _CONFIG):
                Path(staged, name).replace(folder / name)
    except OSError as error:
        raise InputError(f"{folder} cannot be written: {describe_os_error(error)}") from error
