"""Several outputs that share x: one product with slices beside a product for each output."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from bdc.ops import rankwise_lora_, rankwise_lora_slices_
from bdc.ops.bench.timing import interleaved

# d_in, and the columns before which the outputs end.
LAYERS = {
    "smollm2-135m/qkv": (576, (576, 768, 960)),
    "smollm2-135m/gate-up": (576, (1536, 3072)),
    "qwen2.5-0.5b/qkv": (896, (896, 1024, 1152)),
    "qwen2.5-0.5b/gate-up": (896, (4864, 9728)),
    "llama-3.1-8b/qkv": (4096, (4096, 5120, 6144)),
    "llama-3.1-8b/gate-up": (4096, (14336, 28672)),
}
HEADER = f"{'layer':22} {'dtype':9}{'T':>5}{'R':>5}{'apart us':>10}{'slices us':>11}{'speed-up':>9}"


def rows(
    dtypes: Sequence[torch.dtype], tokens: Sequence[int], ranks: Sequence[int], seconds: float
) -> Iterator[dict[str, Any]]:
    """A row per layer, dtype, tokens and ranks of an output; both forms are compared before they are timed."""
    for dtype in dtypes:
        for layer, (d_in, ends) in LAYERS.items():
            for count in tokens:
                for rank in ranks:
                    yield _row(layer, d_in, ends, count, rank, dtype, seconds)


def line(row: dict[str, Any]) -> str:
    return (
        f"{row['layer']:22} {row['dtype']:9}{row['tokens']:5}{row['rank']:5}{row['apart_us']:10.1f}"
        f"{row['slices_us']:11.1f}{row['speedup']:8.2f}x"
    )


def _row(
    layer: str, d_in: int, ends: tuple[int, ...], tokens: int, rank: int, dtype: torch.dtype, seconds: float
) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int, scale: float = 1.0) -> torch.Tensor:
        return (torch.randn(*shape, generator=generator) * scale).to(dtype)

    outputs, d_out = len(ends), ends[-1]
    x, y = random(tokens, d_in), random(tokens, d_out)
    a, b = random(outputs * rank, d_in, scale=d_in**-0.5), random(d_out, rank, scale=rank**-0.5)
    g = torch.rand(min(tokens, 8), outputs * rank, generator=generator) + 0.5
    place = torch.arange(tokens, dtype=torch.int32) % len(g)
    parts = []
    for i, (first, end) in enumerate(zip((0, *ends), ends, strict=False)):
        own = slice(i * rank, (i + 1) * rank)
        parts.append((slice(first, end), a[own].clone(), b[first:end].clone(), g[:, own].contiguous()))

    def apart(into: Sequence[torch.Tensor]) -> None:
        for out, (_, own_a, own_b, own_g) in zip(into, parts, strict=True):
            rankwise_lora_(out, x, own_a, own_b, own_g, place)

    with torch.inference_mode():
        merged = rankwise_lora_slices_(y.clone(), x, a, b, g, ends, place)
        separate = [y[:, columns].clone() for columns, *_ in parts]  # as layers of their own have them
        apart(separate)
        torch.testing.assert_close(torch.cat(separate, 1), merged, rtol=2e-2, atol=2e-2)
        start = y.clone()

        def reset() -> None:
            y.copy_(start)
            for out, (columns, *_) in zip(separate, parts, strict=True):
                out.copy_(start[:, columns])

        calls = {
            "apart": lambda: apart(separate),
            "slices": lambda: rankwise_lora_slices_(y, x, a, b, g, ends, place),
        }
        times = interleaved(calls, seconds, reset)
    apart_us, slices_us = times["apart"].median, times["slices"].median
    return {
        "layer": layer,
        "outputs": outputs,
        "dtype": str(dtype).removeprefix("torch."),
        "tokens": tokens,
        "rank": rank,
        "apart_us": round(apart_us, 2),
        "slices_us": round(slices_us, 2),
        "speedup": round(apart_us / slices_us, 2),
    }
