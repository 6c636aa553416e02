"""The system calls that Python's standard library does not offer, through ctypes."""

from __future__ import annotations

import ctypes
import os
import platform

_libc = ctypes.CDLL(None, use_errno=True)
MACHINE = platform.machine()

CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC = 0x00020000, 0x04000000, 0x08000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
MS_PRIVATE_REC, MNT_DETACH = 0x44000, 2
MS_NOSUID_NODEV_NOEXEC = 2 | 4 | 8
_OPEN_TREE, _MOVE_MOUNT, _MOUNT_SETATTR = 428, 429, 442
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
_AT_FDCWD, _AT_EMPTY_PATH, _AT_RECURSIVE, _OPEN_TREE_CLONE = -100, 0x1000, 0x8000, 1
_MOUNT_READ_ONLY, _MOUNT_NOSUID = 1, 2

PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_KEEPCAPS, PR_SET_SECCOMP = 1, 4, 8, 22
PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 36, 38
CAP_DAC_READ_SEARCH = 2


def _checked(name: str, result: int) -> int:
    if result == -1:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")
    return result


def syscall(name: str, number: int, *args: object) -> int:
    """Make a raw system call; integers are passed as C longs. Raises OSError."""
    return _checked(name, _libc.syscall(number, *(ctypes.c_long(a) if isinstance(a, int) else a for a in args)))


def prctl(option: int, *args: object) -> int:
    """prctl(2); integers are passed as C longs. Raises OSError."""
    padded = [*args, 0, 0, 0, 0][:4]
    return _checked("prctl", _libc.prctl(option, *(ctypes.c_long(a) if isinstance(a, int) else a for a in padded)))


def unshare(flags: int) -> None:
    """unshare(2)."""
    _checked("unshare", _libc.unshare(flags))


def mount(source: str, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    """mount(2)."""
    texts = [None if text is None else text.encode() for text in (source, target, kind, data)]
    _checked("mount " + target, _libc.mount(texts[0], texts[1], texts[2], ctypes.c_ulong(flags), texts[3]))


def unmount(target: str) -> None:
    """umount2(2), lazily."""
    _checked("umount2 " + target, _libc.umount2(target.encode(), MNT_DETACH))


def _read_only(fd: int, path: bytes, flags: int) -> None:
    attributes = (ctypes.c_uint64 * 4)(_MOUNT_READ_ONLY | _MOUNT_NOSUID, 0, 0, 0)
    syscall("mount_setattr", _MOUNT_SETATTR, fd, path, flags, attributes, 32)


def read_only(path: str) -> None:
    """Make the one mount at ``path`` read-only."""
    _read_only(_AT_FDCWD, path.encode(), 0)


def clone_tree(path: str) -> int:
    """Return a detached, read-only, recursive copy of the mount tree at ``path`` (a descriptor)."""
    flags = _OPEN_TREE_CLONE | _AT_RECURSIVE | os.O_CLOEXEC
    fd = syscall("open_tree " + path, _OPEN_TREE, _AT_FDCWD, path.encode(), flags)
    _read_only(fd, b"", _AT_EMPTY_PATH | _AT_RECURSIVE)
    return fd


def attach_tree(fd: int, target: str) -> None:
    """Mount what `clone_tree` returned at ``target`` and close it."""
    syscall("move_mount " + target, _MOVE_MOUNT, fd, b"", _AT_FDCWD, target.encode(), 4)
    os.close(fd)


def pivot_here() -> None:
    """Make the working directory the root and let go of the old root."""
    syscall("pivot_root", _PIVOT_ROOT[MACHINE], b".", b".")
    unmount(".")
    os.chdir("/")


def set_capabilities(mask: int) -> None:
    """capset(2): permitted and effective become ``mask`` (bits below 32 only), inheritable becomes empty."""
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    _checked("capset", _libc.capset(header, (ctypes.c_uint32 * 6)(mask, mask, 0, 0, 0, 0)))
