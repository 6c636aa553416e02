"""Landlock: one ruleset per fork server, applied by each child to itself."""

from __future__ import annotations

import ctypes
import os
import stat
from collections.abc import Iterable

from bdc.sandbox.inside import kernel

_CREATE, _ADD = 444, 445
_VERSION_FLAG, _PATH_BENEATH = 1, 1
_READ_FILE, _READ_DIR = 1 << 2, 1 << 3
_FILE_RIGHTS = 1 | (1 << 1) | _READ_FILE | (1 << 14) | (1 << 15)
_WRITES = sum(1 << bit for bit in (1, 4, 5, 7, 8, 10, 12, 14))  # write, remove, make dir, file, fifo, symlink, truncate


class _Beneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("allowed", ctypes.c_uint64), ("fd", ctypes.c_int32))


def version() -> int:
    """Return the kernel's Landlock ABI, 0 where there is none."""
    try:
        return kernel.syscall("landlock_create_ruleset", _CREATE, None, 0, _VERSION_FLAG)
    except OSError:
        return 0


def ruleset(readable: Iterable[str], writable: Iterable[str]) -> int:
    """Return the descriptor of a ruleset: read beneath ``readable``, read and write beneath ``writable``, no more.

    TCP is forbidden from ABI 4 on, signals and abstract unix sockets outside the process's own domain from ABI 6 on.
    """
    abi = version()
    handled = (1 << {1: 13, 2: 14, 3: 15, 4: 15}.get(abi, 16)) - 1
    attributes = (ctypes.c_uint64 * 3)(handled, 3 if abi >= 4 else 0, 3 if abi >= 6 else 0)
    size = 24 if abi >= 6 else 16 if abi >= 4 else 8
    rules = kernel.syscall("landlock_create_ruleset", _CREATE, attributes, size, 0)
    for paths, rights in ((readable, _READ_FILE | _READ_DIR), (writable, _READ_FILE | _READ_DIR | _WRITES)):
        for path in paths:
            _allow(rules, path, rights & handled)
    return rules


def _allow(rules: int, path: str, rights: int) -> None:
    fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        if not stat.S_ISDIR(os.fstat(fd).st_mode):
            rights &= _FILE_RIGHTS
        kernel.syscall("landlock_add_rule", _ADD, rules, _PATH_BENEATH, ctypes.byref(_Beneath(rights, fd)), 0)
    finally:
        os.close(fd)
