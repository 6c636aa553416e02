"""The Triton kernels as machine code for sm_80 and sm_90, without a GPU: nothing spills, and shared memory fits."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from bdc.ops import backends

# In a process of its own: there the kernels are not interpreted.
SCRIPT = """
import json, re, subprocess, sys, tempfile
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from bdc.kernels import lora
from bdc.ops.triton_kernels import EXPAND_STAGES, tiles

KIND = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"


def compile_one(kernel, pointers, scalars, constants, arch, **options):
    signature = {**pointers, **scalars, **{name: "constexpr" for name in constants}}
    names = list(kernel.arg_names)
    signature = {name: signature[name] for name in names}
    divisible = [name for name in names if name in pointers or name in ("ranks", "d_in", "d_out") or name.endswith("stride")]
    attributes = {(names.index(name),): [["tt.divisibility", 16]] for name in divisible}
    source = ASTSource(kernel, signature, constants, attributes)
    compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        report = subprocess.run([TOOLS / "cuobjdump", "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    usage = dict(re.findall(r"(REG|STACK|LOCAL):(\\d+)", report))
    return {"registers": int(usage["REG"]), "stack": int(usage["STACK"]), "local": int(usage["LOCAL"]), "shared": compiled.metadata.shared}


found = {}
for arch in (80, 90):
    for dtype, kind in KIND.items():
        for tokens in (1, 4096):
            tile = tiles(tokens, 128, 4096, processors=132, wide=dtype == torch.float32)
            blocks = {"BLOCK_T": tile.tokens, "BLOCK_R": tile.ranks}
            found[f"shrink {kind} T={tokens} sm_{arch}"] = compile_one(
                lora.shrink,
                {"x_ptr": f"*{kind}", "a_ptr": f"*{kind}", "planes_ptr": "*fp32"},
                dict.fromkeys(("tokens", "ranks", "d_in", "x_stride", "a_stride"), "i32"),
                blocks | {"BLOCK_K": tile.inputs, "STEPS": tile.steps},
                arch,
            )
            found[f"expand {kind} T={tokens} sm_{arch}"] = compile_one(
                lora.expand,
                {"y_ptr": f"*{kind}", "planes_ptr": "*fp32", "g_ptr": "*fp32", "rows_ptr": "*i32", "b_ptr": f"*{kind}"},
                {"scaling": "fp32", **dict.fromkeys(("tokens", "ranks", "d_out", "y_stride", "g_stride", "b_stride"), "i32")},
                {"SPLITS": tile.splits, "HAS_ROWS": True, "BLOCK_T": tile.tokens, "BLOCK_N": tile.outputs, "BLOCK_R": tile.ranks_step},
                arch,
                num_stages=EXPAND_STAGES,
            )
print(json.dumps(found))
"""


def test_nothing_spills() -> None:
    if "triton" not in backends():
        pytest.skip("Triton is missing (pip install --no-deps triton), or bdc was installed without its kernels")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert len(found) == 24
    for name, usage in found.items():
        assert usage["local"] == 0 and usage["stack"] == 0, f"{name} spills: {usage}"
        assert usage["shared"] <= 96 * 1024, f"{name}: {usage}"
        assert usage["registers"] <= 255
