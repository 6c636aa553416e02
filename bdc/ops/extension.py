"""The compiled CPU kernel, ``bdc._lora``."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from bdc.errors import InputError
from bdc.ops import native, watchers
from bdc.ops.autocasting import without_autocast


@cache
def load() -> Any | None:
    """The extension module, connected to torch's tensors; None where it was not built."""
    if not native.built("_lora"):
        return None
    extension = native.load_extension("_lora")
    exchange = getattr(Tensor, "__dlpack_c_exchange_api__", None)
    extension.connect(exchange, watchers.PLAIN, watchers.WATCHERS, vars(forward_ad), torch.get_num_threads)
    return extension


def _bound(name: str, otherwise: Callable[..., Any]) -> Callable[..., Any]:
    """A function of the module, looked up once: asking for the module costs as much as a check of the arguments."""
    try:
        module = load()
    except InputError:
        return otherwise  # which says so where it matters; importing this module must not
    found: Callable[..., Any] = otherwise if module is None else getattr(module, name)
    return found


def _unavailable(*arguments: Any) -> None:
    load()  # says why it does not load, where it is there


unwatched: Callable[..., bool] = _bound("unwatched", watchers.unwatched)
""":func:`bdc.ops.watchers.unwatched`, positional."""

try_add: Callable[..., bool | None] = _bound("try_add", _unavailable)
"""``try_add(y, x, lora_a, lora_b, g, rows, scaling, h=None, fresh=False, pools=None, ends=None, turned=False)``, positional: add the product to ``y``
if these are :data:`unwatched` CPU tensors that fit; False, with nothing written, if not.

Checks what :mod:`bdc.ops.checks` checks, in C++, for a microsecond; a gradient is the caller's to see.
``h``, float32 [T, R], takes h before the gate where a token has a row. With ``fresh``, ``y`` and ``h`` are written whole,
whatever they held, and of a ``y`` without columns only ``h`` is made. With ``pools`` [N], ``lora_a`` and ``lora_b`` have a leading dimension, and a row of g takes its pool's. With a
tuple of ``ends``, the arguments are those of :func:`bdc.ops.rankwise_lora_slices_`. ``turned`` multiplies with lora_b^T first and lora_a^T then, as the gradient of x is made.
"""


try_gate: Callable[..., bool | None] = _bound("try_gate", _unavailable)
"""``try_gate(u, h, g, rows, scaling, dp, gated, dg)``, positional: fill dp = s g u and gated = s g h, [T, R] in float32 or
bfloat16, and dg, [N, R], the sum of s h u over the tokens of each row, if these are :data:`unwatched` CPU tensors that fit.

All are contiguous, and u, h, g and dg float32; ``u``, ``dp``, ``gated`` and ``dg`` may be None. Returns whether a token has row
-1, and zeros; None, with nothing written, where they do not fit.
"""

try_sum: Callable[..., bool | None] = _bound("try_sum", _unavailable)
"""``try_sum(x, w, out, rank_first)``, positional: write x^T w, or its transpose, into ``out``, [n, m] or [m, n], if x [T, n] and
w [T, m] are :data:`unwatched` CPU tensors of float32, and torch is not faster; False, with nothing written, if not.
"""


def supports(y: Tensor, x: Tensor) -> bool:
    """Whether :func:`add` takes these, of the same dtype."""
    return x.device.type == "cpu" and x.dtype in native.DTYPE_CODES and y.stride(1) == 1


def add(y: Tensor, x: Tensor, lora_a: Tensor, lora_b: Tensor, g: Tensor, rows: Tensor | None, scaling: float) -> None:
    """Add the product to ``y``, copying arguments into the layout of the kernel where they have another."""
    extension = load()
    assert extension is not None
    x = native.contiguous_rows(x)
    lora_a, lora_b, g = lora_a.contiguous(), lora_b.contiguous(), g.float().contiguous()
    place = None if rows is None else rows.to(torch.int32).contiguous()
    addresses = _addresses(y=y, x=x, lora_a=lora_a, lora_b=lora_b, rank_weights=g)
    extension.add(
        native.DTYPE_CODES[x.dtype],
        lora_a.dtype == torch.int8,
        addresses,
        0 if place is None else place.data_ptr(),
        (len(x), x.shape[1], len(lora_b), len(lora_a), len(g)),
        (y.stride(0), x.stride(0)),
        scaling,
    )


def add_slices(
    y: Tensor,
    x: Tensor,
    lora_a: Tensor,
    lora_b: Tensor,
    g: Tensor,
    rows: Tensor | None,
    scaling: float,
    ends: tuple[int, ...],
) -> bool:
    """Add all outputs in one pass, copying as :func:`add` does; False, with nothing written, where the CPU has no such kernel."""
    x, lora_a, lora_b = native.contiguous_rows(x), lora_a.contiguous(), lora_b.contiguous()
    place = None if rows is None else rows.to(torch.int32).contiguous()
    return bool(try_add(y, x, lora_a, lora_b, g.float().contiguous(), place, scaling, None, False, None, ends))


def _addresses(**tensors: Tensor | None) -> tuple[int, ...]:
    """Where they lie, 0 for None.

    Raises:
        InputError: the storage of one was released.
    """
    for name, tensor in tensors.items():
        if tensor is not None and tensor.numel() and not (tensor.data_ptr() and tensor.untyped_storage().nbytes()):
            raise InputError(f"{name} must have memory, but its storage was released")
    return tuple(0 if tensor is None else tensor.data_ptr() for tensor in tensors.values())


def multiplies_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 as it is."""
    module = load()
    return module is not None and module.isa() in ("avx512_bf16", "amx_bf16")


def sum_over_tokens(x: Tensor, w: Tensor, *, turned: bool = False) -> Tensor:
    """``x.T @ w``, [n, m], or turned, [m, n], of CPU tensors x [T, n] and w [T, m] of one dtype."""
    x, w = native.contiguous_rows(x), native.contiguous_rows(w)
    out = x.new_empty((w.shape[1], x.shape[1]) if turned else (x.shape[1], w.shape[1]))
    if try_sum(x, w, out, turned):
        return out
    _addresses(x=x, w=w)
    with without_autocast(x):
        return torch.mm(w.T, x, out=out) if turned else torch.mm(x.T, w, out=out)
