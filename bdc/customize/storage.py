"""The solver's folder: bdc_config.json, stacked experts, centroids, hypernetwork (and those of ablations)."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import numpy as np

from bdc.artefacts import atomic_folder, fingerprints, first_changed
from bdc.customize.customizer import MAIN, Customizer, Encoder, network_scaling
from bdc.customize.hypernetwork import Hypernetwork, HypernetworkConfig
from bdc.customize.settings import Weighting
from bdc.customize.stacks import Stack
from bdc.errors import InputError, StaleArtifactError, needs_extra
from bdc.llm.registry import lasting_name

FORMAT = 1
CONFIG = "bdc_config.json"
EXPERTS, CENTROIDS = "experts.safetensors", "centroids.safetensors"


@dataclass(frozen=True, slots=True)
class SolverParts:
    """All of a solver but the base model and the encoder, which are named.

    ``networks`` are the hypernetwork and those of ablations, by name; ``centroids`` is
    float32 [K, d]; ``record`` is free for where the solver came from. Names that are local folders become absolute.
    """

    base_model: str
    stack: Stack
    encoder: str | None = None
    networks: dict[str, Hypernetwork] = field(default_factory=dict)
    centroids: np.ndarray | None = None
    record: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "base_model", lasting_name(self.base_model))
        if self.encoder is not None:
            object.__setattr__(self, "encoder", lasting_name(self.encoder))

    def customizer(self, encoder: Encoder | None = None) -> Customizer:
        """What gives requests their rank weights; the encoder is the one that is named here, loaded."""
        stack = self.stack
        return Customizer(
            len(stack.modules),
            stack.k,
            stack.rank,
            stack.scaling,
            networks=self.networks,
            centroids=self.centroids,
            encoder=encoder,
        )

    @needs_extra("run")
    def save(self, folder: Path) -> None:
        """Write the folder whole or not at all; one that is there is replaced.

        Raises:
            InputError: it cannot be written.
            MissingExtraError: safetensors is not installed.
        """
        from safetensors.numpy import save_file as save_numpy
        from safetensors.torch import save_file

        with atomic_folder(folder) as temporary:
            save_file(self.stack.tensors(), temporary / EXPERTS)
            for name, network in self.networks.items():
                save_file(network.state_dict(), temporary / f"{name}.safetensors")
            if self.centroids is not None:
                save_numpy({"centroids": np.ascontiguousarray(self.centroids)}, temporary / CENTROIDS)
            files = fingerprints(temporary, [temporary])
            (temporary / CONFIG).write_text(json.dumps(self._config(files), indent=1), encoding="utf-8")

    def _config(self, files: dict[str, str]) -> dict[str, Any]:
        stack = self.stack
        return {
            "format": FORMAT,
            "base_model": self.base_model,
            "encoder": self.encoder,
            "k": stack.k,
            "rank": stack.rank,
            "alpha": stack.alpha,
            "scaling": _scaling(stack, self.networks),
            "target_modules": list(stack.target_modules),
            "modules": stack.modules,
            "networks": {name: network.config.to_json() for name, network in self.networks.items()},
            "files": files,
            "record": self.record or {},
        }

    @classmethod
    @needs_extra("run")
    def load(cls, folder: Path) -> SolverParts:
        """Read and verify a solver's folder.

        Raises:
            StaleArtifactError: another format version wrote it.
            InputError: a file is missing, unreadable, or not the one that the config was written with, or the config does
                not describe what the files hold.
            MissingExtraError: safetensors is not installed.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load_file as load_numpy
        from safetensors.torch import load_file

        try:
            config = _read_config(folder)
            if config["format"] != FORMAT:
                raise StaleArtifactError(
                    f"{folder} has solver format {config['format']} and this bdc reads format {FORMAT}; "
                    "run `bdc customize` again"
                )
            if (name := first_changed(folder, config["files"])) is not None:
                raise InputError(f"{folder / name} is missing or does not match {CONFIG}; copy it again")
            sizes = {name: config[name] for name in ("k", "rank", "alpha")}
            stack = Stack.from_tensors(
                load_file(folder / EXPERTS),
                config["modules"],
                **sizes,
                target_modules=tuple(config["target_modules"]),
            )
            networks = {}
            for name, form in config["networks"].items():
                networks[name] = network = Hypernetwork(HypernetworkConfig(**form))
                network.load_state_dict(load_file(folder / f"{name}.safetensors"))
                network.requires_grad_(False)
            centroids = load_numpy(folder / CENTROIDS)["centroids"] if CENTROIDS in config["files"] else None
            if wrong := _wrong(config, stack, networks, centroids):
                raise InputError(f"{folder / CONFIG} does not fit the solver's tensors in {wrong[0]}; copy it again")
            return cls(config["base_model"], stack, config["encoder"], networks, centroids, config["record"])
        except FileNotFoundError as error:
            raise InputError(f"{folder} is no solver folder: {error.filename} does not exist") from error
        except InputError:
            raise
        except (
            OSError,
            ValueError,
            LookupError,
            TypeError,
            AttributeError,
            ArithmeticError,
            RuntimeError,
            SafetensorError,
        ) as error:
            reason = " ".join(f"{error!r}".split())
            raise InputError(
                f"{folder / CONFIG} does not describe the solver beside it ({reason:.200}); run `bdc customize` again"
            ) from error


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{folder / CONFIG} holds no JSON ({error}); run `bdc customize` again") from error
    if not isinstance(config, dict):
        raise InputError(f"{folder / CONFIG} holds no JSON object; run `bdc customize` again")
    return config


def foreign_file(folder: Path) -> str | None:
    """The first entry of a folder that is no part of the solver in it, or None."""
    try:
        own = {CONFIG, *_read_config(folder)["files"]}
    except (OSError, InputError, KeyError, TypeError):
        own = set()
    return min((path.name for path in folder.iterdir() if path.name not in own), default=None)


def _scaling(stack: Stack, networks: dict[str, Hypernetwork]) -> float:
    main = networks.get(MAIN)
    return stack.scaling if main is None else network_scaling(main, stack.scaling)


def _wrong(
    config: dict[str, Any], stack: Stack, networks: dict[str, Hypernetwork], centroids: np.ndarray | None
) -> list[str]:
    """The entries of a config that contradict the tensors."""
    ranks, shape = stack.k * stack.rank, (len(stack.modules), stack.k, stack.rank)
    names, forms = config["target_modules"], [network.config for network in networks.values()]
    tensors = {EXPERTS, *(f"{name}.safetensors" for name in networks)}
    dims = {form.embedding_dim for form in forms} | ({centroids.shape[1]} if centroids is not None else set())
    right = {
        "base_model": isinstance(config["base_model"], str),
        "encoder": isinstance(config["encoder"], str | None),
        "record": isinstance(config["record"], dict | None),
        "target_modules": isinstance(names, list) and all(isinstance(name, str) for name in names),
        "files": tensors <= config["files"].keys(),
        "k or rank": all(a.shape[0] == ranks == stack.lora_b[m].shape[1] for m, a in stack.lora_a.items()),
        "scaling": math.isclose(config["scaling"], _scaling(stack, networks)),
        "networks": all(
            (form.layers, form.k, form.rank) == shape and form.weighting in get_args(Weighting) for form in forms
        ),
        "centroids": len(dims) <= 1 and (centroids is None or len(centroids) == stack.k),
    }
    return [name for name, fits in right.items() if not fits]
