"""Folders of models that are cut, damaged, of the other kind, or at odds with themselves."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bdc.errors import InputError
from bdc.llm import SentenceEncoder, load_model, resolve

Damage = Callable[[Path], Any]


def weights(change: Callable[[bytes], bytes]) -> Damage:
    def damage(folder: Path) -> None:
        path = folder / "model.safetensors"
        path.write_bytes(change(path.read_bytes()))

    return damage


def written(name: str, text: str) -> Damage:
    return lambda folder: (folder / name).write_text(text, encoding="utf-8")


def configured(**changes: Any) -> Damage:
    def damage(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes), encoding="utf-8")

    return damage


def removed(pattern: str) -> Damage:
    return lambda folder: [path.unlink() for path in folder.glob(pattern)]


def sharded(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    shards = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}), encoding="utf-8")


# Found without loading anything, so before a search begins.
DAMAGED = {
    "cut weights": (weights(lambda data: data[:-500]), "model.safetensors is cut or damaged"),
    "cut header": (weights(lambda data: data[:40]), "model.safetensors is cut or damaged"),
    "empty weights": (weights(lambda _: b""), "model.safetensors is cut or damaged"),
    "garbage": (weights(lambda _: os.urandom(4000)), "model.safetensors is cut or damaged"),
    "no weights": (removed("*.safetensors"), "holds no weights"),
    "a folder as weights": (
        lambda folder: (removed("*.safetensors")(folder), (folder / "model.safetensors").mkdir()),
        "Is a directory",
    ),
    "a shard too few": (sharded, "model-00002-of-00002.safetensors cannot be read: No such file"),
    "no configuration": (removed("config.json"), "has no config.json"),
    "configuration of another kind": (written("config.json", "[]"), "config.json holds list"),
    "configuration that is no JSON": (written("config.json", "{"), "config.json is not valid JSON"),
    "deep configuration": (written("config.json", "[" * 100_000), "config.json is not valid JSON"),
    "configuration of nothing": (written("config.json", "{}"), "names no model_type"),
    "no tokenizer": (removed("tokenizer*"), "has no tokenizer"),
}
# Found by loading.
UNFIT = {
    "unknown architecture": (configured(model_type="nosuch"), "does not load as"),
    "code of its own": (
        configured(
            model_type="nosuch",
            auto_map={name: f"own.{name}" for name in ("AutoConfig", "AutoModel", "AutoModelForCausalLM")},
        ),
        "needs Python code of its own (auto_map), which bdc does not run; name another model",
    ),
    "no heads": (configured(num_attention_heads=0), "does not load as"),
    "wrong type": (configured(hidden_size="wide"), "does not load as"),
    "other size": (configured(hidden_size=48), "has shape"),
    "a layer too few": (configured(num_hidden_layers=4), "is missing"),
    "garbage as tokenizer": (written("tokenizer.json", "nonsense"), "does not load as"),
    "settings of the tokenizer": (written("tokenizer_config.json", "[]"), "does not load as"),
}


@pytest.fixture(params=["causal", "encoder"])
def model(
    request: pytest.FixtureRequest, tmp_path: Path, tiny: Path, tiny_encoder: Path
) -> tuple[Path, Callable[[Path], Any]]:
    """A folder to damage, and what loads it."""
    source, load = (tiny, load_model) if request.param == "causal" else (tiny_encoder, SentenceEncoder)
    return Path(shutil.copytree(source, tmp_path / "model")), load


@pytest.mark.parametrize(("damage", "words"), DAMAGED.values(), ids=list(DAMAGED))
def test_damage_is_found_before_anything_is_loaded(damage: Damage, words: str, model: tuple[Path, Any]) -> None:
    assert resolve(model[0]) == model[0]
    damage(model[0])
    with pytest.raises(InputError, match=str(model[0])) as caught:
        resolve(model[0])
    assert words in str(caught.value)


@pytest.mark.parametrize(("damage", "words"), UNFIT.values(), ids=list(UNFIT))
def test_models_at_odds_with_themselves_are_refused(
    damage: Damage, words: str, model: tuple[Path, Callable[[Path], Any]], capfd: pytest.CaptureFixture[str]
) -> None:
    folder, load = model
    damage(folder)
    with pytest.raises(InputError, match=str(folder)) as caught:
        load(folder)
    assert words in str(caught.value) and len(str(caught.value)) < 700
    assert capfd.readouterr() == ("", "")  # transformers' reports would hide the one line


def test_each_kind_is_wanted_for_what_it_is(tiny: Path, tiny_encoder: Path) -> None:
    with pytest.raises(InputError, match="is BertModel, which is not a causal language model"):
        load_model(tiny_encoder)
    with pytest.raises(InputError, match="is LlamaForCausalLM, which is not a text encoder"):
        SentenceEncoder(tiny)


@pytest.mark.parametrize("template", ["{% for x in %}", "{{ raise_exception('no') }}"])
def test_a_chat_template_that_does_not_work_is_named(template: str, tiny: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny, tmp_path / "model"))
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    with pytest.raises(InputError, match=r"chat template of .*model does not work"):
        load_model(folder)


@pytest.mark.parametrize("text", ["[]", "{", '{"max_seq_length": "x"}', '{"max_seq_length": -1}'])
def test_an_odd_limit_of_texts_is_named(text: str, tiny_encoder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_encoder, tmp_path / "model"))
    (folder / "sentence_bert_config.json").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=str(folder)):
        SentenceEncoder(folder)
