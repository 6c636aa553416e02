"""Training: the product with its gradients beside torch's autograd through two matrix products."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from bdc.errors import BdcError
from bdc.ops import rankwise_lora
from bdc.ops.bench import cells
from bdc.ops.bench.cells import Cell, Inputs
from bdc.ops.bench.timing import interleaved

# What has a gradient: with frozen experts, as a hypernetwork is trained; and with experts that are trained, too.
NEEDED = {"x g": ("x", "g"), "x A B g": ("x", "a", "b", "g")}
HEADER = f"{'layer':18} {'dtype':9}{'T':>5}{'R':>5}  {'gradients':9}{'torch us':>10}{'bdc us':>10}{'speed-up':>9}{'forward':>9}"


def rows(
    dtypes: Sequence[torch.dtype],
    tokens: Sequence[int],
    ranks: Sequence[int],
    seconds: float,
    tolerance: dict[torch.dtype, float],
) -> Iterator[dict[str, Any]]:
    """A row per layer, dtype, tokens, ranks and set of gradients.

    Raises:
        BdcError: a gradient differs from float64 by more than ``tolerance`` of its largest value.
    """
    for dtype in dtypes:
        for shape, sizes in cells.SHAPES.items():
            for count in tokens:
                for rank in ranks:
                    cell = Cell(shape, *sizes, rank, count, dtype)
                    for needed in NEEDED:
                        yield _row(cell, needed, seconds, tolerance[dtype])


def line(row: dict[str, Any]) -> str:
    return (
        f"{row['layer']:18} {row['dtype']:9}{row['tokens']:5}{row['rank']:5}  {row['gradients']:9}{row['torch_us']:10.1f}"
        f"{row['bdc_us']:10.1f}{row['speedup']:8.2f}x{row['forward_speedup']:8.2f}x"
    )


def _two_products(inputs: Inputs) -> Tensor:
    gate = inputs.g[inputs.rows.long()].to(inputs.x.dtype)  # so that its gradient is summed in float32
    return ((inputs.x @ inputs.a.T) * gate) @ inputs.b.T


def _product(inputs: Inputs) -> Tensor:
    return rankwise_lora(inputs.x, inputs.a, inputs.b, inputs.g, inputs.rows)


def _row(cell: Cell, needed: str, seconds: float, tolerance: float) -> dict[str, Any]:
    inputs = cells.inputs(cell)
    leaves = [getattr(inputs, name).requires_grad_() for name in NEEDED[needed]]

    def with_gradients(form: Callable[[Inputs], Tensor]) -> Callable[[], tuple[Tensor, ...]]:
        return lambda: torch.autograd.grad(form(inputs), leaves, inputs.y)

    forms = {"torch": with_gradients(_two_products), "bdc": with_gradients(_product)}
    truth = _truth(inputs, NEEDED[needed])
    for name, form in forms.items():
        for leaf, got, expected in zip(NEEDED[needed], form(), truth, strict=True):
            error = float((got.double() - expected).abs().max() / expected.abs().max())
            if not error <= tolerance:
                raise BdcError(f"{name}: the gradient of {leaf} is wrong by {error:.1e} of its largest value in {cell}")
    alone = {"torch forward": lambda: _two_products(inputs), "bdc forward": lambda: _product(inputs)}
    times = {name: found.median for name, found in interleaved(forms | alone, seconds, lambda: None).items()}
    return {
        "layer": cell.shape,
        "dtype": str(cell.dtype).removeprefix("torch."),
        "tokens": cell.tokens,
        "rank": cell.rank,
        "gradients": needed,
        "torch_us": times["torch"],
        "bdc_us": times["bdc"],
        "speedup": round(times["torch"] / times["bdc"], 2),
        "forward_speedup": round(times["torch forward"] / times["bdc forward"], 2),
    }


def _truth(inputs: Inputs, names: Sequence[str]) -> tuple[Tensor, ...]:
    """The gradients in float64."""
    given = {name: value.detach() for name, value in vars(inputs).items()}
    exact = Inputs(**{name: value if name == "rows" else value.double() for name, value in given.items()})
    leaves = [getattr(exact, name).requires_grad_() for name in names]
    return torch.autograd.grad(_two_products(exact), leaves, exact.y)
