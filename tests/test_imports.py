"""Imports go in one direction, and `import bdc` stays light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import bdc

PACKAGE = Path(bdc.__file__).parent
BASE = {"errors", "artefacts", "testcase", "machine", "ranges"}
STAGE = {"runs", "progress"}
ALLOWED = {
    "artefacts": set(),
    "machine": set(),
    "ranges": set(),
    "ops": {"_lora", "_lora_cuda", "kernels"},
    "search": {"_search"},
    "llm": set(),
    "sandbox": set(),
    "problems": set(),
    "verdicts": {"runs", "sandbox", "problems"},
    "splits": {"runs", "problems"},
    "boost": STAGE | {"search", "llm", "sandbox", "problems", "splits", "verdicts"},
    "disentangle": STAGE | {"llm", "problems"},
    "customize": STAGE | {"ops", "llm", "disentangle"},
    "serving": {"ops", "llm", "customize"},
    "evaluation": STAGE | {"customize", "sandbox", "llm", "problems", "splits", "verdicts"},
    "report": STAGE,
}


def _imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        modules = []
        if isinstance(node, ast.ImportFrom) and node.module:
            modules = [f"bdc.{alias.name}" for alias in node.names] if node.module == "bdc" else [node.module]
        elif isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        names |= {module.split(".")[1] for module in modules if module.startswith("bdc.")}
    return names - {"__version__"}


def _files(package: str) -> list[Path]:
    files = [*(PACKAGE / package).rglob("*.py"), *PACKAGE.glob(f"{package}.py")]
    assert files, package
    return files


def test_every_package_imports_only_what_it_may() -> None:
    wrong = []
    for package, allowed in ALLOWED.items():
        for path in _files(package):
            extra = _imported(path) - allowed - BASE - {package}
            wrong += [f"{path.relative_to(PACKAGE)} imports bdc.{name}" for name in sorted(extra)]
    assert wrong == []


def test_import_bdc_loads_nothing_heavy() -> None:
    code = (
        "import sys, bdc, bdc.errors\n"
        "heavy = {'transformers', 'peft', 'vllm', 'ray', 'sklearn', 'pyarrow', 'pydantic', 'rich'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
