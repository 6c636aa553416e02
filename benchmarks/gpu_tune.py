"""Sizes of the GPU kernels' tiles, tried one by one on the layers of gpu_op.py: what bdc.ops.triton_plan is chosen from.

The CUDA kernels' sizes are compiled in: each `_lora_cuda_NAME.so` of `--variants FOLDER` is one more form. Triton's forms are compiled
in several processes first, since compiling takes longer than measuring.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import itertools
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from gpu_clock import Timer, interleaved
from gpu_forms import Case, Form, base, cuda_layer, cuda_product, k_concatenated, n_concatenated, triton_one_launch
from gpu_op import LLAMA, error_of, sets_of

from bdc.ops import cuda, triton_kernels, triton_layer
from bdc.ops.triton_plan import LayerTiles, Tiles

# Tokens to outputs, inputs, stages and warps of the one-launch layer in Triton; and the programs that share a sum of h, where
# they are not as many as there are processors: few leave room for the programs of the outputs beside them.
_SMALL: list[tuple[int, ...]] = [
    (32, 256, 3, 4),
    (32, 256, 4, 4),
    (32, 256, 5, 4),
    (64, 256, 3, 4),
    (64, 256, 3, 8),
    (32, 512, 3, 4),
    (16, 256, 4, 4),
    (32, 128, 5, 4),
    (64, 256, 3, 4, 4),
    (64, 256, 3, 4, 8),
    (32, 512, 3, 4, 4),
    (32, 256, 4, 4, 4),
]
LAYER_SIZES: dict[int, list[tuple[int, ...]]] = {
    8: _SMALL,
    16: _SMALL,
    64: [
        (64, 128, 4, 4),
        (64, 128, 5, 8),
        (64, 128, 5, 4),
        (128, 128, 3, 8),
        (64, 64, 6, 4),
        (32, 128, 5, 4),
        (32, 256, 3, 4),
        (128, 64, 4, 8),
        (32, 128, 5, 4, 1),
        (32, 128, 5, 4, 2),
        (64, 128, 4, 4, 3),
        (64, 128, 4, 4, 4),
        (128, 128, 3, 8, 2),
        (128, 128, 3, 8, 4),
        (128, 128, 3, 8, 8),
    ],
}


def with_patches(form: Form, patches: Callable[[Case], Iterator[Any]]) -> Form:
    """The form, launched with other sizes."""

    def made(case: Case) -> Callable[[], Any] | None:
        launch = form(case)

        def patched() -> Any:
            with contextlib.ExitStack() as stack:
                for patch in patches(case):
                    stack.enter_context(patch)
                assert launch is not None
                return launch()

        return None if launch is None else patched

    return made


def of_variant(form: Form, path: Path) -> Form:
    """The form on another build of the CUDA kernels."""
    spec = importlib.util.spec_from_file_location(path.name.split(".")[0], path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def patches(case: Case) -> Iterator[Any]:
        cuda._capacity.cache_clear()
        yield mock.patch.object(cuda, "load", lambda: module)

    return with_patches(form, patches)


def layer(outputs: int, inputs: int, stages: int, warps: int, sharing: int = 0) -> Form:
    """The one-launch layer in Triton."""

    def sizes(tokens: int, ranks: int, d_in: int, d_out: int, **_: Any) -> LayerTiles:
        block_t, rank_tile = max(16, 1 << (tokens - 1).bit_length()), 32
        steps = -(-d_in // inputs)
        splits = sharing or max(1, min(16, steps // 2, 132 // -(-ranks // rank_tile)))
        per_split = -(-steps // splits)
        return LayerTiles(block_t, outputs, inputs, 128, rank_tile, -(-steps // per_split), per_split, stages, warps)

    def patches(case: Case) -> Iterator[Any]:
        yield mock.patch.object(triton_layer, "layer_tiles", sizes)

    return with_patches(triton_one_launch, patches)


def tiles_of(**changes: int) -> Callable[[Case], Iterator[Any]]:
    """Patches of shrink's and expand's sizes."""
    original = triton_kernels.tiles

    def changed(*arguments: Any, **keywords: Any) -> Tiles:
        found = original(*arguments, **keywords)
        values = {name: getattr(found, name) for name in Tiles.__dataclass_fields__} | changes
        if "splits" in changes or "inputs" in changes:
            steps = -(-arguments[2] // values["inputs"])
            values["steps"] = -(-steps // values["splits"])
            values["splits"] = -(-steps // values["steps"])
        return Tiles(**values)

    def patches(case: Case) -> Iterator[Any]:
        yield mock.patch.object(triton_kernels, "tiles", changed)

    return patches


def forms_for(tokens: int, variants: Path | None) -> dict[str, Form]:
    """All that is tried for so many tokens."""
    forms: dict[str, Form] = {"base": base}
    if tokens <= 64:
        for path in sorted(variants.glob("_lora_cuda_*.so")) if variants else []:
            name = path.name.split(".")[0].removeprefix("_lora_cuda_")
            forms[f"cuda layer {name}"] = of_variant(cuda_layer, path)
            forms[f"cuda {name}"] = of_variant(cuda_product, path)
    for sizes in LAYER_SIZES.get(tokens, ()):
        forms["triton layer " + "".join(map("{}{}".format, "NKswx", sizes))] = layer(*sizes)
    if tokens <= 256:
        for outputs, warps in ((32, 4), (64, 4), (64, 8), (128, 8)):
            changes = tiles_of(outputs=outputs, warps=warps, ranks_step=128)
            forms[f"n-concat N{outputs}w{warps}"] = with_patches(n_concatenated, changes)
    if tokens == 4096:
        for block_t, ranks, inputs, splits in [
            (64, 128, 64, 1), (64, 128, 64, 2), (128, 128, 64, 1), (128, 128, 64, 2), (128, 128, 64, 4), (128, 64, 64, 2), (128, 64, 64, 1),
        ]:  # fmt: skip
            changes = tiles_of(tokens=block_t, ranks=ranks, inputs=inputs, splits=splits)
            forms[f"k-concat T{block_t}R{ranks}K{inputs}/{splits}"] = with_patches(k_concatenated, changes)
    return forms


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--variants", type=Path)
    parser.add_argument("--tokens", type=int, nargs="+", default=[16, 64, 4096, 1, 256])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=90)
    parser.add_argument("--jobs", type=int, default=12)
    parser.add_argument("--only", nargs="+", default=[""], help="forms whose names begin so")
    parser.add_argument("--part", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    device, began = torch.device("cuda"), time.monotonic()
    if args.part is None and args.jobs:
        command = [sys.executable, *sys.argv, "--part"]
        jobs = [subprocess.Popen([*command, str(i)], stderr=subprocess.DEVNULL) for i in range(args.jobs)]
        for job in jobs:
            job.wait()
        print(f"compiled: {time.monotonic() - began:.0f} s", flush=True)
    cells: list[dict[str, Any]] = []
    number = itertools.count()
    with torch.inference_mode():
        for tokens in args.tokens:
            forms = {n: f for n, f in forms_for(tokens, args.variants).items() if n.startswith((*args.only, "base"))}
            for module, (d_in, widths) in LLAMA.items():
                if args.part is None and time.monotonic() - began > args.seconds:
                    break
                sets = 1 if args.part is not None else sets_of(d_in, sum(widths), torch.bfloat16, False)
                cases = [Case.random(tokens, d_in, widths, 128, torch.bfloat16, device) for _ in range(sets)]
                timers, errors = {}, {}
                for name, form in forms.items():
                    if args.part is not None and (
                        name.startswith(("cuda", "base")) or next(number) % args.jobs != args.part
                    ):
                        continue
                    try:
                        launches = [form(case) for case in cases]
                        errors[name] = error_of(launches[0], cases[0]) if args.part is None else 0.0
                        if args.part is not None:
                            launches[0]()
                        elif errors[name] < 1e-2 or name == "base":
                            timers[name] = Timer(launches, device)
                    except Exception as error:
                        errors[name] = f"{type(error).__name__}: {str(error)[:200]}"
                if args.part is not None:
                    continue
                times = {name: value["median"] for name, value in interleaved(timers, args.rounds).items()}
                cells.append({"tokens": tokens, "module": module, "us": times, "errors": errors})
                args.json.write_text(json.dumps(cells, indent=1), encoding="utf-8")
                best = sorted(times.items(), key=lambda item: item[1])[:5]
                print(
                    tokens,
                    module,
                    *(f"{name} {us:.1f}" for name, us in best),
                    f"base {times['base']:.1f}",
                    sep=" | ",
                    flush=True,
                )
    bad = {
        f"{name}: {error}"
        for cell in cells
        for name, error in cell["errors"].items()
        if isinstance(error, str) or error > 1e-2
    }
    print(*sorted(bad - {name for name in bad if name.startswith("base")}), sep="\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
