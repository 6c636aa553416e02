"""Loading a causal language model and its tokenizer for generation or training."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from bdc.errors import InputError, needs_extra
from bdc.llm.chat import encode_chat
from bdc.llm.folders import KINDS
from bdc.machine import cpu_field

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def auto_dtype() -> torch.dtype:
    """bfloat16 where the machine multiplies it natively (a GPU, AVX-512 BF16, AMX), else float32.

    Elsewhere a CPU's bfloat16 products are several times slower than its float32 ones.
    """
    if torch.cuda.is_available():
        return torch.bfloat16
    return torch.bfloat16 if set((cpu_field("flags") or "").split()) & {"avx512_bf16", "amx_bf16"} else torch.float32


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No progress bars and warnings from transformers: bdc shows its own progress, and checks what it loads."""
    from transformers.utils import logging

    shown, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if shown:
            logging.enable_progress_bar()


def load_folder(auto: Any, folder: Path, what: str, dtype: torch.dtype, unused: str = "") -> tuple[Any, Any]:
    """(model in eval mode, tokenizer), every weight of the model read from the folder.

    Args:
        auto: the transformers class that loads it.
        what: "a causal language model" or whatever it should be.
        unused: beginning of the names of weights that may be missing.

    Raises:
        InputError: it does not load, or lacks weights; transformers would make up those.
    """
    from transformers import AutoTokenizer

    # Else transformers asks on the terminal whether to run the folder's own code.
    local = {"trust_remote_code": False, "local_files_only": True}
    options = local | {"ignore_mismatched_sizes": True, "output_loading_info": True}
    try:
        with quiet():
            tokenizer: Any = AutoTokenizer.from_pretrained(folder, **local)
            model, info = auto.from_pretrained(folder, dtype=dtype, **options)
    # transformers, tokenizers, safetensors and huggingface_hub raise their own and Python's errors for one cause.
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        if "trust_remote_code" in reason:
            raise InputError(
                f"{folder} needs Python code of its own (auto_map), which bdc does not run; name another model"
            ) from error
        raise InputError(f"{folder} does not load as {what}: {reason:.300}") from error
    wrong = [f"{name} has shape {list(there)}, not {list(wanted)}" for name, there, wanted in info["mismatched_keys"]]
    wrong += [f"{name} is missing" for name in info["missing_keys"] if not unused or not name.startswith(unused)]
    if wrong:
        raise InputError(f"{folder} does not hold {what} as its config.json describes it: {min(wrong)}")
    return model.eval(), tokenizer


@needs_extra("run")
def load_model(path_or_name: str | Path, dtype: str | torch.dtype = "auto") -> tuple[Any, Any]:
    """(model, tokenizer), the model in eval mode on the GPU if there is one.

    Args:
        path_or_name: what `bdc.llm.resolve` takes.
        dtype: "auto" (see `auto_dtype`), "float32", "bfloat16", "float16", or a torch dtype.

    Raises:
        ModelNotFoundError: no source has the model.
        InputError: an unknown dtype, a folder that holds no causal language model, or one that `generate` cannot run.
        MissingExtraError: a package of the extra `run` is not installed.
    """
    from transformers import AutoModelForCausalLM

    from bdc.llm.attention import check_attention
    from bdc.llm.registry import resolve

    if isinstance(dtype, str):
        if dtype != "auto" and dtype not in DTYPES:
            raise InputError(f"Unknown dtype {dtype!r}; use auto, {', '.join(DTYPES)}.")
        dtype = auto_dtype() if dtype == "auto" else DTYPES[dtype]
    folder = resolve(path_or_name, kind="causal")
    model, tokenizer = load_folder(AutoModelForCausalLM, folder, KINDS["causal"], dtype)
    check_attention(model)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.pad_token_id is None:
        raise InputError(
            f"{folder}: the tokenizer names no end-of-text token (eos_token), which training and answers need"
        )
    encode_chat(tokenizer, [{"role": "user", "content": "x"}])  # a chat template that cannot be used is found here
    if torch.cuda.is_available():
        model.to("cuda")
    return model, tokenizer
