"""Ways to compute a layer with the rank-wise product, y = x W^T + s ((x A^T) * g[row]) B^T.

Each form takes a Case and returns the launch that computes the whole layer, base included, or None where it does not apply.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import accumulate

import torch
from torch import Tensor
from torch.nn.functional import linear

from bdc.ops import (
    cuda,
    rankwise_lora_,
    rankwise_lora_linear,
    rankwise_lora_slices_,
    triton_kernels,
    triton_layer,
)

Form = Callable[["Case"], Callable[[], Tensor] | None]


@dataclass(frozen=True, slots=True)
class Case:
    """One layer of S outputs side by side, such as q, k and v, each with experts of R ranks.

    x [T, d_in], w [d_out, d_in], a [S * R, d_in], b [d_out, R], g [N, S * R] float32, rows [T] int32; ``ends`` says where in y
    each output ends.
    """

    x: Tensor
    w: Tensor
    a: Tensor
    b: Tensor
    g: Tensor
    rows: Tensor
    scaling: float
    ends: tuple[int, ...]

    @classmethod
    def random(
        cls,
        tokens: int,
        d_in: int,
        widths: tuple[int, ...],
        rank: int,
        dtype: torch.dtype,
        device: torch.device,
        most_requests: int = 16,
    ) -> Case:
        def normal(rows: int, columns: int, scale: float) -> Tensor:
            return (torch.randn(rows, columns, device=device) * scale).to(dtype)

        requests, ranks = min(tokens, most_requests), len(widths) * rank
        g = torch.rand(requests, ranks, device=device) * 2
        rows = torch.arange(tokens, device=device) * requests // tokens
        return cls(
            normal(tokens, d_in, 1),
            normal(sum(widths), d_in, d_in**-0.5),
            normal(ranks, d_in, d_in**-0.5),
            normal(sum(widths), rank, rank**-0.5),
            g,
            rows.to(torch.int32),
            0.5,
            tuple(accumulate(widths)),
        )

    def slices(self) -> list[tuple[slice, slice]]:
        """The columns of y and the ranks of each output."""
        rank = self.b.shape[1]
        starts = (0, *self.ends[:-1])
        return [
            (slice(*y), slice(i * rank, i * rank + rank)) for i, y in enumerate(zip(starts, self.ends, strict=True))
        ]

    def sample(self) -> Tensor:
        """Up to 16 tokens from the first to the last."""
        return torch.linspace(0, len(self.x) - 1, min(16, len(self.x)), device=self.x.device).long()

    def truth(self, gated: bool = True) -> Tensor:
        """The layer of the sample in float64, or with gates of one."""
        tokens = self.sample()
        x = self.x[tokens].double()
        h = x @ self.a.double().T * self.scaling
        if gated:
            h *= self.g[self.rows[tokens].long()].double()
        products = [h[:, ranks] @ self.b[columns].double().T for columns, ranks in self.slices()]
        return x @ self.w.double().T + torch.cat(products, 1)


def base(case: Case) -> Callable[[], Tensor] | None:
    return lambda: linear(case.x, case.w)


def two_gemms(case: Case) -> Callable[[], Tensor] | None:
    gates = (case.g * case.scaling).to(case.x.dtype)[case.rows.long()]
    a = case.a.T
    parts = [(columns, ranks, case.b[columns].T) for columns, ranks in case.slices()]

    def launch() -> Tensor:
        y = linear(case.x, case.w)
        h = (case.x @ a).mul_(gates)
        for columns, ranks, b in parts:
            y[:, columns].addmm_(h[:, ranks], b)
        return y

    return launch


def layer_of_ops(case: Case) -> Callable[[], Tensor] | None:
    """What a wrapped layer calls: :func:`bdc.ops.rankwise_lora_linear`, which chooses."""
    return lambda: rankwise_lora_linear(
        case.x, case.w, None, case.a, case.b, case.g, case.rows, case.scaling, case.ends if len(case.ends) > 1 else None
    )


def added_by_ops(case: Case) -> Callable[[], Tensor] | None:
    """What is called where the base is there already: the product in place, which chooses."""
    if len(case.ends) == 1:
        return lambda: rankwise_lora_(linear(case.x, case.w), case.x, case.a, case.b, case.g, case.rows, case.scaling)
    return lambda: rankwise_lora_slices_(
        linear(case.x, case.w), case.x, case.a, case.b, case.g, case.ends, case.rows, case.scaling
    )


def cuda_product(case: Case) -> Callable[[], Tensor] | None:
    """One launch after the base GEMM; for one output and up to 8 tokens, two launches of the vector kernels."""
    if cuda.load() is None or not cuda.supports(case.x, case.x):
        return None
    few = len(case.x) <= cuda.MOST_VECTOR_TOKENS and len(case.ends) == 1

    def launch() -> Tensor:
        y = linear(case.x, case.w)
        if few:
            cuda.add(y, case.x, case.a, case.b, case.g, case.rows, case.scaling)
            return y
        return cuda.linear(case.x, None, None, case.a, case.b, case.g, case.rows, case.scaling, y, case.ends)

    return launch


def cuda_layer(case: Case) -> Callable[[], Tensor] | None:
    """The whole layer in one launch."""
    if cuda.load() is None or not cuda.supports(case.x, case.x):
        return None
    return lambda: cuda.linear(case.x, case.w, None, case.a, case.b, case.g, case.rows, case.scaling, None, case.ends)


def triton_product(case: Case) -> Callable[[], Tensor] | None:
    """Two launches after the base GEMM."""
    if triton_kernels.load() is None:
        return None
    bounds = _bounds(case)

    def launch() -> Tensor:
        y = linear(case.x, case.w)
        planes = triton_kernels.shrink(case.x, case.a)
        triton_kernels.expand(y, planes, case.b, case.g, case.rows, case.scaling, bounds)
        return y

    return launch


def triton_added(case: Case) -> Callable[[], Tensor] | None:
    """One launch after the base GEMM."""
    if triton_kernels.load() is None or len(case.x) > triton_layer.MOST_LAYER_TOKENS:
        return None

    def launch() -> Tensor:
        y = linear(case.x, case.w)
        return triton_layer.linear(case.x, None, None, case.a, case.b, case.g, case.rows, case.scaling, y, case.ends)

    return launch


def triton_one_launch(case: Case) -> Callable[[], Tensor] | None:
    """The whole layer in one launch."""
    if triton_kernels.load() is None or len(case.x) > triton_layer.MOST_LAYER_TOKENS:
        return None
    return lambda: triton_layer.linear(
        case.x, case.w, None, case.a, case.b, case.g, case.rows, case.scaling, None, case.ends
    )


def triton_produced(case: Case) -> Callable[[], Tensor] | None:
    """Shrink in the launch that makes x (here an RMSNorm, which is timed too), the base GEMM, expand."""
    if triton_kernels.load() is None:
        return None
    weight, bounds = torch.ones_like(case.x[0]), _bounds(case)

    def launch() -> Tensor:
        x, planes = triton_layer.rms_norm_shrink(case.x, weight, 1e-5, case.a)
        y = linear(x, case.w)
        triton_kernels.expand(y, planes, case.b, case.g, case.rows, case.scaling, bounds)
        return y

    return launch


def norm_and_base(case: Case) -> Callable[[], Tensor] | None:
    """What the form above does without the product."""
    weight = torch.ones_like(case.x[0])
    return lambda: linear(torch.nn.functional.rms_norm(case.x, case.x.shape[-1:], weight, 1e-5), case.w)


def n_concatenated(case: Case) -> Callable[[], Tensor] | None:
    """One library GEMM for y and h, x [W; A]^T, then gate and expand in one launch; y lies in a wider buffer."""
    if triton_kernels.load() is None:
        return None
    weights, d_out = torch.cat([case.w, case.a]), len(case.w)
    bounds = _bounds(case)

    def launch() -> Tensor:
        both = linear(case.x, weights)
        y = both[:, :d_out]
        triton_kernels.expand(y, both[:, d_out:].unsqueeze(0), case.b, case.g, case.rows, case.scaling, bounds)
        return y

    return launch


def forked(case: Case) -> Callable[[], Tensor] | None:
    """Shrink on another stream while the base GEMM runs, then expand."""
    if triton_kernels.load() is None or not case.x.is_cuda:
        return None
    bounds, side = _bounds(case), _side_stream()

    def launch() -> Tensor:
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            planes = triton_kernels.shrink(case.x, case.a)
        y = linear(case.x, case.w)
        torch.cuda.current_stream().wait_stream(side)
        triton_kernels.expand(y, planes, case.b, case.g, case.rows, case.scaling, bounds)
        return y

    return launch


@cache
def _side_stream() -> torch.cuda.Stream:
    return torch.cuda.Stream()


def _bounds(case: Case) -> Tensor | None:
    if len(case.ends) == 1:
        return None
    return torch.tensor((0, *case.ends), dtype=torch.int32, device=case.x.device)


def k_concatenated(case: Case) -> Callable[[], Tensor] | None:
    """Library GEMMs of [x | s h g] and [W | B], one for each output; what makes x is taken to write it to the wider buffer.

    Of several outputs the buffer is [h_0 | x | h_1 | ...]: the first takes [h_0 | x], the others together [x | h_1 | ...], with
    their B as blocks.
    """
    return _k_concatenated(case, lambda x, a: triton_kernels.shrink(x, a))


def k_concatenated_library(case: Case) -> Callable[[], Tensor] | None:
    """The same with h by a library GEMM, in float32."""
    if not case.x.is_cuda or case.x.dtype == torch.float32:
        return None
    return _k_concatenated(case, lambda x, a: torch.mm(x, a.T, out_dtype=torch.float32).unsqueeze(0))


def _k_concatenated(case: Case, shrink: Callable[[Tensor, Tensor], Tensor]) -> Callable[[], Tensor] | None:
    if triton_kernels.load() is None:
        return None
    (tokens, d_in), rank, d_out = case.x.shape, case.b.shape[1], len(case.w)
    (first, _), *others = case.slices()
    buffer = case.x.new_zeros(tokens, d_in + len(case.a))
    buffer[:, rank : rank + d_in] = case.x
    x = buffer[:, rank : rank + d_in]
    left = torch.cat([case.b[first], case.w[first]], 1)
    right = (
        torch.cat([case.w[first.stop :], torch.block_diag(*(case.b[columns] for columns, _ in others))], 1)
        if others
        else None
    )

    def launch() -> Tensor:
        planes = shrink(x, case.a)
        triton_kernels.gate(buffer[:, :rank], planes[..., :rank], case.g[:, :rank], case.rows, case.scaling)
        if right is None:
            return linear(buffer, left)
        triton_kernels.gate(buffer[:, rank + d_in :], planes[..., rank:], case.g[:, rank:], case.rows, case.scaling)
        y = x.new_empty(tokens, d_out)
        torch.mm(buffer[:, : rank + d_in], left.T, out=y[:, first])
        torch.mm(buffer[:, rank:], right.T, out=y[:, first.stop :])
        return y

    return launch


def vllm(case: Case) -> Callable[[], Tensor] | None:
    """vLLM's kernels (benchmarks/peers/vllm_kernels.py), as one adapter of rank R without gates: less than our product, so their lower bound."""
    return _vllm(case, per_request=False)


def vllm_per_request(case: Case) -> Callable[[], Tensor] | None:
    """vLLM's kernels, as one adapter of rank R for each request, with the gates merged into its A."""
    return None if len(case.x) > 256 else _vllm(case, per_request=True)


def _vllm(case: Case, per_request: bool) -> Callable[[], Tensor] | None:
    """Their A is [adapters, R, d_in] and their B [adapters, width, R] of each output, their planes [outputs, T, R]."""
    try:
        from vllm.lora.ops.triton_ops import LoRAKernelMeta, lora_expand, lora_shrink, utils
    except ImportError:
        return None
    tokens, dtype, device = len(case.x), case.x.dtype, case.x.device
    rows = case.rows if per_request else torch.zeros_like(case.rows)
    gates = case.g if per_request else torch.ones_like(case.g[:1])
    adapters = len(gates)
    meta = LoRAKernelMeta.make(adapters, tokens, device=device)
    meta.prepare_tensors(rows)
    arguments = meta.meta_args(tokens, True)  # a grid of the adapters in use, without one more for "none"
    a = [(case.a[ranks].float() * gates[:, ranks, None]).to(dtype) for _, ranks in case.slices()]
    b = [case.b[columns].repeat(adapters, 1, 1) for columns, _ in case.slices()]
    # They keep strides and pointers by address: what is kept for ours is of tensors that are gone.
    utils._LORA_A_PTR_DICT.pop(tuple(weight.data_ptr() for weight in a), None)
    utils._LORA_B_PTR_DICT.pop(tuple(weight.data_ptr() for weight in b), None)
    planes = torch.empty(len(a), tokens, case.b.shape[1], dtype=torch.float32, device=device)

    def launch() -> Tensor:
        y = linear(case.x, case.w)
        lora_shrink(case.x, a, planes, *arguments, case.scaling)  # zeroes the planes
        lora_expand(planes, b, y, *arguments, offset_start=0, add_inputs=True)
        return y

    return launch


FORMS: dict[str, Form] = {
    "base": base,
    "norm+base": norm_and_base,
    "two GEMMs": two_gemms,
    "bdc.ops layer": layer_of_ops,
    "bdc.ops added": added_by_ops,
    "cuda": cuda_product,
    "cuda layer": cuda_layer,
    "triton": triton_product,
    "triton 1": triton_added,
    "triton layer": triton_one_launch,
    "norm+triton": triton_produced,
    "n-concat": n_concatenated,
    "forked": forked,
    "k-concat": k_concatenated,
    "k-concat mm": k_concatenated_library,
    "vllm": vllm,
    "vllm/request": vllm_per_request,
}
# Those that compute another product: of the base alone, of a normalised x; and without gates.
OTHER_PRODUCT = {"base", "norm+base", "norm+triton"}
UNGATED = {"vllm"}
