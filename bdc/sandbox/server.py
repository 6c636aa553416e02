"""The host's handle of one fork server: start it, order children, end them, learn how they ended."""

from __future__ import annotations

import json
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from bdc.errors import BdcError, InputError

_BOOT = Path(__file__).parent / "inside" / "boot.py"
_START_SECONDS = 60.0
_ANSWER_SECONDS = 30.0
_CREDENTIALS = struct.Struct("3i")


class SandboxError(BdcError):
    """The sandbox itself failed; it says nothing about the program."""


class ServerLostError(SandboxError):
    """The fork server died; start another and judge the program again."""


class LevelRefusedError(SandboxError):
    """The machine does not offer the level of isolation that was asked for."""


class ForkServer:
    """A fork server process; use from one thread at a time.

    Raises:
        LevelRefusedError: the kernel or its policy forbids ``level``.
        InputError: ``python`` cannot be run.
    """

    def __init__(self, level: str, python: str | None = None, modules: tuple[str, ...] = ()) -> None:
        self.level = level
        self.spawned = 0
        self.exits: dict[int, tuple[int, float]] = {}  # pid -> wait status, CPU seconds
        self._socket, inner = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        config = json.dumps({"level": level, "modules": modules})
        command = [python or sys.executable, "-S", "-B", "-X", "utf8", str(_BOOT), str(inner.fileno()), config]
        environment = {"PYTHONHASHSEED": "0", "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
        try:
            self._process = subprocess.Popen(
                command,
                env=environment,
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                pass_fds=(inner.fileno(),),
                start_new_session=True,
            )
        except OSError as error:
            self._socket.close()
            raise InputError(f"the sandbox's interpreter {command[0]!r} cannot be run: {error.strerror}") from error
        finally:
            inner.close()
        self._await_ready()

    def _await_ready(self) -> None:
        try:
            answer = self._receive(_START_SECONDS)
        except ServerLostError:
            answer = {"refused": self._last_words() or "the server died at its start"}
        if "ready" not in answer:
            self.close()
            raise LevelRefusedError(f"isolation level {self.level} is not available here: {answer.get('refused')}")
        if self._process.stderr:
            self._process.stderr.close()

    def _last_words(self) -> str:
        self._process.kill()
        _, errors = self._process.communicate()
        return errors.decode(errors="replace").strip().rpartition("\n")[2][:300]

    def fileno(self) -> int:
        """The descriptor that becomes readable when a child has ended or the server has died."""
        return self._socket.fileno()

    @property
    def pid(self) -> int:
        """Process id of the server."""
        return self._process.pid

    def spawn(self, order: dict[str, Any], fds: list[int]) -> tuple[int, int]:
        """Fork a child with the descriptors ``fds``; return its process id for the server and for this process."""
        self._send({"spawn": order}, fds)
        self.spawned += 1
        while True:
            answer = self._receive(_ANSWER_SECONDS)
            if "pid" in answer:
                return int(answer["pid"]), int(answer.get("translated", answer["pid"]))
            self._note(answer)

    def kill(self, pid: int) -> None:
        """End a child, if it still lives; its exit is reported as usual."""
        self._send({"kill": pid}, [])

    def poll(self) -> None:
        """Take in the one message that `fileno` announced."""
        self._note(self._receive(_ANSWER_SECONDS))

    def wait(self, pid: int) -> tuple[int, float]:
        """Wait for a child that is about to end; return its wait status and CPU seconds, once."""
        while pid not in self.exits:
            self.poll()
        return self.exits.pop(pid)

    def close(self) -> None:
        """End the server and every child; no process is left when this returns."""
        self._socket.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stderr:
            self._process.stderr.close()

    def _note(self, message: dict[str, Any]) -> None:
        pid, status, seconds = message["exit"]
        self.exits[pid] = (status, seconds)

    def _send(self, message: dict[str, Any], fds: list[int]) -> None:
        try:
            socket.send_fds(self._socket, [json.dumps(message).encode()], fds)
        except OSError as error:
            raise ServerLostError("the sandbox's fork server died") from error

    def _receive(self, timeout: float) -> dict[str, Any]:
        self._socket.settimeout(timeout)
        try:
            data, ancillary, _, _ = self._socket.recvmsg(4096, socket.CMSG_SPACE(_CREDENTIALS.size))
        except OSError as error:
            raise ServerLostError("the sandbox's fork server does not answer") from error
        if not data:
            raise ServerLostError("the sandbox's fork server died")
        message = dict(json.loads(data))
        if "pid" in message and self.level == "L3":
            message["translated"] = _CREDENTIALS.unpack(ancillary[0][2])[0]
        return message


def cpu_seconds(pid: int) -> float | None:
    """Return the CPU time that a live process has used, all its threads, to the nanosecond; None once it is gone."""
    try:
        return time.clock_gettime((~pid << 3) | 2)
    except OSError:
        return None
