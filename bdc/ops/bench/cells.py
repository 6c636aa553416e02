"""The cells of the benchmark: layers, ranks, numbers of tokens, and random inputs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

# [d_in, d_out] of linear layers.
SHAPES = {
    "smollm2-135m/q": (576, 576),
    "smollm2-135m/up": (576, 1536),
    "qwen2.5-0.5b/up": (896, 4864),
    "qwen2.5-0.5b/down": (4864, 896),
    "llama-3.1-8b/q": (4096, 4096),
    "llama-3.1-8b/down": (14336, 4096),
}
RANKS = (24, 32, 64, 128, 256)
TOKENS = (1, 2, 4, 8, 16, 32, 64, 256, 1024)
QUICK_SHAPES = ("smollm2-135m/q", "qwen2.5-0.5b/down", "llama-3.1-8b/q")
QUICK_RANKS = (24, 128)
QUICK_TOKENS = (1, 8, 64)
REQUESTS = 8  # at most: distinct rows of g in a batch


@dataclass(frozen=True)
class Cell:
    shape: str
    d_in: int
    d_out: int
    rank: int
    tokens: int
    dtype: torch.dtype

    @property
    def requests(self) -> int:
        """Rows of g; the tokens are shared among them as evenly as can be, neighbours together."""
        return min(self.tokens, REQUESTS)

    @property
    def flops(self) -> float:
        return 2.0 * self.tokens * self.rank * (self.d_in + self.d_out)

    @property
    def moved_bytes(self) -> float:
        """A, B and x read once, y read and written once."""
        weights = self.rank * (self.d_in + self.d_out)
        return float(self.dtype.itemsize * (weights + self.tokens * (self.d_in + 2 * self.d_out)))

    @property
    def floor(self) -> float:
        """Bytes (few tokens) and flops (many) of the experts over those of the base layer: c * R."""
        return self.rank * (self.d_in + self.d_out) / (self.d_in * self.d_out)


@dataclass
class Inputs:
    x: Tensor  # [T, d_in]
    w: Tensor  # [d_out, d_in], the base layer
    a: Tensor  # [R, d_in]
    b: Tensor  # [d_out, R]
    g: Tensor  # [N, R] float32
    rows: Tensor  # [T] int32
    y: Tensor  # [T, d_out], what the product is added to

    @property
    def gate(self) -> Tensor:
        """The row of g of each token, [T, R] in the dtype of x: what a plain torch form multiplies by."""
        return self.g.to(self.x.dtype)[self.rows.long()]


@lru_cache(maxsize=1)
def _base(d_out: int, d_in: int, dtype: torch.dtype) -> Tensor:
    weight: Tensor = torch.randn(d_out, d_in, generator=torch.Generator().manual_seed(1)) * d_in**-0.5
    return weight.to(dtype)


def inputs(cell: Cell) -> Inputs:
    """Normal random numbers, scaled so that base and product have the size of x."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(*shape, generator=generator) * scale).to(cell.dtype)

    return Inputs(
        x=random(cell.tokens, cell.d_in),
        w=_base(cell.d_out, cell.d_in, cell.dtype),
        a=random(cell.rank, cell.d_in, scale=cell.d_in**-0.5),
        b=random(cell.d_out, cell.rank, scale=cell.rank**-0.5),
        g=torch.rand(cell.requests, cell.rank, generator=generator) + 0.5,
        rows=torch.arange(cell.tokens, dtype=torch.int32) * cell.requests // cell.tokens,
        y=random(cell.tokens, cell.d_out),
    )


def sample(inputs: Inputs) -> Tensor:
    """Tokens that stand for all in a check: evenly spread, the first and the last among them."""
    return torch.linspace(0, len(inputs.x) - 1, min(len(inputs.x), 16)).long()


def expected(inputs: Inputs, gated: bool = True) -> Tensor:
    """y of the sampled tokens after the product was added, in float64; with ``gated`` False, g is 1."""
    at = sample(inputs)
    x, a, b = inputs.x[at].double(), inputs.a.double(), inputs.b.double()
    h = x @ a.T
    return inputs.y[at].double() + (h * inputs.g.double()[inputs.rows.long()[at]] if gated else h) @ b.T
