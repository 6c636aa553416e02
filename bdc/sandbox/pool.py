"""Judging many programs: one fork server per worker, a blocking and an asynchronous face."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import functools
import itertools
import os
import queue
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol
from weakref import WeakKeyDictionary

from bdc.errors import InputError
from bdc.sandbox.judge import Judge
from bdc.sandbox.level import resolve_level
from bdc.sandbox.limits import Limits
from bdc.sandbox.server import ForkServer, SandboxError, ServerLostError
from bdc.sandbox.verdict import TestResult, Verdict
from bdc.testcase import AssertTest, CallTest, StdinTest, Test

_RECYCLE = 2000
_AHEAD = 16  # programs accepted per worker: enough to keep all busy while the slowest runs, few enough to hold
_ATTEMPTS = 3
_MAX_WORKERS = 4096


class JudgePool(Protocol):
    """What judges programs: a :class:`Sandbox`, or a :class:`bdc.sandbox.cluster.RaySandbox`."""

    level: str

    @property
    def workers(self) -> int:
        """Programs judged at once."""

    def judge_many(self, jobs: Iterable[tuple[str, Sequence[Test]]], limits: Limits) -> list[Verdict]:
        """Judge ``(program, tests)`` pairs; the verdicts are in their order."""


class Sandbox:
    """A pool of fork servers. Close it, or use it as a context manager; a forked child of its process cannot use it.

    Args:
        workers: programs judged at once; the number of usable cores by default.
        level: "auto" (the strongest on offer), "L3", "L2", "L1", or "L0" (no isolation; never chosen by itself).
        python: the interpreter that runs the programs; this one by default.
        modules: extra modules that programs may import (imported once, with the interpreter's site-packages).
        pin: each worker stays on a core, where caches stay warm; not where pools of other processes do the same.

    Raises:
        InputError: unknown level, bad number of workers, interpreter not runnable.
        LevelRefusedError: the machine does not offer the level (at the first judgement, or here for "auto").
    """

    def __init__(
        self,
        workers: int | None = None,
        level: str = "auto",
        python: str | None = None,
        modules: Sequence[str] = (),
        *,
        pin: bool = True,
    ) -> None:
        if workers is not None and not 1 <= workers <= _MAX_WORKERS:
            raise InputError(f"the sandbox was asked for {workers} workers; it can have 1 to {_MAX_WORKERS}")
        self.workers = workers or len(os.sched_getaffinity(0))
        self.level = resolve_level(level, python)
        self._python, self._modules = python, tuple(modules)
        # A worker is a core to stay on and a server, if one is running. Pools of one process begin on different cores.
        self._idle: queue.LifoQueue[tuple[int | None, ForkServer | None]] = queue.LifoQueue()
        cores, first = sorted(os.sched_getaffinity(0)), next(_pools)
        for worker in range(self.workers):
            self._idle.put((cores[(first + worker) % len(cores)] if pin else None, None))
        self._threads = ThreadPoolExecutor(self.workers, thread_name_prefix="sandbox")
        self._alone = _Alone()
        self._rooms: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore] = WeakKeyDictionary()
        self._closed = False
        self._process = os.getpid()

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def judge(self, program: str, tests: Sequence[Test], limits: Limits = Limits()) -> Verdict:  # noqa: B008
        """Judge one program; when the awaiting task is cancelled the program is ended.

        Any number of tasks may ask at once: at most `_AHEAD` programs per worker are accepted, the others wait.
        """
        stop = threading.Event()
        async with self._room():
            try:
                return await asyncio.wrap_future(self._submit(program, tests, limits, stop))
            except asyncio.CancelledError:
                stop.set()
                raise

    def _room(self) -> asyncio.Semaphore:
        """Return the event loop's own bound on accepted programs."""
        loop = asyncio.get_running_loop()
        return self._rooms.setdefault(loop, asyncio.Semaphore(_AHEAD * self.workers))

    def judge_many(
        self,
        jobs: Iterable[tuple[str, Sequence[Test]]],
        limits: Limits = Limits(),  # noqa: B008
    ) -> list[Verdict]:
        """Judge ``(program, tests)`` pairs on all workers; the verdicts are in their order."""
        return list(self.judge_iter(jobs, limits))

    def judge_iter(
        self,
        jobs: Iterable[tuple[str, Sequence[Test]]],
        limits: Limits = Limits(),  # noqa: B008
    ) -> Iterator[Verdict]:
        """Yield the verdicts of ``jobs`` in their order; jobs are taken as they can be judged, few ahead.

        A consumer that stops early, or an exception, ends the programs that are running.
        """
        stop = threading.Event()
        futures: deque[Future[Verdict]] = deque()
        try:
            for program, tests in jobs:
                futures.append(self._submit(program, tests, limits, stop))
                if len(futures) >= _AHEAD * self.workers:
                    yield futures.popleft().result()
            while futures:
                yield futures.popleft().result()
        finally:
            stop.set()
            for future in futures:
                future.cancel()

    def close(self) -> None:
        """Wait for running judgements and end every process of the pool, which a forked child leaves alone."""
        if self._closed or self._process != os.getpid():
            return
        self._closed = True
        self._threads.shutdown(wait=True, cancel_futures=True)
        while not self._idle.empty():
            if server := self._idle.get()[1]:
                server.close()

    def _submit(self, program: str, tests: Sequence[Test], limits: Limits, stop: threading.Event) -> Future[Verdict]:
        if self._closed:
            raise InputError("the sandbox is closed; make another one")
        if self._process != os.getpid():
            raise InputError("the sandbox belongs to the process that this one was forked from; make another one here")
        _check(program, tests)
        return self._threads.submit(self._judge, program, tuple(tests), limits, stop)

    def _judge(self, program: str, tests: tuple[Test, ...], limits: Limits, stop: threading.Event) -> Verdict:
        started = time.monotonic()
        with self._alone.shared():
            results, by_wall = self._attempt(program, tests, limits, stop)
        if by_wall:
            chosen = sorted(by_wall)
            with self._alone.exclusive():
                again, _ = self._attempt(program, tuple(tests[i] for i in chosen), limits, stop, alone=True)
            for index, result in zip(chosen, again, strict=True):
                results[index] = result
        return Verdict(tuple(results), self.level, all(r.verified for r in results), time.monotonic() - started)

    def _attempt(
        self, program: str, tests: tuple[Test, ...], limits: Limits, stop: threading.Event, alone: bool = False
    ) -> tuple[list[TestResult], set[int]]:
        """Judge on an idle server; a server that dies is replaced and the program judged again.

        ``alone`` leaves the worker's core, in case something else keeps it busy.
        """
        cpu, server = self._idle.get()
        _stay_on(None if alone else cpu)
        if alone and server:
            server.set_free()
        try:
            for attempt in range(1, _ATTEMPTS + 1):
                if server is None:
                    server = ForkServer(self.level, self._python, self._modules, cpu)
                judge = Judge(server, program, tests, limits, stop)
                try:
                    return judge.results(), judge.by_wall
                except ServerLostError:
                    server.close()
                    server = None
                    if attempt == _ATTEMPTS:
                        raise SandboxError(f"the fork server died {_ATTEMPTS} times under one program") from None
            raise AssertionError
        finally:
            if server is not None and server.spawned >= _RECYCLE:
                server.close()
                server = None
            self._idle.put((cpu, server))


_pools = itertools.count(os.getpid())
_place = threading.local()


def _stay_on(cpu: int | None) -> None:
    """Keep the calling thread, one of a pool, on a core, or on none; where that is forbidden it runs on any."""
    if getattr(_place, "cpu", None) != cpu:
        _place.cpu = cpu
        with contextlib.suppress(OSError):
            os.sched_setaffinity(0, os.sched_getaffinity(os.getpid()) if cpu is None else {cpu})


class _Alone:
    """A lock that many share, or one holds alone: for judging a program again without any other beside it."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._sharing, self._waiting, self._held = 0, 0, False

    def shared(self) -> _Held:
        with self._condition:
            self._condition.wait_for(lambda: not self._held and not self._waiting)
            self._sharing += 1
        return _Held(self._leave)

    def exclusive(self) -> _Held:
        with self._condition:
            self._waiting += 1
            self._condition.wait_for(lambda: not self._held and not self._sharing)
            self._waiting -= 1
            self._held = True
        return _Held(self._leave)

    def _leave(self) -> None:
        with self._condition:
            if self._held:
                self._held = False
            else:
                self._sharing -= 1
            self._condition.notify_all()


class _Held:
    def __init__(self, leave: object) -> None:
        self._leave = leave

    def __enter__(self) -> None:
        return None

    def __exit__(self, *_: object) -> None:
        self._leave()  # type: ignore[operator]


def _check(program: object, tests: Sequence[object]) -> None:
    if not isinstance(program, str):
        raise InputError(f"the program is of type {type(program).__name__}; it must be text")
    if not tests:
        raise InputError("the program has no tests; give at least one")
    for test in tests:
        if not isinstance(test, (CallTest, StdinTest, AssertTest)):
            raise InputError(
                f"test {test!r:.100} is of an unknown kind; it must be a CallTest, StdinTest or AssertTest"
            )


@functools.cache
def _shared(level: str, process: int) -> Sandbox:
    sandbox = Sandbox(workers=1, level=level)
    atexit.register(sandbox.close)
    return sandbox


def run(
    program: str,
    tests: Sequence[Test],
    limits: Limits = Limits(),  # noqa: B008
    *,
    level: str = "auto",
) -> Verdict:
    """Judge one program, blocking, on a pool of one that stays warm for the next call.

    Raises:
        InputError: no tests, a program that is no text, an unknown level.
        LevelRefusedError: the machine does not offer ``level``.
    """
    return _shared(level, os.getpid()).judge_many([(program, tests)], limits)[0]
