"""vLLM's LoRA kernels for Triton in a folder for PYTHONPATH, for `gpu_op.py` on a machine without a registry.

    python benchmarks/peers/vllm_kernels.py DEST [--wheel FILE]

Downloads vLLM's wheel with pip (about 340 MB, into a temporary folder, unless FILE is one) and takes from it, as they are, the
files in ``UPSTREAM``: the kernels, their launchers, the choice of block sizes and the metadata, and its licence. What they import
besides torch and Triton is ours, ``OURS`` below, in place of modules that load the whole engine: which platform this is, the
registration of an operator, a logger, and package files that import nothing else. Nothing compiled is taken.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

VERSION = "0.33.0"
UPSTREAM = (
    "vllm/envs.py",
    "vllm/utils/math_utils.py",
    *(
        f"vllm/lora/ops/triton_ops/{name}.py"
        for name in ("kernel_utils", "lora_expand_op", "lora_kernel_metadata", "lora_shrink_op", "utils")
    ),
)
OURS = {
    "vllm/__init__.py": f'__version__ = "{VERSION}"\n',
    "vllm/lora/__init__.py": "",
    "vllm/lora/ops/__init__.py": "",
    "vllm/utils/__init__.py": "",
    "vllm/lora/ops/triton_ops/__init__.py": """\
from vllm.lora.ops.triton_ops.lora_expand_op import lora_expand
from vllm.lora.ops.triton_ops.lora_kernel_metadata import LoRAKernelMeta
from vllm.lora.ops.triton_ops.lora_shrink_op import lora_shrink

__all__ = ["LoRAKernelMeta", "lora_expand", "lora_shrink"]
""",
    "vllm/triton_utils/__init__.py": """\
import triton
import triton.language as tl

__all__ = ["tl", "triton"]
""",
    "vllm/logger.py": """\
import functools
import logging


class Logger(logging.LoggerAdapter):
    @functools.cache
    def info_once(self, message):
        self.info(message)

    @functools.cache
    def warning_once(self, message):
        self.warning(message)


def init_logger(name):
    return Logger(logging.getLogger(name), {})
""",
    "vllm/platforms.py": """\
import torch


class Platform:
    dispatch_key = "CUDA" if torch.cuda.is_available() else "CPU"

    def is_cuda(self):
        return self.dispatch_key == "CUDA"

    def _capability(self):
        major, minor = torch.cuda.get_device_capability()
        return 10 * major + minor

    def has_device_capability(self, capability):
        return self._capability() >= capability

    def is_device_capability(self, capability):
        return self._capability() == capability


current_platform = Platform()
""",
    "vllm/utils/torch_utils.py": """\
import torch

from vllm.platforms import current_platform

library = torch.library.Library("vllm", "FRAGMENT")


def async_tensor_h2d(data, dtype, device):
    return torch.tensor(data, dtype=dtype).to(device)


def direct_register_custom_op(op_name, op_func, mutates_args):
    library.define(op_name + torch.library.infer_schema(op_func, mutates_args=mutates_args))
    library.impl(op_name, op_func, dispatch_key=current_platform.dispatch_key)
""",
}


def build(wheel: Path, dest: Path) -> int:
    """Fill DEST/vllm; the number of bytes written."""
    package = dest / "vllm"
    if package.exists():
        if not (package / "lora/ops/triton_ops/kernel_utils.py").is_file():
            raise SystemExit(f"{package} is not of this script's making: left alone")
        shutil.rmtree(package)
    contents = {name: text.encode() for name, text in OURS.items()}
    with zipfile.ZipFile(wheel) as archive:
        contents |= {name: archive.read(name) for name in UPSTREAM}
        (licence,) = (name for name in archive.namelist() if name.endswith("dist-info/licenses/LICENSE"))
        contents["vllm/LICENSE"] = archive.read(licence)
    for name, content in contents.items():
        path = dest / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return sum(map(len, contents.values()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dest", type=Path, metavar="DEST")
    parser.add_argument("--wheel", type=Path, metavar="FILE", help=f"vLLM {VERSION}'s wheel, if it is here already")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if args.wheel is None:
            command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", "-d", folder]
            subprocess.run([*command, f"vllm=={VERSION}"], check=True)
            (args.wheel,) = Path(folder).glob("vllm-*.whl")
        print(f"{args.dest}: {build(args.wheel, args.dest)} bytes of vLLM {VERSION}'s kernels and what they import")


if __name__ == "__main__":
    main()
