"""What can be said of a model's folder before anything is loaded, so that a bad one is refused before work begins."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from bdc.errors import InputError

Kind = Literal["causal", "encoder"]
KINDS = {"causal": "a causal language model", "encoder": "a text encoder"}

_TOKENIZERS = ("tokenizer.json", "*.model", "vocab.*", "*.tiktoken", "*.spm", "tekken.json")
_CAUSAL = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")


def is_folder(path: Path) -> bool:
    """As `Path.is_dir`, but false for a path that no file can have (too long, or not to be looked at)."""
    return os.path.isdir(path)  # noqa: PTH112


def check_folder(folder: Path, kind: Kind | None = None) -> None:
    """Check that a folder holds a whole model: configuration, weights and tokenizer.

    Args:
        kind: what it has to be, as far as its configuration tells.

    Raises:
        InputError: it does not; the message has the file and what to do.
    """
    config = read_json(folder / "config.json", folder)
    if not isinstance(config.get("model_type"), str):
        raise InputError(f"{folder / 'config.json'} names no model_type, so it is no configuration of a model.")
    for weights in _weights(folder):
        _check_weights(weights)
    if not any(any(folder.glob(pattern)) for pattern in _TOKENIZERS):
        raise InputError(f"{folder} has no tokenizer (tokenizer.json or the like); copy it beside the weights.")
    names = [name for name in config.get("architectures") or () if isinstance(name, str)]
    causal = any(name.endswith(_CAUSAL) for name in names)
    # A causal model with modules.json is one that was trained to embed (Sentence-Transformers).
    if names and ((kind == "causal" and not causal) or (kind == "encoder" and causal and not _embeds(folder))):
        raise InputError(f"{folder} is {names[0]}, which is not {KINDS[kind]}; name another model.")


def _embeds(folder: Path) -> bool:
    return (folder / "modules.json").is_file()


def read_json(path: Path, folder: Path) -> dict[str, Any]:
    """The object in a file of a model's folder.

    Raises:
        InputError: there is none.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{folder} is not a model folder: it has no {path.name}.") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not valid JSON; copy it again.") from error
    if not isinstance(value, dict):
        raise InputError(f"{path} holds {type(value).__name__}; a model's configuration is an object.")
    return value


def _weights(folder: Path) -> Iterator[Path]:
    """Every file that holds weights, one at least."""
    single = folder / "model.safetensors"
    index = folder / "model.safetensors.index.json"
    if single.exists():
        yield single
    elif index.exists():
        parts = read_json(index, folder).get("weight_map")
        names = set(parts.values()) if isinstance(parts, dict) else set()
        if not names or not all(isinstance(name, str) for name in names):
            raise InputError(f"{index} names no files of weights; copy it again.")
        yield from (folder / name for name in sorted(names))
    elif not any(folder.glob("*.safetensors")) and not any(folder.glob("pytorch_model*.bin")):
        raise InputError(f"{folder} holds no weights (model.safetensors); copy or fetch the whole model.")


def _check_weights(path: Path) -> None:
    """Compare a file's header with its length; the values are not read."""
    from safetensors import SafetensorError, safe_open

    try:
        with path.open("rb"), safe_open(path, "pt"):  # safetensors' own errors say "no such file" whatever the reason
            pass
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    except SafetensorError as error:
        raise InputError(f"{path} is cut or damaged ({error}); copy or fetch it again.") from error
