"""One confined child as the host sees it: frames, output, clocks, and the moment it breaks a limit."""

from __future__ import annotations

import os
import select
import signal
import socket
import threading
import time
from collections.abc import Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass
from typing import Any

from bdc.errors import InputError
from bdc.sandbox.inside import frames
from bdc.sandbox.inside.orders import CALLS, CONTROL, STDIN, STDOUT
from bdc.sandbox.limits import Limits
from bdc.sandbox.server import ForkServer, cpu_seconds, queued_seconds

_TICK = 0.001
_SHORT = 0.02  # a program that runs longer may leave the core of its server
_STOP_SECONDS = 0.25  # how late a cancellation may be noticed


@dataclass(frozen=True, slots=True)
class End:
    """Why a child gave no answer: the status for its test, a sentence, and whether the wall clock decided."""

    status: str
    message: str
    by_wall: bool = False
    exit_code: int | None = None


ENOUGH = End("", "the judge knows what it asked for")  # not the program's doing, so it costs no restart


class Session:
    """A child of the fork server. Close it; a context manager."""

    def __init__(
        self,
        server: ForkServer,
        role: str,
        limits: Limits,
        tests: int,
        stdin: int | None = None,
        calls: socket.socket | None = None,
        output_bytes: int = 0,
    ) -> None:
        self.nonce = server.nonce()
        self.subject = "the program" if role == "guest" else "the code of the test"
        self.patience = 0.0  # seconds until a limit could be broken
        self._cpu_start = self._wall_start = 0.0
        self.output = bytearray()
        self.cap = max(int(limits.output_kb * 1024), output_bytes)
        self._server, self._limits, self._buffer = server, limits, frames.Buffer()
        self._exit: tuple[int, float] | None = None  # wait status, CPU seconds
        self._ended = -1
        self._control, inner = socket.socketpair()
        self._out, out = os.pipe()
        os.set_blocking(self._out, False)
        self._control.setblocking(False)
        self.open = self._out_open = True
        self._free = False
        fds = {CONTROL: inner.fileno(), STDOUT: out}
        if stdin is not None:
            fds[STDIN] = stdin
        if calls is not None:
            fds[CALLS] = calls.fileno()
        try:
            cpu = min(int(limits.cpu_seconds * (tests + 1)) + 3, (1 << 32) - 1)
            self._child = server.spawn(role, fds, cpu, int(limits.memory_mb * (1 << 20)))
            try:
                self._ended = os.pidfd_open(self._child.pid)
            except OSError:
                server.leave(self._child)
                raise
            self.begin()
        except BaseException:
            self._release()
            raise
        finally:
            inner.close()
            os.close(out)

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def begin(self) -> None:
        """Start the clocks of the next test, and count its output from here."""
        self.drain()
        self.output.clear()
        self._cpu_start, self._wall_start = self.cpu(), time.monotonic()

    def cpu(self) -> float:
        """CPU seconds of the child until now."""
        return self._exit[1] if self._exit else cpu_seconds(self._child.pid)

    def spent(self) -> float:
        """CPU seconds since `begin`."""
        return self.cpu() - self._cpu_start

    def send(self, message: Any, stop: threading.Event | None = None) -> None:
        """Send a frame; a child that is gone or does not read in time is found out by the next `wait`."""
        try:
            data = frames.dump(message, limit=frames.MAX_ORDER)
        except frames.ProtocolError as error:
            raise InputError(f"a program or a test is too large to be judged: {error}") from error
        view = memoryview(data)
        while view:
            try:
                view = view[self._control.send(view) :]
            except BlockingIOError:
                if self._stuck() or (stop and stop.is_set()):
                    return
            except OSError:
                return

    def _stuck(self) -> bool:
        """Wait until the child can take more of a message, for a moment at most; say whether it is to be given up."""
        poller = select.poll()
        poller.register(self._control, select.POLLOUT)
        poller.register(self._ended, select.POLLIN)
        ready = {fd for fd, _ in poller.poll(int(_STOP_SECONDS * 1000))}
        self.drain()  # it may be waiting for its output to be read
        return self._ended in ready or self.check(self._limits) is not None

    def take(self) -> Any | None:
        """Return the next frame that has arrived, or None. Raises ProtocolError."""
        body = self._buffer.next()
        return None if body is None else frames.load(body, self.nonce.encode())

    def descriptors(self) -> list[int]:
        """What to poll for this child."""
        return [self._ended, *[self._control.fileno()] * self.open, *[self._out] * self._out_open]

    def absorb(self, ready: set[int]) -> None:
        """Read what is there, without ever blocking; note that the child has ended."""
        if self._out in ready:
            self.drain()
        if self._control.fileno() in ready:
            self._read_control()
        if self._ended in ready and self._exit is None:
            self._exit = self._server.reap(self._child)

    def _read_control(self) -> bool:
        """Read a part of what waits in the control channel; say whether there was something."""
        if not self.open:
            return False
        try:
            data = self._control.recv(1 << 16)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        self._buffer.feed(data)
        self.open = bool(data)
        return self.open

    def _finish(self) -> None:
        """Read what an ended child left in its channels."""
        while self._read_control():
            pass
        self.drain()

    def drain(self) -> None:
        """Read the output that is there, up to the cap and one byte."""
        while self._out_open and len(self.output) <= self.cap:
            try:
                data = os.read(self._out, 1 << 16)
            except BlockingIOError:
                return
            if not data:
                self._out_open = False
                return
            self.output += data

    def check(self, limits: Limits) -> End | None:
        """Say which limit the child has broken in this test, if any; else set `patience`."""
        if len(self.output) > self.cap:
            return End("output_limit", f"{self.subject} printed more than {self.cap >> 10} KiB")
        cpu_left = limits.cpu_seconds - self.spent()
        if cpu_left < 0:
            return End("timeout", f"{self.subject} used more than {limits.cpu_seconds:g} s of CPU time")
        wall_left = limits.wall_seconds - (time.monotonic() - self._wall_start)
        if wall_left < 0:
            wall_left += queued_seconds(self._child.pid)
        if wall_left < 0:
            return End("timeout", f"{self.subject} did not answer within {limits.wall_seconds:g} s", by_wall=True)
        self.patience = min(cpu_left, wall_left) + _TICK
        return None

    def set_free(self) -> bool:
        """Let the child leave the core of its server once it has run for `_SHORT`; say whether it may."""
        if not self._free and time.monotonic() - self._wall_start >= _SHORT:
            self._free = True
            self._server.set_free(self._child)
        return self._free

    def ended(self) -> End | None:
        """Say how the child ended by itself, if it did."""
        if self._exit is None:
            return None
        self._finish()
        status = self._exit[0]
        if os.WIFSIGNALED(status):
            number = os.WTERMSIG(status)
            if number == signal.SIGKILL:
                return End("memory", "the process was killed from outside: most likely the machine ran out of memory")
            if number == signal.SIGXCPU:
                return End("timeout", "the program used up its CPU time")
            name = signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"
            return End("runtime_error", f"the process was ended by {name}")
        code = os.WEXITSTATUS(status)
        return End("runtime_error", f"the process ended (exit code {code}) before its answer", exit_code=code)

    def close(self) -> None:
        """End the child and release what it held."""
        try:
            if self._exit is None:
                self._exit = (signal.SIGKILL, self.cpu())
                self._server.leave(self._child)
        finally:
            self._release()

    def _release(self) -> None:
        self._control.close()
        os.close(self._out)
        if self._ended >= 0:
            os.close(self._ended)


def wait(asked: Session, limits: Limits, stop: threading.Event, watched: Sequence[Session] = ()) -> Any | End:
    """Wait for the next frame of ``asked`` while it and ``watched`` keep their limits; return it, or how it ended.

    Raises:
        CancelledError: ``stop`` was set.
    """
    sessions = (asked, *watched)
    try:
        while True:
            if stop.is_set():
                raise CancelledError
            frame = asked.take()
            for session in sessions:
                if end := session.check(limits):
                    return end
            if any(session.take() is not None for session in watched):
                raise frames.ProtocolError("a frame that nobody asked for")
            if frame is not None:
                return frame
            for session in sessions:
                if (end := session.ended()) and (session is not asked or (frame := asked.take()) is None):
                    return end
            if frame is not None:
                return frame
            longest = [_STOP_SECONDS if session.set_free() else _SHORT for session in sessions]
            _poll(sessions, min(*longest, *(session.patience for session in sessions)))
    except frames.ProtocolError as error:
        return End("runtime_error", f"the process wrote to the judge's channel: {error}")


def _poll(sessions: Sequence[Session], seconds: float) -> None:
    poller = select.poll()
    for session in sessions:
        for fd in session.descriptors():
            poller.register(fd, select.POLLIN)
    ready = {fd for fd, _ in poller.poll(int(seconds * 1000) + 1)}
    for session in sessions:
        session.absorb(ready)
