"""GGUF files to folders that transformers loads in seconds.

Dequantising while loading takes transformers half a minute and several gigabytes each time. Here a file is converted
once, tensor by tensor, to float16 safetensors: the values come from 4 to 8 bit codes, so its 11 significant bits lose
nothing that matters.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bdc.errors import InputError

# llama.cpp's tensor names and transformers', for the architectures whose tensors carry over as they are.
_OUTER = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_DIRECT = ("llama", "qwen2")


def convert_gguf(gguf_file: Path, folder: Path) -> None:
    """Write ``config.json``, ``model.safetensors``, the tokenizer and ``generation_config.json`` into ``folder``.

    Where the file stores the output head beside the embedding (Qwen2.5 0.5B and 1.5B share one matrix, but their files
    hold two quantisations of it), the finer one serves as both, as in the original model.

    Raises:
        InputError: the file is no GGUF, or of an architecture that transformers does not convert.
        MissingExtraError: the gguf package is not installed.
    """
    try:
        import gguf
    except ImportError as error:
        from bdc.errors import MissingExtraError

        raise MissingExtraError("Converting GGUF files needs the gguf package: pip install 'bdc[run]'.") from error
    try:
        reader = gguf.GGUFReader(gguf_file)
        architecture = str(reader.fields["general.architecture"].contents())
    except (ValueError, KeyError, OSError) as error:
        raise InputError(f"{gguf_file} does not read as a GGUF file: {error}") from error
    if architecture in _DIRECT:
        _convert_direct(reader, architecture, gguf_file, folder)
    else:
        _convert_with_transformers(gguf_file, folder)
    _save_tokenizer(gguf_file, folder)


def _convert_direct(reader: Any, architecture: str, gguf_file: Path, folder: Path) -> None:
    import torch
    from gguf.quants import dequantize
    from safetensors.torch import save_file
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(gguf_file.parent, gguf_file=gguf_file.name, trust_remote_code=False)
    by_name = {tensor.name: tensor for tensor in reader.tensors}
    head, embedding = by_name.get("output.weight"), by_name["token_embd.weight"]
    # A file with one matrix has a tied model; two quantisations of the same one are told by what they hold.
    tied = head is None or _same_matrix(
        dequantize(head.data, head.tensor_type), dequantize(embedding.data, embedding.tensor_type)
    )
    if head is not None and tied:
        finer = head if head.n_bytes > embedding.n_bytes else embedding
        by_name = {name: tensor for name, tensor in by_name.items() if name != "output.weight"}
        by_name["token_embd.weight"] = finer
    tensors = {}
    for name, tensor in by_name.items():
        target = _target(name)
        if target is None:
            continue
        values = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy())
        if architecture == "llama" and name.endswith(("attn_q.weight", "attn_k.weight")):
            heads = config.num_attention_heads if "attn_q" in name else config.num_key_value_heads
            values = _rotary_order(values, heads)
        tensors[target] = values.to(torch.float16).contiguous()
    config.tie_word_embeddings = tied
    config.dtype = torch.float16
    config.save_pretrained(folder)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _same_matrix(a: Any, b: Any) -> bool:
    import numpy as np

    rows = slice(0, None, max(1, len(a) // 2048))
    difference = np.abs(a[rows] - b[rows]).mean()
    # Quantisation to 4 bits moves weights by some 5 % of their size; independent matrices differ by more than 100 %.
    return a.shape == b.shape and bool(difference < 0.2 * np.abs(a[rows]).mean())


def _target(name: str) -> str | None:
    stem, _, kind = name.rpartition(".")
    if stem in _OUTER:
        return f"{_OUTER[stem]}.{kind}"
    if not stem.startswith("blk."):
        return None  # tables that transformers computes, such as rope_freqs
    _, layer, part = stem.split(".", 2)
    return f"model.layers.{layer}.{_BLOCK[part]}.{kind}"


def _rotary_order(weight: Any, heads: int) -> Any:
    """llama.cpp interleaves the two halves of each head's rotary dimensions; put them back one after the other."""
    out, width = weight.shape
    return weight.reshape(heads, out // heads // 2, 2, width).transpose(1, 2).reshape(out, width)


def _convert_with_transformers(gguf_file: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, GgufConfig

    try:
        model = AutoModelForCausalLM.from_pretrained(
            gguf_file.parent,
            gguf_file=gguf_file.name,
            trust_remote_code=False,
            quantization_config=GgufConfig(dequantize=True),
            dtype=torch.float32,
        )
    except (ValueError, KeyError, NotImplementedError) as error:
        raise InputError(f"transformers cannot convert {gguf_file}: {error}") from error
    # Norm weights may exceed float16's range in other architectures (Gemma), so these keep bfloat16.
    cast: Any = model
    cast.to(torch.bfloat16).save_pretrained(folder)


def _save_tokenizer(gguf_file: Path, folder: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(gguf_file.parent, gguf_file=gguf_file.name, trust_remote_code=False)
    tokenizer.save_pretrained(folder)
    generation = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n", encoding="utf-8")
