"""Judge one program on its tests with one fork server. The comparison happens here, outside every child."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

from bdc.errors import InputError
from bdc.sandbox.compare import difference, equal, output_difference
from bdc.sandbox.feedback import clean
from bdc.sandbox.inside import values
from bdc.sandbox.inside.assertions import short
from bdc.sandbox.limits import Limits
from bdc.sandbox.server import ForkServer
from bdc.sandbox.session import End, Session, wait
from bdc.sandbox.verdict import STATUSES, TestResult
from bdc.testcase import AssertTest, CallTest, StdinTest, Test

_SHOWN = 1000
_FAILURES = frozenset(STATUSES) - {"passed"}
# What asks one test of an open session and returns its result, and whether the session can go on.
_Ask = Callable[[Any], tuple[TestResult, End | None]]
_Opened = tuple[_Ask | None, TestResult | None]


class Judge:
    """The tests of one program: `results` in their order, `by_wall` the ones that the wall clock decided."""

    def __init__(
        self, server: ForkServer, program: str, tests: Sequence[Test], limits: Limits, stop: threading.Event
    ) -> None:
        self._stop = stop
        self._server, self._program, self._limits = server, program, limits
        self._tests = tests
        self._found: dict[int, TestResult] = {}
        self.by_wall: set[int] = set()

    def results(self) -> list[TestResult]:
        """Run every test."""
        for kind, opener in ((CallTest, self._calls), (StdinTest, self._whole_programs), (AssertTest, self._asserts)):
            self._in_turn([i for i, test in enumerate(self._tests) if isinstance(test, kind)], opener)
        unverified = [i for i, result in self._found.items() if result.status == _BESIDE]
        self._in_turn(unverified, self._beside)
        return [self._found[index] for index in range(len(self._tests))]

    def _in_turn(self, indices: list[int], opener: Callable[[int], AbstractContextManager[_Opened]]) -> None:
        """Run tests in one session; a test that ends its session lets the rest begin in a new one."""
        waiting, restarts = list(indices), self._limits.restarts
        while waiting:
            with opener(len(waiting)) as (ask, failure):
                while waiting:
                    if ask is None:
                        assert failure is not None
                        self._found |= dict.fromkeys(waiting, failure)
                        return
                    index = waiting.pop(0)
                    self._found[index], end = ask(self._tests[index])
                    if end is not None:
                        if end.by_wall:
                            self.by_wall.add(index)
                        break
            if restarts == 0 and waiting:
                result = self._found[index]
                text = f"not run after {self._limits.restarts + 1} tests like it: {result.message}"
                self._found |= dict.fromkeys(waiting, TestResult(result.status, text, verified=result.verified))
                return
            restarts -= end is not None

    def _ended(self, end: End, session: Session, **shown: Any) -> tuple[TestResult, End]:
        return TestResult(end.status, end.message, seconds=session.spent(), **shown), end

    @contextmanager
    def _loaded(
        self, mode: str, tests: int, calls: socket.socket | None = None
    ) -> Iterator[tuple[Session, TestResult | None]]:
        """Open a session in which the program has been loaded; the result is set where it could not be."""
        with Session(self._server, "guest", self._limits, tests, calls=calls) as session:
            session.send({"mode": mode, "nonce": session.nonce, "program": self._program})
            reply = wait(self._server, session, self._limits, self._stop)
            if isinstance(reply, End):
                result = TestResult(reply.status, f"while loading: {reply.message}", seconds=session.spent())
                yield session, result
            elif _status(reply) != "loaded":
                yield session, _failure(reply, session.spent())
            else:
                yield session, None

    @contextmanager
    def _calls(self, tests: int) -> Iterator[_Opened]:
        with self._loaded("calls", tests) as (session, failure):
            yield (None if failure else lambda test: self._ask_call(session, test)), failure

    def _ask_call(self, session: Session, test: CallTest) -> tuple[TestResult, End | None]:
        shown: dict[str, Any] = {"expected": clean(short(test.expected), _SHOWN)}
        try:
            message = {"entry": test.entry_point, "args": values.pack(test.args), "kwargs": values.pack(test.kwargs)}
        except values.NotPlainError as error:
            raise InputError(
                f"a test of {test.entry_point!r} has {error} as argument; only literals can be passed"
            ) from error
        session.begin()
        session.send(message)
        reply = wait(self._server, session, self._limits, self._stop)
        if isinstance(reply, End):
            return self._ended(reply, session, **shown)
        seconds = session.spent()
        call = f"{test.entry_point}{clean(short(test.args), _SHOWN)}"
        if _status(reply) == "not_plain":
            text = f"{call}: the result is {reply.get('message')!s:.200}, not plain data"
            return TestResult(
                "wrong_answer", text, actual=clean(str(reply.get("repr")), _SHOWN), seconds=seconds, **shown
            ), None
        if _status(reply) != "returned":
            return _failure(reply, seconds, f"{call}: ", **shown), None
        try:
            actual = values.unpack(reply.get("value"))
        except (values.NotPlainError, RecursionError) as error:
            return TestResult("wrong_answer", f"{call}: the result is {error}", seconds=seconds, **shown), None
        if equal(test.expected, actual):
            return TestResult("passed", seconds=seconds), None
        shown["actual"] = clean(short(actual), _SHOWN)
        return TestResult(
            "wrong_answer", f"{call}: {difference(test.expected, actual)}", seconds=seconds, **shown
        ), None

    @contextmanager
    def _whole_programs(self, tests: int) -> Iterator[_Opened]:
        yield self._ask_whole_program, None

    def _ask_whole_program(self, test: StdinTest) -> tuple[TestResult, End | None]:
        stdin = os.memfd_create("stdin", os.MFD_CLOEXEC)
        try:
            with os.fdopen(os.dup(stdin), "wb") as file:
                file.write(test.stdin.encode("utf-8", "surrogateescape"))
            os.lseek(stdin, 0, os.SEEK_SET)
            room = 2 * len(test.expected.encode("utf-8", "replace"))
            with Session(self._server, "guest", self._limits, 1, stdin=stdin, output_bytes=room) as session:
                session.send({"mode": "stdin", "nonce": session.nonce, "program": self._program})
                reply = wait(self._server, session, self._limits, self._stop)
                session.drain()
                return self._judge_output(test, session, reply)
        finally:
            os.close(stdin)

    def _judge_output(self, test: StdinTest, session: Session, reply: Any) -> tuple[TestResult, End | None]:
        output = session.output.decode("utf-8", "replace")
        shown: dict[str, Any] = {"expected": clean(test.expected, _SHOWN), "actual": clean(output, _SHOWN)}
        if (
            isinstance(reply, End) and reply.exit_code != 0
        ):  # os._exit(0) may end a whole program: only its output counts
            return self._ended(reply, session, **shown)
        seconds = session.spent()
        if len(session.output) > session.cap:
            return TestResult(
                "output_limit", f"the program printed more than {session.cap >> 10} KiB", seconds=seconds
            ), None
        if not isinstance(reply, End) and _status(reply) != "done":
            return _failure(reply, seconds, **shown), None
        if found := output_difference(test.expected, output):
            return TestResult("wrong_answer", found, seconds=seconds, **shown), None
        return TestResult("passed", seconds=seconds), None

    @contextmanager
    def _asserts(self, tests: int) -> Iterator[_Opened]:
        with ExitStack() as stack:
            ends = socket.socketpair()
            try:
                guest, failure = stack.enter_context(self._loaded("serve", tests, calls=ends[0]))
                if failure:
                    yield None, failure
                    return
                referee = stack.enter_context(Session(self._server, "referee", self._limits, tests, calls=ends[1]))
            finally:
                for end in ends:
                    end.close()
            referee.send({"nonce": referee.nonce, "calls_nonce": guest.nonce})
            yield (lambda test: self._ask_referee(guest, referee, test)), None

    def _ask_referee(self, guest: Session, referee: Session, test: AssertTest) -> tuple[TestResult, End | None]:
        guest.begin()
        referee.begin()
        referee.send({"code": test.code, "entry": test.entry_point})
        reply = wait(self._server, referee, self._limits, self._stop, watched=[guest])
        if not isinstance(reply, End) and _status(reply) == "lost":
            reply = wait(self._server, guest, self._limits, self._stop)
            if not isinstance(reply, End):
                reply = End("runtime_error", "the process of the program wrote to the judge's channel")
        if isinstance(reply, End):
            return self._ended(reply, guest)
        seconds = guest.spent()
        match _status(reply):
            case "passed":
                return TestResult("passed", seconds=seconds), None
            case "beside":
                return TestResult(_BESIDE, str(reply.get("message"))), None
            case "broken":
                return _failure(reply | {"status": "runtime_error"}, seconds, "the test itself failed: "), None
        shown: dict[str, Any] = {key: clean(str(reply.get(key) or ""), _SHOWN) for key in ("expected", "actual")}
        call = f"{reply['call']}: " if reply.get("call") else ""
        return _failure(reply, seconds, call, **shown), None

    @contextmanager
    def _beside(self, tests: int) -> Iterator[_Opened]:
        with self._loaded("beside", tests) as (session, failure):
            if failure:
                yield None, _unverified(failure)
            else:
                yield (lambda test: self._ask_beside(session, test)), None

    def _ask_beside(self, session: Session, test: AssertTest) -> tuple[TestResult, End | None]:
        session.begin()
        session.send({"code": test.code, "entry": test.entry_point})
        reply = wait(self._server, session, self._limits, self._stop)
        if isinstance(reply, End):
            result, end = self._ended(reply, session)
            return _unverified(result), end
        if _status(reply) == "passed":
            return TestResult("passed", seconds=session.spent(), verified=False), None
        return _unverified(_failure(reply, session.spent())), None


_BESIDE = "beside"


def _status(reply: Any) -> str:
    return str(reply.get("status")) if isinstance(reply, dict) else ""


def _unverified(result: TestResult) -> TestResult:
    return TestResult(
        result.status, result.message, result.expected, result.actual, result.line, result.seconds, verified=False
    )


def _failure(reply: Any, seconds: float, prefix: str = "", **shown: Any) -> TestResult:
    """Make a result of a child's own account of a failure; nothing that it says can make a test pass."""
    status = _status(reply)
    if status not in _FAILURES:
        return TestResult("runtime_error", "the process broke the judge's protocol", seconds=seconds, **shown)
    line = reply.get("line")
    message = prefix + str(reply.get("message") or "")
    return TestResult(
        status,
        clean(message, _SHOWN),
        line=line if isinstance(line, int) and not isinstance(line, bool) else None,
        seconds=seconds,
        **shown,
    )
