"""The host's handle of one fork server: start it, order children, end them, learn how they ended."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import socket
import struct
import subprocess
import sys
import time
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from bdc.errors import BdcError, InputError
from bdc.sandbox.inside.orders import EXIT, ORDER, PID, ROLES

_BOOT = Path(__file__).parent / "inside" / "boot.py"
_START_SECONDS = 60.0
_ANSWER_SECONDS = 30.0
_CREDENTIALS = struct.Struct("3i")
_NO_CHILD = ORDER.pack(0, 0, 0, 0)


class SandboxError(BdcError):
    """The sandbox itself failed; it says nothing about the program."""


class ServerLostError(SandboxError):
    """The fork server died; start another and judge the program again."""


class LevelRefusedError(SandboxError):
    """The machine does not offer the level of isolation that was asked for."""


class ModuleRefusedError(LevelRefusedError, InputError):
    """An extra module cannot be imported by the sandbox's interpreter."""


@dataclass(frozen=True, slots=True)
class Child:
    """A child's process id in the server's pid namespace and in ours; both stay valid until it is reaped."""

    number: int
    pid: int


class ForkServer:
    """A fork server process; use from one thread at a time.

    With ``cpu`` it and its children stay on that core, next to the host's thread: they take turns, and caches stay
    warm. `set_free` lets a child go that turns out to have more to do.

    Raises:
        LevelRefusedError: the kernel or its policy forbids ``level``.
        InputError: ``python`` cannot be run, or cannot import one of ``modules``.
    """

    def __init__(
        self, level: str, python: str | None = None, modules: tuple[str, ...] = (), cpu: int | None = None
    ) -> None:
        self.level, self.cpu, self._python = level, cpu, python
        self.spawned = 0
        self._exits: dict[int, tuple[int, float]] = {}  # wait status, CPU seconds
        self._left: list[int] = []
        self._random = ""
        self._socket, inner = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        config = json.dumps({"level": level, "modules": modules, "library": _library()})
        command = [python or sys.executable, "-S", "-B", "-X", "utf8", str(_BOOT), str(inner.fileno()), config]
        # An arena per thread would reserve 64 MiB of address space each, which is what the memory limit counts.
        environment = {"PYTHONHASHSEED": "0", "MALLOC_ARENA_MAX": "1", "LD_BIND_NOW": "1"}
        environment |= {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
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
            data, ancillary = self._receive(_START_SECONDS)
            answer = json.loads(data)
            self._inner = _CREDENTIALS.unpack(ancillary[0][2])[0]  # at L3 a child of the process that we started
            if self.cpu is not None:
                _keep_on(self._inner, {self.cpu})
        except ServerLostError:
            answer = {"refused": self._last_words() or "the server died at its start"}
            if self._python:
                self.close()
                raise InputError(
                    f"interpreter {self._python!r} cannot serve the sandbox (Python 3.10 or newer can): {answer['refused']}"
                ) from None
        if "ready" not in answer:
            self.close()
            if answer.get("module"):
                raise ModuleRefusedError(
                    f"the sandbox's interpreter cannot import an allowed module: {answer['refused']}"
                )
            raise LevelRefusedError(f"isolation level {self.level} is not available here: {answer.get('refused')}")
        if self._process.stderr:
            self._process.stderr.close()

    def _last_words(self) -> str:
        self._process.kill()
        _, errors = self._process.communicate()
        return errors.decode(errors="replace").strip().rpartition("\n")[2][:300]

    def nonce(self) -> str:
        """Return 16 hexadecimal digits that nobody can guess."""
        if not self._random:
            self._random = secrets.token_hex(1024)  # a call to the kernel for each would cost more than the rest
        nonce, self._random = self._random[:16], self._random[16:]
        return nonce

    @property
    def pid(self) -> int:
        """Process id of the server."""
        return self._process.pid

    def spawn(self, role: str, fds: dict[int, int], cpu_seconds: int, memory: int) -> Child:
        """Fork a child; ``fds`` maps its descriptors (`orders.STDIN` and so on) to ours. It is confined already.

        Children that `leave` was told of are gone, with all they held, when this returns.
        """
        slots = sorted(fds)
        order = ORDER.pack(ROLES.index(role), sum(1 << slot for slot in slots), cpu_seconds, memory)
        number, pid = self._exchange(order, self._left, [fds[slot] for slot in slots])
        self._left.clear()
        self.spawned += 1
        return Child(number, pid)

    def set_free(self, child: Child | None = None) -> None:
        """Let a child, or from now on the server and all its children, run on every core that the host may use."""
        if self.cpu is not None:
            _keep_on(child.pid if child else self._inner, os.sched_getaffinity(os.getpid()))
        if child is None:
            self.cpu = None

    def reap(self, child: Child) -> tuple[int, float]:
        """End a child, if it still lives; return its wait status and CPU seconds."""
        self._exchange(_NO_CHILD, [child.number], [])
        return self._exits.pop(child.number)

    def leave(self, child: Child) -> None:
        """End a child that nobody waits for; it is reaped before the next one begins."""
        if self.level in ("L3", "L2"):
            try:
                os.kill(child.pid, signal.SIGKILL)
            except ProcessLookupError as error:  # unreaped by the server, it would be there
                raise ServerLostError("the sandbox's fork server died with its children") from error
            except PermissionError:
                pass
            else:
                self._left.append(child.number)
                return
        self.reap(child)

    def _exchange(self, order: bytes, ended: list[int], fds: list[int]) -> tuple[int, int]:
        """Send an order; note the exits in the answer, return the new child's process id there and here."""
        try:
            socket.send_fds(self._socket, [order, *map(PID.pack, ended)], fds)
        except OSError as error:
            raise ServerLostError("the sandbox's fork server died") from error
        data, ancillary = self._receive(_ANSWER_SECONDS)
        for number, status, seconds in EXIT.iter_unpack(data[PID.size :]):
            self._exits[number] = (status, seconds)
        for number in self._left:
            self._exits.pop(number, None)
        (number,) = PID.unpack_from(data)
        if number and self.level == "L3":
            return number, _CREDENTIALS.unpack(ancillary[0][2])[0]
        return number, number

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

    def _receive(self, timeout: float) -> tuple[bytes, list[tuple[int, int, bytes]]]:
        self._socket.settimeout(timeout)
        try:
            data, ancillary, _, _ = self._socket.recvmsg(4096, socket.CMSG_SPACE(_CREDENTIALS.size))
        except OSError as error:
            raise ServerLostError("the sandbox's fork server does not answer") from error
        if not data:
            raise ServerLostError("the sandbox's fork server died")
        return data, ancillary


def _library() -> str:
    """Return the path of the fork server's loop, which any interpreter can load."""
    found = find_spec("bdc._forkserver")
    if found is None or found.origin is None:
        raise SandboxError("the compiled part _forkserver of bdc is missing; install bdc with `pip install .`")
    return found.origin


def _keep_on(pid: int, cpus: set[int]) -> None:
    """Choose the cores of a process; where that is forbidden it runs on any."""
    with contextlib.suppress(OSError):
        os.sched_setaffinity(pid, cpus)


def cpu_seconds(pid: int) -> float:
    """Return the CPU time that a process not yet reaped has used, all its threads, to the nanosecond."""
    try:
        return time.clock_gettime((~pid << 3) | 2)
    except OSError as error:
        raise ServerLostError("the sandbox's fork server died with its children") from error


def queued_seconds(pid: int) -> float:
    """Return how long a process, the most delayed of its threads, was ready to run and had no core."""
    try:
        threads = list(Path(f"/proc/{pid}/task").iterdir())
        return max(int((thread / "schedstat").read_text().split()[1]) for thread in threads) * 1e-9
    except (OSError, ValueError, LookupError):  # it has ended, or this kernel does not say
        return 0.0
