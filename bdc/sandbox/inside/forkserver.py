"""The fork server: a warm interpreter that forks one confined child per program and reports how each one ended.

It never sees a program, a test or a value: a child's descriptors arrive over the host's socket and go straight to the
child, so the memory that a child inherits holds nothing of any other program and nothing of the judge.
"""

from __future__ import annotations

import array
import importlib
import json
import os
import signal
import socket
import struct
import sys
from collections.abc import Sequence
from typing import Any

from bdc.sandbox.inside import guest, referee, settle
from bdc.sandbox.inside.confine import Confinement
from bdc.sandbox.inside.orders import CALLS, CONTROL, EXIT, ORDER, PID, ROLES, SLOTS

# What programs import most; each megabyte more makes every fork dearer.
_WARM = """
    abc array ast bisect cmath collections collections.abc contextlib copy dataclasses datetime decimal enum fractions
    functools heapq io itertools json math numbers operator os random re string struct sys textwrap
    threading time traceback types typing encodings.latin_1 encodings.ascii
"""
_ROOM = socket.CMSG_SPACE(8 * array.array("i").itemsize)


def main(fd: int, config: dict[str, Any]) -> None:
    """Serve the host on the sequenced-packet socket ``fd`` until it hangs up.

    ``config``: level ("L3".."L0"), modules (extra modules to import and keep readable with their site folders).
    The first message is ``{"ready": level}`` or ``{"refused": reason, "module": whether an import failed}``. Then each message of the host is an `ORDER`
    for a child (or none, role 0) with its descriptors, and the `PID` of each child to end before; the answer is the
    new child's `PID` (or 0) and an `EXIT` for each that ended. A child is reaped on order only, so that its process id
    is the host's to use until then.
    """
    host = socket.socket(fileno=fd)
    try:
        extra = _warm(config["modules"])
        confinement = Confinement(config["level"], extra)
    except (OSError, ImportError) as error:
        host.send(json.dumps({"refused": str(error), "module": isinstance(error, ImportError)}).encode())
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    guest.like_plain_python()
    os.environ.clear()
    sys.argv[:] = [""]
    settle.settle()
    confinement.close_ranks()
    host.send(json.dumps({"ready": config["level"]}).encode())
    _Server(host, confinement).serve()


def _warm(modules: list[str]) -> list[str]:
    register, os.register_at_fork = os.register_at_fork, lambda **_: None  # type: ignore[assignment]
    try:
        for name in _WARM.split():
            importlib.import_module(name)
    finally:
        os.register_at_fork = register  # type: ignore[assignment]
    sys.modules["random"].seed(0)  # and no hook of `random` seeds it anew: every program sees the same sequence
    if not modules:
        return []
    import site

    before = set(sys.path)
    site.main()
    for name in modules:
        importlib.import_module(name)
    return [path for path in sys.path if path not in before]


class _Server:
    """Does as little as it can: every page that it touches after a fork is copied once more."""

    def __init__(self, host: socket.socket, confinement: Confinement) -> None:
        self._host, self._confinement = host, confinement
        self._null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        while os.dup(self._null) < SLOTS:  # what arrives must not land on a slot of the child
            pass
        self._children: set[int] = set()

    def serve(self) -> None:
        os.dup2(self._null, 2)  # what programs write to stderr goes nowhere; until now it was the server's own
        while True:
            try:
                data, ancillary, _, _ = self._host.recvmsg(4096, _ROOM, socket.MSG_CMSG_CLOEXEC)
            except OSError:
                return
            if not data:
                return
            fds = array.array("i", ancillary[0][2]) if ancillary else ()
            role, mask, cpu, memory = ORDER.unpack_from(data)
            reply = b"".join(self._end(pid) for (pid,) in PID.iter_unpack(data[ORDER.size :]))
            pid = self._spawn(role, mask, cpu, memory, fds) if role else 0
            credentials = []
            if pid and self._confinement.level == "L3":  # the kernel translates the process id for the host
                body = struct.pack("3i", pid, os.getuid(), os.getgid())
                credentials = [(socket.SOL_SOCKET, socket.SCM_CREDENTIALS, body)]
            try:
                self._host.sendmsg([PID.pack(pid), reply], credentials)
            except OSError:
                return

    def _end(self, pid: int) -> bytes:
        """Kill a child, if it still lives, and return how it ended."""
        os.kill(pid, signal.SIGKILL)
        _, status, usage = os.wait4(pid, 0)
        self._children.discard(pid)
        self._confinement.kill_strays(self._children)
        return EXIT.pack(pid, status, usage.ru_utime + usage.ru_stime)

    def _spawn(self, role: int, mask: int, cpu: int, memory: int, fds: Sequence[int]) -> int:
        self._confinement.before_fork(alone=not self._children)
        pid = self._confinement.fork()
        if pid == 0:
            self._become(role, mask, cpu, memory, fds)
        for fd in fds:
            os.close(fd)
        self._children.add(pid)
        return pid

    def _become(self, role: int, mask: int, cpu: int, memory: int, fds: Sequence[int]) -> None:
        """Turn the fork into the child that was ordered; never returns."""
        try:
            self._confinement.bind_child(ROLES[role], memory, cpu)
            slots = [slot for slot in range(SLOTS) if mask >> slot & 1]
            for slot, fd in zip(slots, fds, strict=True):
                os.dup2(fd, slot)
            os.closerange(SLOTS, 128)
            (guest.main if ROLES[role] == "guest" else referee.main)(CONTROL, CALLS)
        finally:
            os._exit(0)
