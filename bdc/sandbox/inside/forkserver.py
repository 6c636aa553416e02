"""The fork server: a warm interpreter that forks one confined child per program and reports how each one ended.

It never sees a program, a test or a value: a child's descriptors arrive over the host's socket and go straight to the
child, so the memory that a child inherits holds nothing of any other program and nothing of the judge.
"""

from __future__ import annotations

import array
import fcntl
import gc
import importlib
import json
import os
import select
import signal
import socket
import struct
import sys
from typing import Any

from bdc.sandbox.inside import guest, referee
from bdc.sandbox.inside.confine import Confinement

# What programs import most; each megabyte more makes every fork dearer.
_WARM = """
    abc array ast bisect cmath collections collections.abc contextlib copy dataclasses datetime decimal enum fractions
    functools hashlib heapq io itertools json math numbers operator os random re statistics string struct sys textwrap
    threading time traceback types typing encodings.latin_1 encodings.ascii
"""
_ROLES = {"guest": guest.main, "referee": referee.main}
_FIRST_SPARE = 64


def main(fd: int, config: dict[str, Any]) -> None:
    """Serve the host on the sequenced-packet socket ``fd`` until it hangs up.

    ``config``: level ("L3".."L0"), modules (extra modules to import and keep readable with their site folders).
    The first message is ``{"ready": level}`` or ``{"refused": reason}``; then, per child, the host sends
    ``{"spawn": {...}}`` with descriptors and gets ``{"pid": n}`` and later ``{"exit": [n, status, cpu_seconds]}``.
    """
    host = socket.socket(fileno=fd)
    try:
        extra = _warm(config["modules"])
        confinement = Confinement(config["level"], extra)
    except (OSError, ImportError) as error:
        host.send(json.dumps({"refused": str(error)}).encode())
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    guest.standard_streams()
    os.environ.clear()
    sys.argv[:] = [""]
    gc.collect()
    gc.freeze()
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
    def __init__(self, host: socket.socket, confinement: Confinement) -> None:
        self._host, self._confinement = host, confinement
        self._null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        self._children: dict[int, int] = {}  # pidfd -> pid

    def serve(self) -> None:
        poller = select.poll()
        poller.register(self._host, select.POLLIN)
        while True:
            for fd, _ in poller.poll():
                if fd in self._children:
                    poller.unregister(fd)
                    self._reap(fd)
                    continue
                message, fds = self._receive()
                if message is None:
                    self._kill(list(self._children.values()))
                    return
                if "kill" in message:
                    self._kill([pid for pid in self._children.values() if pid == message["kill"]])
                else:
                    poller.register(self._spawn(message["spawn"], fds), select.POLLIN)

    def _receive(self) -> tuple[dict[str, Any] | None, list[int]]:
        fds = array.array("i")
        try:
            data, ancillary, _, _ = self._host.recvmsg(
                4096, socket.CMSG_SPACE(8 * fds.itemsize), socket.MSG_CMSG_CLOEXEC
            )
        except OSError:
            return None, []
        for _, _, payload in ancillary:
            fds.frombytes(payload[: len(payload) - len(payload) % fds.itemsize])
        return (json.loads(data) if data else None), list(fds)

    def _send(self, message: dict[str, Any], about: int = 0) -> None:
        """Send; the kernel translates the process id ``about`` into the host's pid namespace."""
        ancillary = []
        if about and self._confinement.level == "L3":
            credentials = struct.pack("3i", about, os.getuid(), os.getgid())
            ancillary = [(socket.SOL_SOCKET, socket.SCM_CREDENTIALS, credentials)]
        try:
            self._host.sendmsg([json.dumps(message).encode()], ancillary)
        except OSError:
            self._kill(list(self._children.values()))
            os._exit(0)

    def _kill(self, pids: list[int]) -> None:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)

    def _reap(self, pidfd: int) -> None:
        pid = self._children.pop(pidfd)
        os.close(pidfd)
        _, status, usage = os.wait4(pid, 0)
        self._confinement.kill_strays(set(self._children.values()))
        self._send({"exit": [pid, status, usage.ru_utime + usage.ru_stime]})

    def _spawn(self, order: dict[str, Any], fds: list[int]) -> int:
        self._confinement.before_fork(alone=not self._children)
        pid = os.fork()
        if pid == 0:
            self._become(order, fds)
        for fd in fds:
            os.close(fd)
        pidfd = os.pidfd_open(pid)
        self._children[pidfd] = pid
        self._send({"pid": pid}, pid)
        return pidfd

    def _become(self, order: dict[str, Any], fds: list[int]) -> None:
        """Turn the fork into the child that was ordered; never returns."""
        try:
            self._confinement.bind_child(order["role"], order["memory"], order["cpu"])
            given = dict(zip(order["fds"], fds, strict=True))
            slots = (given.get("stdin", self._null), given["stdout"], self._null, given["control"], given.get("calls"))
            high = [-1 if fd is None else fcntl.fcntl(fd, fcntl.F_DUPFD, _FIRST_SPARE) for fd in slots]
            for slot, fd in enumerate(high):
                if fd >= 0:
                    os.dup2(fd, slot)
            os.closerange(5 if slots[4] is not None else 4, 256)
            _ROLES[order["role"]](3, 4)
        finally:
            os._exit(0)
