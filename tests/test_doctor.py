"""What `bdc doctor` looks for and says."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from bdc import doctor

MODULES = {"scikit-learn": "sklearn"}


def test_it_looks_for_every_package_of_an_extra() -> None:
    text = (Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8")
    extras = tomllib.loads(text)["project"]["optional-dependencies"]
    for extra, modules in doctor._EXTRAS.items():
        names = [re.match(r"[\w.-]+", line)[0] for line in extras[extra] if not line.startswith("bdc[")]  # type: ignore[index]
        assert sorted(MODULES.get(name, name) for name in names) == sorted(modules)


def test_kernels_that_were_not_built_have_both_reasons(monkeypatch: pytest.MonkeyPatch) -> None:
    find = doctor.importlib.util.find_spec
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: None if "_lora_cuda" in name else find(name))
    found = doctor.examine()
    assert found["cuda_kernels"] == "not built (no nvcc when bdc was built, or BDC_CUDA=off)"
    assert "BDC_CUDA=off" in doctor.render(found)
