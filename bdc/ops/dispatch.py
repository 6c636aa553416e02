"""Which backend computes a product."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_dynamo_compiling

from bdc.errors import InputError
from bdc.ops import cpp_gradients, cuda, extension, matmul, triton_gradients, triton_kernels, triton_layer
from bdc.ops.autocasting import without_autocast
from bdc.ops.native import HALVES
from bdc.ops.outputs import outputs

_BACKENDS: dict[str, Any] = {"cpp": extension, "cuda": cuda, "triton": triton_layer, "torch": matmul}
# On a GPU the vector kernels are the fastest up to so many tokens (docs/op-measured.md).
_CUDA_TOKENS = 2
_MISSING = {
    "cpp": "the extension bdc._lora is not built, install bdc again",
    "cuda": "it needs a GPU, bdc built where nvcc is found (bdc doctor tells), and a driver for that nvcc's CUDA",
    "triton": "it needs the package triton, the kernels of bdc, and a GPU or TRITON_INTERPRET=1",
}


def backends() -> dict[str, str]:
    """Usable backends, and what each of them runs on.

    The environment variable BDC_OPS_BACKEND names the one to use where it can. Without it that is cpp for CPU tensors, as long
    as the CPU has one of its wider instruction sets; on a GPU in 16 bits, cuda for one and two tokens and triton for up to 64; and
    torch for all else.
    """
    found: dict[str, str] = {}
    module = extension.load()
    if module is not None:
        threads = module.threads()
        width = f"{threads} threads" if threads > 1 else "1 thread"
        found["cpp"] = f"CPU ({module.isa()}, {width}), float32, bfloat16 and float16"
    if cuda.load() is not None:
        found["cuda"] = f"CUDA, up to {cuda.MOST_TOKENS} tokens, float32, bfloat16 and float16; no gradients"
    if triton_kernels.load() is not None:
        place = "CPU tensors in Triton's interpreter" if triton_kernels.interpreted() else "CUDA"
        found["triton"] = f"{place}, float32, bfloat16 and float16; no gradients"
    found["torch"] = "every device and dtype, and gradients"
    return found


def add_product(
    y: Tensor, x: Tensor, lora_a: Tensor, lora_b: Tensor, g: Tensor, rows: Tensor | None, scaling: float
) -> Tensor:
    """:func:`bdc.ops.rankwise_lora_` without checks, for arguments that were checked, and without a gradient."""
    if not len(x):
        return y
    x, lora_a, lora_b, g = (t.resolve_neg() for t in (x, lora_a, lora_b, g))
    with without_autocast(x):
        _BACKENDS[_chosen(y, x, lora_a)].add(y, x, lora_a, lora_b, g, rows, scaling)
    return y


def add_slices(
    y: Tensor,
    x: Tensor,
    lora_a: Tensor,
    lora_b: Tensor,
    g: Tensor,
    rows: Tensor | None,
    scaling: float,
    ends: tuple[int, ...],
) -> None:
    """:func:`bdc.ops.rankwise_lora_slices_` without checks, for arguments that were checked, and without a gradient."""
    if not len(x):
        return
    x, lora_a, lora_b, g = (t.resolve_neg() for t in (x, lora_a, lora_b, g))
    with without_autocast(x):
        backend = _BACKENDS[_chosen(y, x, lora_a, ends)]
        if backend.add_slices(y, x, lora_a, lora_b, g, rows, scaling, ends):
            return
        for columns, own in outputs(ends, lora_b.shape[1]):
            backend.add(y[:, columns], x, lora_a[own], lora_b[columns], g[:, own], rows, scaling)


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    lora_a: Tensor,
    lora_b: Tensor,
    g: Tensor,
    rows: Tensor | None,
    scaling: float,
    ends: tuple[int, ...],
) -> Tensor | None:
    """:func:`bdc.ops.rankwise_lora_linear` in one launch, without a gradient; None where there is none that pays.

    Checks everything, for tensors that are plain.
    """
    name = _forced()
    if name is None and x.device.type == "cuda" and x.dtype in HALVES and triton_kernels.load() is not None:
        name = "triton"
    if name not in ("cuda", "triton") or lora_a.dtype != x.dtype or not (x.numel() and lora_b.numel() and ends):
        return None
    x, weight, lora_a, lora_b, g = (t.resolve_neg() for t in (x, weight, lora_a, lora_b, g))
    bias = None if bias is None else bias.resolve_neg()
    backend = _BACKENDS[name]
    if not (backend.supports(x, x) and backend.takes_layer(x, weight, lora_a, lora_b, ends)):
        return None
    found: Tensor = backend.linear(x, weight, bias, lora_a, lora_b, g, rows, scaling, None, ends)
    return found


def forward_with_h(
    x: Tensor, lora_a: Tensor, lora_b: Tensor, g: Tensor, rows: Tensor | None, scaling: float
) -> tuple[Tensor, Tensor]:
    """The product and h [T, R] for :func:`backward`, for arguments that were checked."""
    given = (x, lora_a, lora_b, g, rows, scaling)
    found = cpp_gradients.forward(*given) if _may_be_direct(x) else None
    if found is None:
        with without_autocast(x):
            found = _training(x, lora_a, lora_b).forward(*given)
    return found


def backward(grad: Tensor, x: Tensor, lora_a: Tensor, lora_b: Tensor, *rest: Any) -> tuple[Tensor | None, ...]:
    """Gradients of x, lora_a, lora_b and g; arguments as :func:`bdc.ops.matmul.backward`."""
    grad = grad.contiguous()
    given = (grad, x, lora_a, lora_b, *rest)
    found = cpp_gradients.backward(*given) if _may_be_direct(grad) else None
    if found is None:
        with without_autocast(x):
            found = _training(grad, lora_a, lora_b).backward(*given)
    return found


def _may_be_direct(tokens: Tensor) -> bool:
    """Whether the CPU kernel is asked first, which costs less than choosing a backend. Compiled autograd traces the backward."""
    return tokens.device.type == "cpu" and not is_dynamo_compiling()


def _training(tokens: Tensor, lora_a: Tensor, lora_b: Tensor) -> Any:
    """The module for what the CPU kernel does not train, for x or the gradient of y: Triton's only where it is asked for."""
    if is_dynamo_compiling() or not (tokens.numel() and lora_a.numel() and lora_b.numel()):
        return matmul
    chosen = _chosen(tokens, tokens, lora_a)
    # The interpreter cannot multiply bfloat16.
    interprets = tokens.device.type != "cpu" or tokens.dtype != torch.bfloat16
    return triton_gradients if chosen == _forced() == "triton" and interprets else matmul


def _forced() -> str | None:
    """The backend that BDC_OPS_BACKEND asks for."""
    forced = os.environ.get("BDC_OPS_BACKEND")
    if not forced:
        return None
    if forced not in _BACKENDS:
        raise InputError(f"BDC_OPS_BACKEND must be one of {', '.join(_BACKENDS)}, got {forced}")
    if forced not in backends():
        raise InputError(f"BDC_OPS_BACKEND={forced} is not usable here: {_MISSING[forced]}")
    return forced


def _chosen(y: Tensor, x: Tensor, lora_a: Tensor, ends: tuple[int, ...] = ()) -> str:
    forced = _forced()
    if not _has_products(y, x, lora_a):
        return "torch"
    if forced:
        return forced if _fits(forced, lora_a) and _BACKENDS[forced].supports(y, x) else "torch"
    if x.device.type == "cuda":
        return _chosen_on_gpu(y, x, lora_a, ends)
    module = extension.load()
    if module is not None and module.isa() != "portable" and extension.supports(y, x):
        return "cpp"
    return "torch"


def _chosen_on_gpu(y: Tensor, x: Tensor, lora_a: Tensor, ends: tuple[int, ...]) -> str:
    if x.dtype not in HALVES or len(x) > triton_layer.MOST_LAYER_TOKENS:
        return "torch"
    # Several outputs in one launch of Triton's are the fastest, and in launches of their own slower than torch.
    if not (_fits("triton", lora_a) and triton_layer.has_tiles(ends)):
        return "torch"
    if len(x) <= _CUDA_TOKENS and len(ends) <= 1 and cuda.supports(y, x):
        return "cuda"
    return "triton" if triton_kernels.load() is not None and triton_kernels.supports(y, x) else "torch"


def _has_products(y: Tensor, x: Tensor, lora_a: Tensor) -> bool:
    """Whether there is anything to multiply, and no view that only torch knows to negate when it is written."""
    return bool(x.shape[1] and y.shape[1] and len(lora_a)) and not y.is_neg()


def _fits(backend: str, lora_a: Tensor) -> bool:
    """Whether the backend has kernels for experts of this dtype: those for GPUs have none for int8."""
    return lora_a.dtype != torch.int8 or backend in ("cpp", "torch")
