"""The sandbox on a Ray cluster: programs are judged wherever it has a free core."""

from __future__ import annotations

import atexit
import functools
import itertools
import logging
import socket
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from bdc import __version__
from bdc.errors import BdcError, InputError, needs_extra
from bdc.sandbox.level import resolve_level
from bdc.sandbox.limits import Limits
from bdc.sandbox.pool import Sandbox
from bdc.sandbox.verdict import Verdict
from bdc.testcase import Test

Job = tuple[str, Sequence[Test]]

_PART = 4  # programs of a task: enough to be worth sending, few enough for the slowest to keep few waiting


class RaySandbox:
    """What :class:`Sandbox` is for one machine, for a cluster whose nodes all have this version of bdc.

    A few programs are a task on one core; a worker process of Ray keeps its fork server for the next. Which node judged a
    program changes no verdict: all work under one level, and a node that does not offer it is an error.

    Args:
        address: as ``ray.init`` takes it: "auto" (the cluster of this machine), "HOST:6379", "ray://HOST:10001", or "local" (one
            that is started here, and ends with this object).
        workers: programs judged at once; all cores of the cluster by default.
        level: as for :class:`Sandbox`; "auto" is the strongest that this machine offers.

    Raises:
        MissingExtraError: Ray is not installed.
        InputError: no cluster answers there, or an unknown level.
    """

    def __init__(self, address: str, workers: int | None = None, level: str = "auto") -> None:
        with needs_extra("ray"):
            import ray
        self._ray: Any = ray
        self._workers = workers
        self.level = resolve_level(level)
        try:
            _reach(address)
            ray.init(address, log_to_driver=False, logging_level=logging.ERROR)
        except Exception as error:  # of many kinds, by the kind of address
            raise InputError(f"no Ray cluster can be used at {address}: {error}") from error
        self._judge = ray.remote(num_cpus=1)(_judge)

    @property
    def workers(self) -> int:
        """Programs judged at once; a cluster grows and shrinks."""
        return self._workers or int(self._ray.cluster_resources().get("CPU", 1))

    def __enter__(self) -> RaySandbox:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def judge_many(
        self,
        jobs: Iterable[Job],
        limits: Limits = Limits(),  # noqa: B008
    ) -> list[Verdict]:
        """Judge ``(program, tests)`` pairs; the verdicts are in their order."""
        return list(self.judge_iter(jobs, limits))

    def judge_iter(
        self,
        jobs: Iterable[Job],
        limits: Limits = Limits(),  # noqa: B008
    ) -> Iterator[Verdict]:
        """Yield the verdicts of ``jobs`` in their order; jobs are taken as they can be judged, few ahead.

        Raises:
            BdcError: a node cannot judge, or was lost with a program more often than Ray tries again.
        """
        left, tasks, most = iter(jobs), deque[Any](), self._workers or 2 * self.workers
        try:
            while part := list(itertools.islice(left, _PART)):
                tasks.append(self._judge.remote(part, limits, self.level, __version__))
                if len(tasks) >= most:
                    yield from self._result(tasks.popleft())
            while tasks:
                yield from self._result(tasks.popleft())
        finally:
            for task in tasks:
                self._ray.cancel(task)

    def _result(self, task: Any) -> list[Verdict]:
        try:
            verdicts: list[Verdict] = self._ray.get(task)
        except self._ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, BdcError):
                raise error.cause from error
            missing = isinstance(error.cause, ModuleNotFoundError)
            hint = f"; every node needs bdc {__version__}" if missing else ""
            raise BdcError(f"a node of the Ray cluster cannot judge: {error.cause!r:.200}{hint}") from error
        except self._ray.exceptions.RayError as error:
            raise BdcError(f"the Ray cluster lost a program: {str(error).strip().splitlines()[0]:.200}") from error
        return verdicts

    def close(self) -> None:
        """Leave the cluster, whose worker processes end with that."""
        self._ray.shutdown()


def _reach(address: str) -> None:
    """Raise OSError if nobody listens at an address with a port, where Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


def _judge(part: Sequence[Job], limits: Limits, level: str, version: str) -> list[Verdict]:
    """The task, on a node."""
    if version != __version__:
        raise InputError(
            f"a node of the Ray cluster has bdc {__version__}, and this machine {version}; install one of them"
        )
    return _pool(level).judge_many(part, limits)


@functools.cache
def _pool(level: str) -> Sandbox:
    """Of this worker process; on no core of its own, since the others of its node would choose the same."""
    pool = Sandbox(1, level, pin=False)
    atexit.register(pool.close)
    return pool
