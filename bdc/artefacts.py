"""What was written to disk, by path and SHA-256, so that a file that is missing, cut or changed is noticed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path


def sha256_of(path: Path) -> str:
    """SHA-256 (hex) of a file's bytes.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprints(root: Path, places: Iterable[Path]) -> dict[str, str]:
    """SHA-256 by path relative to ``root`` of the files at ``places`` (files or folders below it); hidden ones are left out."""
    files = sorted(file for place in places for file in ([place] if place.is_file() else place.rglob("*")))
    named = {file.relative_to(root): file for file in files if file.is_file()}
    return {
        name.as_posix(): sha256_of(file)
        for name, file in named.items()
        if not any(part.startswith(".") for part in name.parts)
    }


def first_changed(root: Path, expected: Mapping[str, str]) -> str | None:
    """The first of the ``expected`` fingerprints whose file is missing, unreadable or another; None if all are as they were."""
    for name, digest in expected.items():
        try:
            if sha256_of(root / name) != digest:
                return name
        except OSError:
            return name
    return None
