"""Loading a causal language model and its tokenizer for generation or training."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from bdc.errors import InputError
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
    """No progress bars from transformers: loading takes a second or two, and bdc shows its own progress."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def load_model(path_or_name: str | Path, dtype: str | torch.dtype = "auto") -> tuple[Any, Any]:
    """(model, tokenizer), the model in eval mode on the GPU if there is one.

    Args:
        path_or_name: what `bdc.llm.resolve` takes.
        dtype: "auto" (see `auto_dtype`), "float32", "bfloat16", "float16", or a torch dtype.

    Raises:
        ModelNotFoundError: no source has the model.
        InputError: an unknown dtype, or a folder that holds no causal language model.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from bdc.llm.registry import resolve

    if isinstance(dtype, str):
        if dtype != "auto" and dtype not in DTYPES:
            raise InputError(f"Unknown dtype {dtype!r}; use auto, {', '.join(DTYPES)}.")
        dtype = auto_dtype() if dtype == "auto" else DTYPES[dtype]
    folder = resolve(path_or_name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        with quiet():
            model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{folder} does not load as a causal language model: {error}") from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    if torch.cuda.is_available():
        model.to("cuda")
    return model.eval(), tokenizer
