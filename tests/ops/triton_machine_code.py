"""Compiles every Triton kernel for sm_80 and sm_90 without a GPU and prints what each takes, as JSON.

Run by test_triton_compiles in a process of its own, where kernels are not interpreted: ``python triton_machine_code.py DTYPE...``.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import triton
from bdc.kernels import expand, gradients, layer, producers, shrink
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from bdc.ops.triton_kernels import EXPAND_STAGES
from bdc.ops.triton_layer import producer_warps
from bdc.ops.triton_plan import layer_tiles, tiles

TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"
POINTERS = {"rows_ptr": "*i32", "token_to_row_ptr": "*i32", "bounds_ptr": "*i32", "counters_ptr": "*i32"}
WIDE = ("planes_ptr", "g_ptr", "h_ptr", "products_ptr", "dg_ptr")
FLOATS = ("scaling", "epsilon")
# A Llama-3.1-8B layer on an H100: d_in, d_out, ranks, processors.
D_IN, D_OUT, RANKS, PROCESSORS = 4096, 4096, 128, 132
SHARED_BYTES = 163 << 10  # of an sm_80; an sm_90 has more


def compiled(kernel: Any, kind: str, constants: dict[str, Any], arch: int, **options: int) -> dict[str, int]:
    """Registers and bytes of a kernel for aligned pointers and sizes."""
    names = list(kernel.arg_names)
    signature = {}
    for name in names:
        if name in constants:
            signature[name] = "constexpr"
        elif name.endswith("_ptr"):
            signature[name] = POINTERS.get(name, "*fp32" if name in WIDE else f"*{kind}")
        else:
            signature[name] = "fp32" if name in FLOATS else "i32"
    # tokens, rows and columns may be any number.
    divisible = [
        name
        for name in names
        if name.endswith(("_ptr", "_stride")) or name in ("ranks", "slice_ranks", "d_in", "d_out")
    ]
    attributes = {(names.index(name),): [["tt.divisibility", 16]] for name in divisible}
    source = ASTSource(kernel, signature, constants, attributes)
    binary = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary.asm["cubin"])
        file.flush()
        command = [str(TOOLS / "cuobjdump"), "-res-usage", file.name]
        report = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    usage = dict(re.findall(r"(REG|STACK|LOCAL):(\d+)", report))
    return {
        "registers": int(usage["REG"]),
        "stack": int(usage["STACK"]),
        "local": int(usage["LOCAL"]),
        "shared": binary.metadata.shared,
    }


def jobs(kind: str) -> dict[str, tuple[Any, dict[str, Any], dict[str, int]]]:
    """Name to kernel, constants and options."""
    found: dict[str, tuple[Any, dict[str, Any], dict[str, int]]] = {}
    wide = kind == "fp32"
    for tokens in (1, 64, 4096):
        tile = tiles(tokens, RANKS, D_IN, D_OUT, processors=PROCESSORS, wide=wide)
        blocks = {"BLOCK_T": tile.tokens, "BLOCK_R": tile.ranks, "BLOCK_K": tile.inputs, "STEPS": tile.steps}
        plan = {"SPLITS": tile.splits, "HAS_ROWS": True}
        name = f"{kind} T={tokens}"
        for transposed in (False, True):
            kernel = "shrink, transposed" if transposed else "shrink"
            found[f"{kernel} {name}"] = (shrink.shrink, blocks | {"TRANSPOSED": transposed}, {})
        sizes = {"BLOCK_T": tile.tokens, "BLOCK_N": tile.outputs, "BLOCK_R": tile.ranks_step, "SLICED": tokens == 64}
        found[f"expand {name}"] = (expand.expand, plan | sizes, {"num_stages": EXPAND_STAGES, "num_warps": tile.warps})
        if tokens == 4096:
            elements = plan | {"BLOCK_T": 16, "BLOCK_R": 64}
            found[f"gate {name}"] = (shrink.gate, elements | {"SAVE_H": True}, {})
            found[f"gate_gradient {name}"] = (gradients.gate_gradient, elements, {})
            sizes = {"HAS_ROWS": True, "BLOCK_T": 64, "BLOCK_R": 64}
            found[f"sum_by_row {name}"] = (gradients.sum_by_row, sizes, {})
            m, n, t = (32, 64, 32) if wide else (64, 128, 64)
            sizes = {"HAS_ROWS": True, "BLOCK_T": t, "BLOCK_M": m, "BLOCK_N": n}
            found[f"outer {name}"] = (gradients.outer, sizes, {})
            continue
        warps = {"num_warps": producer_warps(tile.tokens)}
        found[f"rms_norm_shrink {name}"] = (producers.rms_norm_shrink, blocks, warps)
        found[f"silu_mul_shrink {name}"] = (producers.silu_mul_shrink, blocks, warps)
        one = layer_tiles(tokens, RANKS, D_IN, D_OUT, processors=PROCESSORS, shared_bytes=SHARED_BYTES, wide=wide)
        sizes = {
            "BLOCK_T": one.tokens,
            "BLOCK_N": one.outputs,
            "BLOCK_K": one.inputs,
            "BLOCK_R": one.ranks_step,
            "RANK_TILE": one.rank_tile,
            "SPLITS": one.splits,
            "STEPS": one.steps,
            "HAS_ROWS": True,
            "SLICES": 3,
        }
        for base in (True, False):
            kernel = "layer" if base else "layer, product alone"
            found[f"{kernel} {name}"] = (
                layer.layer,
                sizes | {"HAS_BASE": base, "HAS_BIAS": base},
                {"num_stages": one.stages, "num_warps": one.warps},
            )
    return found


if __name__ == "__main__":
    table = {
        f"{name} sm_{arch}": compiled(kernel, kind, constants, arch, **options)
        for kind in sys.argv[1:]
        for name, (kernel, constants, options) in jobs(kind).items()
        for arch in (80, 90)
    }
    print(json.dumps({"triton": triton.__version__, "kernels": table}))
