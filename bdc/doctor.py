"""What this machine has, and what to install for the rest."""

from __future__ import annotations

import importlib.util
import platform
from typing import Any

_EXTRAS = {
    "run": (
        "accelerate",
        "gguf",
        "httpx",
        "peft",
        "pyarrow",
        "pydantic",
        "rich",
        "safetensors",
        "sklearn",
        "transformers",
    ),
    "serve": ("vllm",),
    "ray": ("ray",),
    "hub": ("datasets",),
}


def examine() -> dict[str, Any]:
    """Findings by name; nothing heavy is imported but torch."""
    import torch

    import bdc
    from bdc.ops import backends
    from bdc.sandbox import detect_level

    level = detect_level()
    missing = {
        extra: [name for name in names if importlib.util.find_spec(name) is None] for extra, names in _EXTRAS.items()
    }
    found: dict[str, Any] = {
        "bdc": bdc.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cuda": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
        "triton": importlib.util.find_spec("triton") is not None,
        "op_backends": list(backends()),
        "cuda_kernels": "built"
        if importlib.util.find_spec("bdc._lora_cuda")
        else "not built (no nvcc when bdc was built, or BDC_CUDA=off)",
        "tree_core": importlib.util.find_spec("bdc._search") is not None,
        "sandbox": {"level": str(level.level), "missing": list(level.missing)},
        "missing_packages": {extra: names for extra, names in missing.items() if names},
    }
    if not missing["run"]:
        from bdc.llm import list_models

        found["models"] = {row["name"]: bool(row["cached"]) for row in list_models()}
    return found


def render(findings: dict[str, Any]) -> str:
    """Findings for a person, one a line, with what to do about what is missing."""
    lines = []
    for name, value in findings.items():
        if name == "missing_packages":
            lines += [
                f"{'missing':16} {', '.join(names)}: pip install 'bdc[{extra}]'" for extra, names in value.items()
            ]
        elif name == "sandbox":
            lines.append(
                f"{name:16} {value['level']}"
                + (f" (missing: {', '.join(value['missing'])})" if value["missing"] else "")
            )
        elif name == "models":
            lines += [
                f"{'model':16} {model}: {'cached' if ok else f'not here; bdc models fetch {model}'}"
                for model, ok in value.items()
            ]
        else:
            lines.append(f"{name:16} {value if value is not None else 'none'}")
    return "\n".join(lines)
