"""The loop of a fork server in C (csrc/sandbox/forkserver.cpp), through ctypes."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable

_MAX_CHILDREN, _MAX_ENDED = 64, 255

# Why the loop returned; GUEST and REFEREE are the returns in a child.
HANG_UP, GUEST, REFEREE, DIRTY, STRAYS = range(5)


class _Order(ctypes.Structure):
    _pack_ = 1
    _fields_ = (
        ("role", ctypes.c_uint8),
        ("mask", ctypes.c_uint8),
        ("cpu", ctypes.c_uint32),
        ("memory", ctypes.c_uint64),
    )


class _Exit(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("pid", ctypes.c_int32), ("status", ctypes.c_int32), ("cpu_seconds", ctypes.c_double))


class Server(ctypes.Structure):
    """What the loop knows: the first group is set here, the second is its own."""

    _fields_ = (
        ("host", ctypes.c_int32),
        ("life", ctypes.c_int32),
        ("scratch", ctypes.c_int32),
        ("rules", ctypes.c_int32 * 2),
        ("new_pid_namespace", ctypes.c_int32),
        ("new_session", ctypes.c_int32),
        ("drop_capabilities", ctypes.c_int32),
        ("watch_strays", ctypes.c_int32),
        ("filter_length", ctypes.c_int32),
        ("filter", ctypes.c_void_p),
        ("base_memory", ctypes.c_uint64),
        ("most_memory", ctypes.c_uint64),
        ("tasks", ctypes.c_uint64),
        ("forking", ctypes.c_int32),
        ("order_fds", ctypes.c_int32),
        ("ended", ctypes.c_int32),
        ("children", ctypes.c_int32),
        ("fds", ctypes.c_int32 * 8),
        ("pids", ctypes.c_int32 * _MAX_CHILDREN),
        ("order", _Order),
        ("exits", _Exit * _MAX_ENDED),
    )


class Library:
    """The shared library at ``path``. Raises OSError where it cannot be loaded."""

    def __init__(self, path: str) -> None:
        self._library = ctypes.PyDLL(path)  # keeps the interpreter's lock, which a child could not take back

    def loop(self, server: Server) -> Callable[[], int]:
        """Return what serves until something is to be done in Python (`HANG_UP`, `DIRTY`, `STRAYS`), or is a child."""
        return functools.partial(self._library.bdc_serve, ctypes.byref(server))

    def settle(self) -> None:
        """Prepare the process for many forks; the last thing to do before the first one."""
        self._library.bdc_settle()
