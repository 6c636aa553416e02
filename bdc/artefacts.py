"""Files and folders that appear whole or not at all, and their SHA-256, by which one that is missing, cut or changed is noticed."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from bdc.errors import InputError


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


def make_way(path: Path) -> None:
    """Make the folder of a file in which long work will end, so that it does not end in a file that cannot be written.

    Raises:
        InputError: the folder cannot be made, or a folder is in the file's place.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{path.parent} cannot be made: {describe_os_error(error)}") from error
    if path.is_dir():
        raise InputError(f"{path} is a folder; name a file")


def atomic_write(path: Path, data: bytes | str) -> None:
    """Write a whole file or nothing: temporary file beside it, fsync, rename.

    Raises:
        InputError: the disk is full or the folder cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise InputError(f"{path} cannot be written: {describe_os_error(error)}") from error


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Write a whole folder or nothing: the block fills the empty folder it gets, which then replaces ``path``.

    Raises:
        InputError: the disk is full or the folder cannot be written.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        yield temporary
        remove(path)
        temporary.rename(path)
    except Exception as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, OSError) or _of_safetensors(error):
            raise InputError(f"{path} cannot be written: {describe_os_error(error)}") from error
        raise


def remove(path: Path) -> None:
    """Delete a file, a link or a folder, if there is one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _of_safetensors(error: Exception) -> bool:
    """safetensors raises its own error where the system refuses to write; it is not imported here for that."""
    library = sys.modules.get("safetensors")
    return library is not None and isinstance(error, library.SafetensorError)


def describe_os_error(error: Exception) -> str:
    """One clause for a person: what failed and what to do."""
    if getattr(error, "errno", None) == errno.ENOSPC or f"os error {errno.ENOSPC}" in str(error):
        return "the disk is full; free some space and run the same command again"
    return f"{getattr(error, 'strerror', None) or error}"
