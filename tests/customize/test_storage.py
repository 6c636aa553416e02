from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bdc.customize.stacks import Stack, stack_adapters
from bdc.customize.storage import SolverParts
from bdc.errors import InputError, StaleArtifactError


@pytest.fixture
def folder(parts: SolverParts, tmp_path: Path) -> Path:
    parts.save(tmp_path / "solver")
    return tmp_path / "solver"


def test_stack_puts_experts_in_blocks(adapters: list[Path]) -> None:
    from safetensors.torch import load_file

    stack = stack_adapters(adapters)
    assert (stack.k, stack.rank, stack.scaling) == (3, 4, 2.0)
    assert stack.modules == sorted(stack.modules, key=lambda name: int(name.split(".")[2]))
    for index, adapter in enumerate(adapters):
        own = load_file(adapter / "adapter_model.safetensors")
        rows = slice(4 * index, 4 * index + 4)
        for name in stack.modules:
            assert torch.equal(stack.lora_a[name][rows], own[f"base_model.model.{name}.lora_A.weight"])
            assert torch.equal(stack.lora_b[name][:, rows], own[f"base_model.model.{name}.lora_B.weight"])


def test_layers_are_in_numerical_order() -> None:
    from bdc.customize.stacks import _natural

    names = ["model.layers.10.a", "model.layers.2.b", "model.layers.2.a"]
    assert sorted(names, key=_natural) == ["model.layers.2.a", "model.layers.2.b", "model.layers.10.a"]


def test_adapters_that_differ_are_refused(adapters: list[Path], tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(adapters[1], other)
    config = json.loads((other / "adapter_config.json").read_text())
    (other / "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": 99}))
    with pytest.raises(InputError, match="other differs"):
        stack_adapters([adapters[0], other])
    (other / "adapter_config.json").write_text(json.dumps(config | {"use_dora": True}))
    with pytest.raises(InputError, match="use_dora"):
        stack_adapters([other])
    with pytest.raises(InputError, match="nowhere"):
        stack_adapters([tmp_path / "nowhere"])
    with pytest.raises(InputError, match="no adapters"):
        stack_adapters([])


def changed(adapter: Path, out: Path, config: Any = None, tensors: Any = None) -> Path:
    """A copy of an adapter after ``config`` and ``tensors`` made other ones of what its files hold."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(adapter, out)
    if config is not None:
        found = json.loads((out / "adapter_config.json").read_text())
        (out / "adapter_config.json").write_text(json.dumps(config(found)))
    if tensors is not None:
        save_file(tensors(load_file(out / "adapter_model.safetensors")), out / "adapter_model.safetensors")
    return out


@pytest.mark.parametrize(
    ("config", "tensors"),
    [
        (lambda c: [c], None),
        (lambda c: c | {"r": 8}, None),
        (lambda c: c | {"r": "4"}, None),
        (lambda c: {name: value for name, value in c.items() if name != "r"}, None),
        (lambda c: c | {"lora_alpha": None}, None),
        (lambda c: c | {"lora_alpha": 0}, None),
        (lambda c: c | {"alora_invocation_tokens": [1, 2]}, None),
        (lambda c: c | {"layer_replication": [[0, 1], [0, 1]]}, None),
        (lambda c: c | {"use_qalora": True}, None),
        (lambda c: c | {"target_parameters": ["experts.gate"]}, None),
        (None, lambda t: {}),
        (None, lambda t: dict(sorted(t.items())[1:])),
        (None, lambda t: {name: tensor.flatten() for name, tensor in t.items()}),
        (None, lambda t: {name: tensor[:3].clone() for name, tensor in t.items()}),
        (None, lambda t: {name: tensor / 0 for name, tensor in t.items()}),
    ],
)
def test_an_adapter_that_is_not_what_it_should_be_is_refused(
    adapters: list[Path], tmp_path: Path, config: Any, tensors: Any
) -> None:
    folder = changed(adapters[0], tmp_path / "changed", config, tensors)
    with pytest.raises(InputError, match=r"changed (is no|does not hold)"):
        stack_adapters([folder])


def test_adapters_of_layers_of_other_widths_are_refused(adapters: list[Path], tmp_path: Path) -> None:
    def wider(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name: torch.randn(4, 99) if "lora_A" in name else tensor for name, tensor in tensors.items()}

    with pytest.raises(InputError, match="wider differs"):
        stack_adapters([adapters[0], changed(adapters[1], tmp_path / "wider", tensors=wider)])


def test_missing_tensors_are_an_input_error(parts: SolverParts) -> None:
    fields = {"k": 3, "rank": 4, "alpha": 8.0, "target_modules": ("q_proj",)}
    with pytest.raises(InputError, match="lora_A"):
        Stack.from_tensors({}, ["model.x"], **fields)


@pytest.mark.parametrize("name", ["experts.safetensors", "hypernetwork.safetensors", "centroids.safetensors"])
def test_changed_and_missing_files_are_refused(folder: Path, name: str) -> None:
    data = bytearray((folder / name).read_bytes())
    data[-1] ^= 1
    (folder / name).write_bytes(data)
    said = f"{name} is missing or does not match"
    with pytest.raises(InputError, match=said):
        SolverParts.load(folder)
    (folder / name).unlink()
    with pytest.raises(InputError, match=said):
        SolverParts.load(folder)


def test_other_formats_and_foreign_folders_are_refused(folder: Path, tmp_path: Path) -> None:
    config = json.loads((folder / "bdc_config.json").read_text())
    (folder / "bdc_config.json").write_text(json.dumps(config | {"format": 99}))
    with pytest.raises(StaleArtifactError, match="format 99"):
        SolverParts.load(folder)
    for text in (b"{", b"\xff", b"[]"):
        (folder / "bdc_config.json").write_bytes(text)
        with pytest.raises(InputError, match=r"bdc_config.json holds no JSON"):
            SolverParts.load(folder)
    with pytest.raises(InputError, match="no solver folder"):
        SolverParts.load(tmp_path / "nowhere")


def test_saving_replaces_a_folder_and_leaves_nothing_behind(folder: Path, parts: SolverParts) -> None:
    (folder / "stale").write_text("x")
    parts.save(folder)
    names = {path.name for path in folder.iterdir()}
    assert names == {"bdc_config.json", "experts.safetensors", "hypernetwork.safetensors", "centroids.safetensors"}
    assert [path.name for path in folder.parent.iterdir()] == ["solver"]


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda c: c.update(k=2), "k or rank"),
        (lambda c: c.update(rank=2), "k or rank"),
        (lambda c: c.update(rank=0), "bdc_config.json"),
        (lambda c: c.update(k=6, rank=2, alpha=4.0), "networks"),
        (lambda c: c.update(alpha=80.0), "scaling"),
        (lambda c: c.update(alpha="8"), "bdc_config.json does not describe"),
        (lambda c: c.update(scaling=7.0), "scaling"),
        (lambda c: c.pop("scaling"), "scaling"),
        (lambda c: c.pop("base_model"), "base_model"),
        (lambda c: c.pop("encoder"), "encoder"),
        (lambda c: c.pop("record"), "record"),
        (lambda c: c.update(base_model=5), "base_model"),
        (lambda c: c.update(target_modules="q_proj"), "target_modules"),
        (lambda c: c["modules"].pop(), "28 tensors for 13 modules"),
        (lambda c: c["networks"]["hypernetwork"].update(k=4, rank=3), "networks|bdc_config.json does not describe"),
        (lambda c: c["networks"]["hypernetwork"].update(weighting="foo"), "networks"),
        (lambda c: c.update(files={}), "files"),
        (lambda c: c.update(files=[]), "bdc_config.json does not describe"),
        (lambda c: c.pop("k"), r"bdc_config.json does not describe .*'k'"),
    ],
)
def test_a_config_that_does_not_fit_the_tensors_is_refused(
    folder: Path, edit: Callable[[dict[str, Any]], None], words: str
) -> None:
    config = json.loads((folder / "bdc_config.json").read_text())
    edit(config)
    (folder / "bdc_config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=words):
        SolverParts.load(folder)
