"""The machine code of the CUDA kernels, as the installed extension holds it: resources as recorded, and no spills."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from bdc.ops import cuda

TABLE = Path(__file__).with_name("cuda_resources.json")
TYPES = {"f": "float32", "NS0_7Float16E": "float16", "NS0_8BFloat16E": "bfloat16"}
NAME = re.compile(rf"(shrink|expand|product_of_tiles)I({'|'.join(TYPES)})Li(\d+)E(?:Lb([01])E)?E")
ARCHITECTURES = {"sm_80", "sm_90a"}


def tool(name: str) -> str:
    """A tool of CUDA from the PATH or from Triton's package."""
    spec = importlib.util.find_spec("triton")
    inside = [] if spec is None or spec.origin is None else [Path(spec.origin).parent / "backends/nvidia/bin" / name]
    found = shutil.which(name) or next((str(path) for path in inside if path.is_file()), None)
    if found is None:
        pytest.skip(f"{name} is not here: it comes with CUDA's toolkit and with pip install --no-deps triton")
    return found


@pytest.fixture(scope="module")
def extension() -> str:
    if not cuda.built():
        pytest.skip("bdc._lora_cuda is not built: it needs nvcc on the PATH when bdc is installed")
    spec = importlib.util.find_spec("bdc._lora_cuda")
    assert spec is not None and spec.origin is not None
    return spec.origin


def kernel_name(mangled: str) -> str | None:
    match = NAME.search(mangled)
    if match is None:
        return None
    kernel, kind, tokens, chunks = match.groups()
    return f"{kernel} {TYPES[kind]} tokens={tokens}" + (" any alignment" if chunks == "0" else "")


def resources(extension: str) -> dict[str, dict[str, dict[str, int]]]:
    """Kernel to architecture to registers, stack, local and static shared bytes."""
    report = subprocess.run([tool("cuobjdump"), "-res-usage", extension], capture_output=True, text=True, check=True)
    found: dict[str, dict[str, dict[str, int]]] = {}
    architecture, name = "", None
    for line in report.stdout.splitlines():
        if line.startswith("arch ="):
            architecture = line.split("=")[1].strip()
        elif line.strip().startswith("Function "):
            name = kernel_name(line)
        elif name is not None and "REG:" in line:
            usage = {key.lower(): int(value) for key, value in re.findall(r"(REG|STACK|SHARED|LOCAL):(\d+)", line)}
            found.setdefault(name, {})[architecture] = usage
            name = None
    return found


def test_resources_are_as_recorded(extension: str) -> None:
    """To record anew after a change: ``python tests/ops/test_cuda_compiles.py``."""
    found, recorded = resources(extension), json.loads(TABLE.read_text(encoding="utf-8"))
    assert found.keys() == recorded.keys() and len(found) == 36
    for name, by_architecture in found.items():
        assert by_architecture.keys() == ARCHITECTURES, name
        for architecture, usage in by_architecture.items():
            assert usage["stack"] == usage["local"] == 0, f"{name} spills on {architecture}: {usage}"
            # Compilers differ by a few registers; 168 lets three blocks of 128 threads share a processor.
            assert usage["reg"] <= min(168, recorded[name][architecture]["reg"] + 8), f"{name} {architecture}: {usage}"
            assert usage["shared"] == recorded[name][architecture]["shared"], f"{name} {architecture}: {usage}"


def test_wide_loads_and_matrix_units(extension: str) -> None:
    """Weights come 16 bytes at a time, and 16-bit tiles are multiplied by the matrix units."""
    listing = subprocess.run(
        [tool("cuobjdump"), "-sass", "-arch", "sm_90a", extension], capture_output=True, text=True, check=True
    ).stdout
    seen = set()
    for part in listing.split("Function : ")[1:]:
        name = kernel_name(part.splitlines()[0])
        if name is None or "any alignment" in name:
            continue
        seen.add(name)
        if name.startswith("product_of_tiles"):
            assert "LDGSTS.E.BYPASS.128" in part and "LDSM.16.M88.4" in part and "HMMA.16816.F32" in part, name
        else:
            assert "LDG.E.128" in part, name
        assert " LDL" not in part and " STL" not in part, name
    assert len(seen) == 30


if __name__ == "__main__":
    spec = importlib.util.find_spec("bdc._lora_cuda")
    assert spec is not None and spec.origin is not None
    TABLE.write_text(json.dumps(resources(spec.origin), indent=1, sort_keys=True) + "\n", encoding="utf-8")
