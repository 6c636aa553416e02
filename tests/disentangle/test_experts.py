from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bdc.disentangle import training
from bdc.disentangle.examples import encode
from bdc.disentangle.experts import AdapterJob, AdapterTrainer, cluster_jobs
from bdc.disentangle.settings import DisentangleSettings
from bdc.errors import BdcError, InputError
from bdc.llm import load_model

SETTINGS = DisentangleSettings(
    base_model="tiny", dtype="float32", rank=4, alpha=8.0, dropout=0.1, lr=5e-3, epochs=3, batch_size=2, seed=5
)


def job(tokenizer: Any, name: str = "0", rank: int = 4, alpha: float = 8.0) -> AdapterJob:
    rows = [
        encode(tokenizer, [{"role": "user", "content": f"say {i}"}], f"word {i % 3} " * (1 + i % 2)) for i in range(8)
    ]
    return AdapterJob(name, 0, rank, alpha, rows[:6], rows[6:])


def weights(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "adapter_model.safetensors")


def trained(tiny: Path, out: Path, settings: DisentangleSettings = SETTINGS) -> dict[str, Any]:
    model, tokenizer = load_model(tiny, "float32")
    return AdapterTrainer(model, tokenizer, settings, out).train(job(tokenizer))


@pytest.fixture(scope="module")
def reference(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("reference")
    return out / "0", trained(tiny, out)


def test_training_lowers_the_loss_and_keeps_the_best_epoch(reference: tuple[Path, dict[str, Any]]) -> None:
    _, record = reference
    losses = [epoch["validation"] for epoch in record["history"]]
    assert len(losses) == 3
    assert record["history"][-1]["train"] < record["history"][0]["train"] - 0.2
    assert losses[record["best_epoch"] - 1] == min(losses)


def test_the_stored_adapter_loads_in_peft_and_has_the_recorded_loss(
    tiny: Path, reference: tuple[Path, dict[str, Any]]
) -> None:
    from peft import PeftModel

    folder, record = reference
    model, tokenizer = load_model(tiny, "float32")
    model = PeftModel.from_pretrained(model, folder).eval()
    total, count = 0.0, 0
    for example in job(tokenizer).validation:
        ids = torch.tensor([example.prompt + example.response])
        logits = model(input_ids=ids).logits[0].log_softmax(-1)
        start = len(example.prompt)
        total -= float(sum(logits[start + i - 1, token] for i, token in enumerate(example.response)))
        count += len(example.response)
    best = record["history"][record["best_epoch"] - 1]["validation"]
    assert total / count == pytest.approx(best, rel=1e-5)


def test_every_linear_layer_is_adapted_but_not_the_head(reference: tuple[Path, dict[str, Any]]) -> None:
    names = {name.rsplit(".lora_", 1)[0].rsplit(".", 1)[1] for name in weights(reference[0])}
    assert names == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    config = json.loads((reference[0] / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["base_model_name_or_path"]) == (4, 8.0, "tiny")


def test_a_known_base_model_is_named_by_its_hub_id(tiny: Path, tmp_path: Path) -> None:
    trained(tiny, tmp_path, dataclasses.replace(SETTINGS, base_model="smollm2-135m-instruct", epochs=1))
    config = json.loads((tmp_path / "0" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "HuggingFaceTB/SmolLM2-135M-Instruct"


@pytest.mark.parametrize("at", [1, 3, 4, 8])
def test_killed_training_goes_on_to_the_same_bits(
    at: int, tiny: Path, tmp_path: Path, reference: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "_CHECKPOINT_SECONDS", -1.0)  # a checkpoint after every step
    steps = 0

    class Killed(BaseException):
        pass

    def die(_: str) -> None:
        nonlocal steps
        steps += 1
        if steps == at:
            raise Killed

    model, tokenizer = load_model(tiny, "float32")
    with pytest.raises(Killed):
        AdapterTrainer(model, tokenizer, SETTINGS, tmp_path).train(job(tokenizer), die)
    assert not (tmp_path / "0").exists()
    torch.manual_seed(at)  # the surroundings of the second process differ
    after: list[str] = []
    model, tokenizer = load_model(tiny, "float32")
    record = AdapterTrainer(model, tokenizer, SETTINGS, tmp_path).train(job(tokenizer), after.append)
    assert len(after) == 9 - (at - 1)
    assert record["history"] == reference[1]["history"]
    found, expected = weights(tmp_path / "0"), weights(reference[0])
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert not list(tmp_path.glob(".*"))


def test_a_finished_adapter_is_taken_as_it_is_and_other_settings_train_anew(
    tiny: Path, tmp_path: Path, reference: tuple[Path, dict[str, Any]]
) -> None:
    first = trained(tiny, tmp_path)
    stamp = (tmp_path / "0" / "adapter_model.safetensors").stat().st_mtime_ns
    assert trained(tiny, tmp_path) == first
    assert (tmp_path / "0" / "adapter_model.safetensors").stat().st_mtime_ns == stamp
    other = trained(tiny, tmp_path, dataclasses.replace(SETTINGS, epochs=1))
    assert len(other["history"]) == 1


def checkpointed(tiny: Path, out: Path) -> bytes:
    """A real checkpoint of unfinished training."""

    class Killed(BaseException):
        pass

    def die(_: str) -> None:
        nonlocal steps
        steps += 1
        if steps == 4:  # the first step after an epoch's end, where a checkpoint is written
            raise Killed

    steps = 0
    model, tokenizer = load_model(tiny, "float32")
    with pytest.raises(Killed):
        AdapterTrainer(model, tokenizer, SETTINGS, out).train(job(tokenizer), die)
    return (out / ".0.checkpoint.pt").read_bytes()


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: b"PK\x03\x04 torn",
        lambda data: b"\x80\x05garbage.",
        lambda data: os.urandom(3000),
        lambda data: data[:-1],
        lambda data: data[: len(data) // 2],
        lambda data: data[32:],
        lambda data: data[:5000] + b"?" + data[5001:],
        lambda data: data + b"\0",
    ],
)
def test_a_damaged_checkpoint_starts_that_job_anew(
    damage: Callable[[bytes], bytes], tiny: Path, tmp_path: Path, reference: tuple[Path, dict[str, Any]]
) -> None:
    data = checkpointed(tiny, tmp_path)
    (tmp_path / ".0.checkpoint.pt").write_bytes(damage(data))
    assert trained(tiny, tmp_path)["history"] == reference[1]["history"]
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("training.json", b"[]"),
        ("training.json", b"{"),
        ("training.json", b"[" * 100_000),
        ("training.json", b"{}"),
        ("adapter_model.safetensors", b"cut"),
        ("adapter_config.json", b"{}"),
        ("adapter_config.json", None),
    ],
)
def test_a_damaged_adapter_is_trained_anew(
    name: str, content: bytes | None, tiny: Path, tmp_path: Path, reference: tuple[Path, dict[str, Any]]
) -> None:
    shutil.copytree(reference[0], tmp_path / "0")
    (tmp_path / ".0.tmp").mkdir()  # what a kill while storing leaves
    if content is None:
        (tmp_path / "0" / name).unlink()
    else:
        (tmp_path / "0" / name).write_bytes(content)
    assert trained(tiny, tmp_path)["history"] == reference[1]["history"]
    found, expected = weights(tmp_path / "0"), weights(reference[0])
    assert all(torch.equal(found[part], expected[part]) for part in expected)


def test_the_base_model_is_left_as_it_was(tiny: Path, tmp_path: Path) -> None:
    model, tokenizer = load_model(tiny, "float32")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trainer = AdapterTrainer(model, tokenizer, dataclasses.replace(SETTINGS, epochs=1), tmp_path)
    trainer.train(job(tokenizer, "a"))
    trainer.train(job(tokenizer, "b", rank=8, alpha=16.0))
    after = trainer.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_single_adapter_has_the_size_of_all_experts_and_the_same_scale(tiny: Path) -> None:
    _, tokenizer = load_model(tiny, "float32")
    rows = job(tokenizer)
    train = [(i % 2, example) for i, example in enumerate(rows.train)]
    jobs = cluster_jobs(SETTINGS, 2, train, [(1, example) for example in rows.validation])
    assert [j.name for j in jobs] == ["0", "1", "single"]
    assert [len(j.train) for j in jobs] == [3, 3, 6]
    assert (jobs[2].rank, jobs[2].alpha / jobs[2].rank) == (8, SETTINGS.alpha / SETTINGS.rank)
    assert all(len(j.validation) == 2 for j in jobs)  # cluster 0 has none of its own


def test_divergence_is_an_error(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(BdcError, match="diverged"):
        trained(tiny, tmp_path, dataclasses.replace(SETTINGS, lr=1e30, max_grad_norm=1e30, warmup=0.0))


def test_divergence_in_the_only_step_is_an_error(tiny: Path, tmp_path: Path) -> None:
    model, tokenizer = load_model(tiny, "float32")
    settings = dataclasses.replace(SETTINGS, lr=1e30, max_grad_norm=1e30, warmup=0.0, epochs=1, batch_size=8)
    rows = job(tokenizer)
    with pytest.raises(BdcError, match="diverged"):
        AdapterTrainer(model, tokenizer, settings, tmp_path).train(dataclasses.replace(rows, validation=[]))


def test_memory_that_does_not_suffice_is_an_error(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def too_much(*_: object) -> None:
        torch.empty(2**55)

    monkeypatch.setattr(AdapterTrainer, "_nll", too_much)
    with pytest.raises(BdcError, match="needs more memory"):
        trained(tiny, tmp_path)


@pytest.mark.parametrize(
    ("targets", "reason"),
    [
        (("no_such",), "not found"),
        (("q_proj", "v_porj"), "no layer is called v_porj"),
        (("all-linear", "v_proj"), "no layer is called all-linear"),
        (("self_attn",), "not supported"),
        (("q_proj", "lm_head"), "lm_head is no linear layer of attention"),
        (("q_proj", "embed_tokens"), "embed_tokens is no linear layer"),
    ],
)
def test_target_modules_that_do_not_fit_are_an_input_error(
    targets: tuple[str, ...], reason: str, tiny: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=rf"target_modules = .* does not fit .*{reason}"):
        trained(tiny, tmp_path, dataclasses.replace(SETTINGS, target_modules=targets))


def test_experts_that_are_no_layers_are_refused_before_training(tiny: Path, tmp_path: Path) -> None:
    from transformers import MixtralConfig, MixtralForCausalLM

    _, tokenizer = load_model(tiny, "float32")
    sizes = {"hidden_size": 16, "intermediate_size": 8, "num_hidden_layers": 1, "num_local_experts": 2}
    model = MixtralForCausalLM(MixtralConfig(vocab_size=300, num_attention_heads=2, num_key_value_heads=2, **sizes))
    settings = dataclasses.replace(SETTINGS, dropout=0.0, target_modules=("all-linear",))
    with pytest.raises(InputError, match=r"does not fit .*parameters without a linear layer"):
        AdapterTrainer(model, tokenizer, settings, tmp_path).train(job(tokenizer))


def test_the_config_of_an_adapter_has_its_layers_in_order(tiny: Path, tmp_path: Path) -> None:
    trained(tiny, tmp_path, dataclasses.replace(SETTINGS, target_modules=("v_proj", "q_proj", "down_proj", "k_proj")))
    (path,) = tmp_path.rglob("adapter_config.json")
    assert json.loads(path.read_text())["target_modules"] == ["down_proj", "k_proj", "q_proj", "v_proj"]


def test_a_model_whose_layers_are_transposed_is_refused_before_training(tiny: Path, tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    _, tokenizer = load_model(tiny, "float32")
    model = GPT2LMHeadModel(GPT2Config(vocab_size=300, n_embd=16, n_layer=1, n_head=2))
    with pytest.raises(InputError, match="c_attn is no linear layer"):
        AdapterTrainer(model, tokenizer, SETTINGS, tmp_path).train(job(tokenizer))


def test_layers_may_be_named_by_longer_endings(tiny: Path, tmp_path: Path) -> None:
    trained(tiny, tmp_path, dataclasses.replace(SETTINGS, epochs=1, target_modules=("0.self_attn.q_proj", "up_proj")))
    assert sorted({name.split(".lora_")[0] for name in weights(tmp_path / "0")}) == [
        "base_model.model.model.layers.0.mlp.up_proj",
        "base_model.model.model.layers.0.self_attn.q_proj",
        "base_model.model.model.layers.1.mlp.up_proj",
    ]
