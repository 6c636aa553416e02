"""Checks of the arguments; each error says what it got."""

from __future__ import annotations

import math
import operator
import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from bdc.errors import InputError

_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
_INTEGERS = (torch.int32, torch.int64)


MISUSE = (AttributeError, TypeError, OverflowError, RuntimeError)
"""What Python and torch raise at an argument of the wrong kind, which :func:`check_kinds` names."""


def check_experts(lora_a: Tensor, lora_b: Tensor, in_features: int, out_features: int | None = None) -> None:
    """``lora_a`` [R, d_in] and ``lora_b`` [d_out, R] fit each other and the layer."""
    if lora_a.ndim != 2 or lora_a.shape[1] != in_features:
        raise InputError(f"lora_a must be [R, {in_features}], got {_shape(lora_a)}")
    if lora_b.ndim != 2 or lora_b.shape[1] != lora_a.shape[0]:
        raise InputError(f"lora_b must be [d_out, R] with R = {lora_a.shape[0]} as in lora_a, got {_shape(lora_b)}")
    if out_features is not None and lora_b.shape[0] != out_features:
        raise InputError(f"lora_b must have the layer's {out_features} output features, got {_shape(lora_b)}")


def check_scales(scales: Tensor | None, lora_a: Tensor, lora_b: Tensor) -> None:
    """Experts of int8 have ``scales`` [R], all others have none."""
    integers = [t.dtype == torch.int8 for t in (lora_a, lora_b)]
    if scales is None:
        if any(integers):
            raise InputError("scales must be given for experts of int8, as quantize_experts returns them, got None")
        for name, tensor in (("lora_a", lora_a), ("lora_b", lora_b)):
            if not tensor.is_floating_point():
                raise InputError(f"{name} must be of floats, or int8 with scales, got {tensor.dtype}")
        return
    if not all(integers):
        raise InputError(f"lora_a and lora_b must be int8 where scales are given, got {lora_a.dtype}, {lora_b.dtype}")
    if scales.dtype != torch.float32 or scales.shape != (len(lora_a),):
        raise InputError(f"scales must be float32 [{len(lora_a)}], got {scales.dtype} {_shape(scales)}")


def check_weights(rank_weights: Tensor, rank: int, dtype: torch.dtype, device: torch.device) -> None:
    """``rank_weights`` [N, R] fit a stack of ``rank`` ranks."""
    if rank_weights.ndim != 2 or rank_weights.shape[1] != rank:
        raise InputError(f"rank_weights must be [N, {rank}], got {_shape(rank_weights)}")
    if rank_weights.dtype not in (torch.float32, dtype):
        other = "" if dtype == torch.float32 else f" or {dtype}, the dtype of x"
        raise InputError(f"rank_weights must be float32{other}, got {rank_weights.dtype}")
    if rank_weights.device != device:
        raise InputError(f"rank_weights must be on {device}, where x is, got {rank_weights.device}")


def check_kinds(scaling: object, token_to_row: object, **tensors: object) -> None:
    """``scaling`` is a number, the rows of the tokens are a tensor or None, and the others are tensors, by name."""
    check_are_tensors(**tensors)
    check_is_tensor(token_to_row)
    check_scaling(scaling)


def check_are_tensors(**arguments: object) -> None:
    """What must be tensors; each error names the argument."""
    for name, argument in arguments.items():
        if not isinstance(argument, Tensor):
            raise InputError(f"{name} must be a tensor, got {type(argument).__name__}")


def check_scaling(scaling: Any) -> None:
    """A finite number."""
    try:
        finite = math.isfinite(scaling)
    except TypeError as error:
        raise InputError(f"scaling must be a number, got {scaling!r:.100}") from error
    except OverflowError:  # a whole number beyond all floats
        finite = False
    if not finite:
        raise InputError(f"scaling must be finite, got {scaling!s:.100}")


def check_is_tensor(token_to_row: object) -> None:
    """The rows of the tokens are a tensor, or None."""
    if not (token_to_row is None or isinstance(token_to_row, Tensor)):
        raise InputError(f"token_to_row must be a tensor or None, got {type(token_to_row).__name__}")


def check_rows(token_to_row: Tensor | None, tokens: int | None, requests: int) -> None:
    """``token_to_row`` [T] has a row of ``rank_weights`` or -1 per token; see :func:`reads_values`."""
    if token_to_row is None:
        if tokens is not None and requests not in (1, tokens):
            raise InputError(
                f"without token_to_row, rank_weights must have 1 row or one per token ({tokens}), got {requests}"
            )
        return
    check_is_tensor(token_to_row)
    if token_to_row.dtype not in _INTEGERS:
        raise InputError(f"token_to_row must be int32 or int64, got {token_to_row.dtype}")
    # len() would be a constant for torch.export.
    if token_to_row.ndim != 1 or tokens not in (None, token_to_row.shape[0]):
        wanted = "T" if tokens is None else tokens
        raise InputError(f"token_to_row must be [{wanted}], one row per token, got {_shape(token_to_row)}")
    if reads_values(token_to_row.device) and len(token_to_row):
        low, high = (int(bound) for bound in torch.aminmax(token_to_row))
        if low < -1 or high >= requests:
            wrong = low if low < -1 else high
            raise InputError(f"token_to_row must be in [-1, {requests}), the rows of rank_weights, got {wrong}")


def reads_values(device: torch.device) -> bool:
    """Whether values of rows and pools are checked: on a CPU; elsewhere with BDC_OPS_CHECK=1, since it waits for the GPU.

    Not while torch.compile traces, when there are none: the operators check them when they run.
    """
    if torch.compiler.is_compiling():
        return False
    return device.type == "cpu" or os.environ.get("BDC_OPS_CHECK", "0") not in ("", "0")


def check_product(
    x: Tensor,
    lora_a: Tensor,
    lora_b: Tensor,
    rank_weights: Tensor,
    token_to_row: Tensor | None,
    scaling: float = 1.0,
) -> None:
    """All arguments of the product."""
    check_scaling(scaling)
    if x.dtype != torch.float64 and abs(scaling) > torch.finfo(torch.float32).max:
        raise InputError(f"scaling must be finite in float32, got {scaling}")
    if x.ndim != 2:
        raise InputError(f"x must be [T, d_in], got {_shape(x)}")
    for name, tensor in (("x", x), ("lora_a", lora_a), ("lora_b", lora_b), ("rank_weights", rank_weights)):
        if tensor.layout != torch.strided:
            raise InputError(f"{name} must be a dense tensor, got the layout {tensor.layout}")
    if x.dtype not in _DTYPES:
        raise InputError(f"x must be float32, bfloat16, float16 or float64, got {x.dtype}")
    check_experts(lora_a, lora_b, x.shape[1])
    dtype = torch.int8 if lora_a.dtype == lora_b.dtype == torch.int8 else x.dtype
    for name, tensor in (("lora_a", lora_a), ("lora_b", lora_b)):
        if tensor.dtype != dtype:
            raise InputError(f"{name} must be {x.dtype}, the dtype of x, or int8 as both, got {tensor.dtype}")
        if tensor.device != x.device:
            raise InputError(f"{name} must be on {x.device}, where x is, got {tensor.device}")
    check_weights(rank_weights, len(lora_a), x.dtype, x.device)
    check_rows(token_to_row, len(x), len(rank_weights))
    if token_to_row is not None and token_to_row.device != x.device:
        raise InputError(f"token_to_row must be on {x.device}, where x is, got {token_to_row.device}")


def check_pools(
    x: Tensor,
    lora_a: Tensor,
    lora_b: Tensor,
    rank_weights: Tensor,
    row_to_pool: Tensor,
    token_to_row: Tensor | None,
    scaling: float = 1.0,
) -> None:
    """All arguments of the product with several pools."""
    if lora_a.ndim != 3 or not len(lora_a):
        raise InputError(f"lora_a must be [P, R, d_in] with at least one pool, got {_shape(lora_a)}")
    if lora_b.ndim != 3 or len(lora_b) != len(lora_a):
        raise InputError(f"lora_b must be [P, d_out, R] with P = {len(lora_a)} as in lora_a, got {_shape(lora_b)}")
    check_product(x, lora_a[0], lora_b[0], rank_weights, token_to_row, scaling)
    if row_to_pool.dtype not in _INTEGERS:
        raise InputError(f"row_to_pool must be int32 or int64, got {row_to_pool.dtype}")
    if row_to_pool.shape != (len(rank_weights),):
        raise InputError(
            f"row_to_pool must be [{len(rank_weights)}], one pool per row of rank_weights, got {_shape(row_to_pool)}"
        )
    if row_to_pool.device != x.device:
        raise InputError(f"row_to_pool must be on {x.device}, where x is, got {row_to_pool.device}")
    if len(row_to_pool) and reads_values(row_to_pool.device):
        low, high = (int(bound) for bound in torch.aminmax(row_to_pool))
        if low < 0 or high >= len(lora_a):
            wrong = low if low < 0 else high
            raise InputError(f"row_to_pool must be in [0, {len(lora_a)}), the pools, got {wrong}")


def as_ends(ends: Sequence[int]) -> tuple[int, ...]:
    """The ends of slices as a tuple; whether they fit is :func:`check_slices`'s."""
    try:
        return tuple(map(operator.index, ends))
    except TypeError as error:
        raise InputError(
            f"ends must be whole numbers, the column before which each slice ends, got {ends!r:.100}"
        ) from error


def check_matrices(**tensors: Tensor | None) -> None:
    """What must have two dimensions, where it is there; each error names the argument."""
    for name, tensor in tensors.items():
        if tensor is not None and tensor.ndim != 2:
            raise InputError(f"{name} must have two dimensions, got {_shape(tensor)}")


def check_slices(lora_a: Tensor, lora_b: Tensor, ends: Sequence[int], rank_weights: Tensor | None = None) -> None:
    """``lora_a`` [S * R, d_in], ``lora_b`` [d_out, R], S ``ends`` and ``rank_weights`` [N, S * R] fit each other."""
    check_matrices(lora_a=lora_a, lora_b=lora_b, rank_weights=rank_weights)
    d_out, ranks = lora_b.shape
    if not ends or any(end <= first for first, end in zip((0, *ends), ends, strict=False)) or ends[-1] != d_out:
        raise InputError(f"ends must be rising columns up to {d_out}, the rows of lora_b, got {list(ends)}")
    ranks_of = {"lora_a": lora_a.shape[0]} | ({} if rank_weights is None else {"rank_weights": rank_weights.shape[1]})
    for name, got in ranks_of.items():
        if got != len(ends) * ranks:
            raise InputError(
                f"{name} must have {len(ends)} slices of {ranks} ranks, the columns of lora_b, got {got} ranks"
            )


def check_layer(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    lora_a: Tensor,
    lora_b: Tensor,
    g: Tensor,
    rows: Tensor | None,
    scaling: float,
    out: Tensor | None,
    ends: Sequence[int],
) -> None:
    """All arguments of a layer, base and product, in one launch; ``out`` alone is added to."""
    check_slices(lora_a, lora_b, ends, g)
    tensors = (x, weight, bias, lora_a, lora_b, g, out)
    if torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors):
        raise InputError("the one-launch layer has no gradient: call it under torch.no_grad()")
    if not (lora_a.numel() and lora_b.numel()):
        raise InputError(
            f"the one-launch layer takes inputs, ranks and outputs, got {_shape(lora_a)} and {_shape(lora_b)}"
        )
    ranks = lora_b.shape[1]
    check_product(x, lora_a[:ranks], lora_b, g[:, :ranks], rows, scaling)
    if lora_a.dtype != x.dtype:
        raise InputError(f"lora_a must be {x.dtype}, the dtype of x, got {lora_a.dtype}")
    outputs = len(lora_b)
    check_base(x, weight, bias, outputs)
    if out is None:
        if weight is None:
            raise InputError("out must be given where weight is not: the product is added to it")
        return
    given = {
        "weight": weight,
        "bias": bias,
        "lora_a": lora_a,
        "lora_b": lora_b,
        "rank_weights": g,
        "token_to_row": rows,
    }
    check_output(out, x, given, len(x), outputs)
    if outputs > 1 and out.stride(1) != 1:
        raise InputError(f"out must have contiguous rows, got strides {list(out.stride())}")


def check_base(x: Tensor, weight: Tensor | None, bias: Tensor | None, outputs: int, *, same_dtype: bool = True) -> None:
    """``weight`` [d_out, d_in] and ``bias`` [d_out] of the base fit x and so many outputs, where they are there."""
    for name, tensor, shape in (("weight", weight, (outputs, x.shape[-1])), ("bias", bias, (outputs,))):
        if tensor is None:
            continue
        if tensor.layout != torch.strided:
            raise InputError(f"{name} must be a dense tensor, got the layout {tensor.layout}")
        if tensor.shape != shape:
            raise InputError(f"{name} must be {list(shape)}, got {_shape(tensor)}")
        if (same_dtype and tensor.dtype != x.dtype) or tensor.device != x.device:
            raise InputError(f"{name} must be {x.dtype} on {x.device} as x is, got {tensor.dtype} on {tensor.device}")


def check_producer(
    first: Tensor, others: dict[str, tuple[Tensor, Sequence[int]]], lora_a: Tensor, out: Tensor | None
) -> None:
    """Arguments of a launch that makes x, of the shape of ``first`` [T, d_in], from it and ``others`` of given shapes."""
    if first.ndim != 2 or not first.numel():
        raise InputError(f"x must be made of [T, d_in] with tokens and inputs, got {_shape(first)}")
    if lora_a.ndim != 2 or not len(lora_a) or lora_a.shape[1] != first.shape[1]:
        raise InputError(f"lora_a must be [R, {first.shape[1]}] with at least one rank, got {_shape(lora_a)}")
    for name, (tensor, shape) in (others | {"lora_a": (lora_a, lora_a.shape)}).items():
        if tensor.shape != shape:
            raise InputError(f"{name} must be {list(shape)}, got {_shape(tensor)}")
        if tensor.dtype != first.dtype or tensor.device != first.device:
            raise InputError(
                f"{name} must be {first.dtype} on {first.device} as the first is, got {tensor.dtype} on {tensor.device}"
            )
    if out is None:
        return
    given: dict[str, Tensor | None] = {name: tensor for name, (tensor, _) in others.items()}
    check_output(out, first, given | {"lora_a": lora_a}, *first.shape)
    if out.shape[1] > 1 and out.stride(1) != 1:
        raise InputError(f"out must have contiguous rows, got strides {list(out.stride())}")


def check_not_mapped(*tensors: Tensor | None) -> None:
    """None of them is being mapped over by ``torch.func.vmap``."""
    if any(isinstance(tensor, Tensor) and torch._C._functorch.is_batchedtensor(tensor) for tensor in tensors):
        raise no_vmap()


def no_vmap() -> InputError:
    """What ``torch.func.vmap``, and transforms made of it, are told."""
    return InputError("the rank-wise product has no torch.func.vmap: it is batched itself, pass all tokens in one x")


def check_output(y: Tensor, x: Tensor, others: dict[str, Tensor | None], tokens: int, out_features: int) -> None:
    """``y`` [T, d_out] can be written in place, and shares no memory with what is read."""
    if y.shape != (tokens, out_features):
        raise InputError(f"y must be [{tokens}, {out_features}], got {_shape(y)}")
    if y.dtype != x.dtype or y.device != x.device:
        raise InputError(f"y must be {x.dtype} on {x.device} as x is, got {y.dtype} on {y.device}")
    if y.numel() and 0 in y.stride() and any(n > 1 and s == 0 for n, s in zip(y.shape, y.stride(), strict=True)):
        raise InputError("y must not be an expanded tensor: its tokens would be the same memory")
    if y.is_meta:
        return
    for name, tensor in ({"x": x} | others).items():
        if tensor is not None and _overlap(y, tensor):
            raise InputError(f"y must not share memory with {name}: pass a copy of one of them")


def _overlap(y: Tensor, other: Tensor) -> bool:
    """Whether they may share an element; columns of the same rows do not."""
    (low, high), (first, last) = _extent(y), _extent(other)
    if first >= high or low >= last:
        return False
    if y.ndim != 2 or y.stride() != other.stride() or y.stride(1) != 1 or y.dtype != other.dtype:
        return True
    row, width = y.stride(0), y.element_size()
    column = (first - low) // width % row if row else 0
    return (first - low) % width != 0 or column < y.shape[1] or column + other.shape[1] > row


def _extent(tensor: Tensor) -> tuple[int, int]:
    """First address and the one past the last."""
    if not tensor.numel():
        return 0, 0
    span = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True)) + 1
    return tensor.data_ptr(), tensor.data_ptr() + span * tensor.element_size()


def _shape(tensor: Tensor) -> str:
    return str(list(tensor.shape))
