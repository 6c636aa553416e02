"""Language models: the `LLM` protocol, its backends, the batched generator, encoders, and where weights come from."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from bdc.errors import needs_extra
from bdc.llm.base import LLM, Completion, Message, Request

if TYPE_CHECKING:
    from bdc.llm.encoders import SentenceEncoder
    from bdc.llm.generate import Generation
    from bdc.llm.loading import load_model
    from bdc.llm.local import Local
    from bdc.llm.openai import OpenAICompatible
    from bdc.llm.registry import fetch, list_models, resolve
    from bdc.llm.vllm import VLLM

# Backends load on first use: each needs packages that the others do not.
_LAZY = {
    "Generation": "generate",
    "Local": "local",
    "OpenAICompatible": "openai",
    "SentenceEncoder": "encoders",
    "VLLM": "vllm",
    "fetch": "registry",
    "list_models": "registry",
    "load_model": "loading",
    "resolve": "registry",
}

__all__ = [
    "LLM",
    "VLLM",
    "Completion",
    "Generation",
    "Local",
    "Message",
    "OpenAICompatible",
    "Request",
    "SentenceEncoder",
    "fetch",
    "list_models",
    "load_model",
    "resolve",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        with needs_extra("run"):
            return getattr(import_module(f"bdc.llm.{_LAZY[name]}"), name)
    raise AttributeError(f"module 'bdc.llm' has no attribute {name!r}")
