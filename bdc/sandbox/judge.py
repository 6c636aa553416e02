"""Judge one program on its tests with one fork server. The comparison happens here, outside every child."""

from __future__ import annotations

import fcntl
import os
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from typing import Any

from bdc.sandbox.calls import BESIDE, SHOWN, Answer, ask_call, ask_plan, ended, failure, status_of
from bdc.sandbox.compare import output_difference
from bdc.sandbox.feedback import clean
from bdc.sandbox.limits import Limits
from bdc.sandbox.plan import Step, plan
from bdc.sandbox.server import ForkServer
from bdc.sandbox.session import ENOUGH, End, Session, wait
from bdc.sandbox.verdict import TestResult
from bdc.testcase import AssertTest, CallTest, StdinTest, Test

# What asks one test of an open session; None with a result where the session could not be opened.
_Opened = tuple[Callable[[int], Answer] | None, TestResult | None]

_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


class Judge:
    """The tests of one program: `results` in their order, `by_wall` the ones that the wall clock decided."""

    def __init__(
        self, server: ForkServer, program: str, tests: Sequence[Test], limits: Limits, stop: threading.Event
    ) -> None:
        self._server, self._limits, self._stop = server, limits, stop
        self._program = program.removeprefix("\ufeff")  # as Python does with a file
        self._tests = tests
        self._plans: dict[int, tuple[Step, ...]] = {}
        self._found: dict[int, TestResult] = {}
        self.by_wall: set[int] = set()
        self._load_by_wall = False

    def results(self) -> list[TestResult]:
        """Run every test."""
        by_calls, whole, by_code = [], [], []
        for index, test in enumerate(self._tests):
            if isinstance(test, StdinTest):
                whole.append(index)
            elif isinstance(test, CallTest):
                by_calls.append(index)
            elif steps := plan(test.code, test.entry_point):
                self._plans[index] = steps
                by_calls.append(index)
            else:
                by_code.append(index)
        self._in_turn(by_calls, self._calls)
        self._in_turn(whole, self._whole_programs)
        self._in_turn(by_code, self._asserts)
        self._in_turn([index for index, result in self._found.items() if result.status == BESIDE], self._beside)
        return [self._found[index] for index in range(len(self._tests))]

    def _in_turn(self, indices: list[int], opener: Callable[[int], AbstractContextManager[_Opened]]) -> None:
        """Run tests in one session; a test that ends its session lets the rest begin in a new one."""
        waiting, restarts = list(indices), self._limits.restarts
        while waiting:
            with opener(len(waiting)) as (ask, failed):
                end = None
                while waiting and end is None:
                    if ask is None:
                        assert failed is not None
                        self._share(waiting, failed, self._load_by_wall)
                        return
                    index = waiting.pop(0)
                    self._found[index], end = ask(index)
                    if end is not None and end.by_wall:
                        self.by_wall.add(index)
            if end is ENOUGH:
                continue
            if restarts == 0 and waiting:
                last = self._found[index]
                text = f"not run after {self._limits.restarts + 1} tests like it: {last.message}"
                shared = TestResult(last.status, text, verified=last.verified)
                self._share(waiting, shared, index in self.by_wall)
                return
            restarts -= 1

    def _share(self, indices: Sequence[int], result: TestResult, by_wall: bool) -> None:
        """Give one result to tests that did not run."""
        self._found |= dict.fromkeys(indices, result)
        if by_wall:
            self.by_wall.update(indices)

    def _reply(self, session: Session, message: Any, watched: Sequence[Session] = ()) -> Any:
        """Send a message, if any, and wait for the next answer, or for an `End`."""
        if message is not None:
            session.send(message, self._stop)
        return wait(session, self._limits, self._stop, watched)

    @contextmanager
    def _loaded(
        self, mode: str, tests: int, calls: socket.socket | None = None
    ) -> Iterator[tuple[Session, TestResult | None]]:
        """Open a session in which the program has been loaded; the result is set where it could not be."""
        with Session(self._server, "guest", self._limits, tests, calls=calls) as session:
            reply = self._reply(session, {"mode": mode, "nonce": session.nonce, "program": self._program})
            if isinstance(reply, End):
                self._load_by_wall = reply.by_wall
                result, _ = ended(reply, session)
                yield session, replace(result, message=f"while loading: {reply.message}")
            elif status_of(reply) != "loaded":
                yield session, failure(reply, session.spent())
            else:
                yield session, None

    @contextmanager
    def _calls(self, tests: int) -> Iterator[_Opened]:
        with self._loaded("calls", tests) as (session, failed):

            def ask(index: int) -> Answer:
                test = self._tests[index]
                if isinstance(test, CallTest):
                    return ask_call(session, self._reply, test)
                assert isinstance(test, AssertTest)
                return ask_plan(session, self._reply, test.entry_point, self._plans[index])

            yield (None if failed else ask), failed

    @contextmanager
    def _whole_programs(self, tests: int) -> Iterator[_Opened]:
        yield self._ask_whole_program, None

    def _ask_whole_program(self, index: int) -> Answer:
        test = self._tests[index]
        assert isinstance(test, StdinTest)
        stdin = _sealed(test.stdin.encode("utf-8", "surrogateescape"))
        try:
            room = 2 * len(test.expected.encode("utf-8", "replace"))
            with Session(self._server, "guest", self._limits, 1, stdin=stdin, output_bytes=room) as session:
                reply = self._reply(session, {"mode": "stdin", "nonce": session.nonce, "program": self._program})
                session.drain()
                return self._judge_output(test, session, reply)
        finally:
            os.close(stdin)

    def _judge_output(self, test: StdinTest, session: Session, reply: Any) -> Answer:
        output = session.output.decode("utf-8", "replace")
        shown: dict[str, Any] = {"expected": clean(test.expected, SHOWN), "actual": clean(output, SHOWN)}
        if isinstance(reply, End) and reply.exit_code != 0:  # os._exit(0) may end a whole program: its output counts
            return ended(reply, session, **shown)
        seconds = session.spent()
        if len(session.output) > session.cap:
            return TestResult("output_limit", f"the program printed more than {session.cap >> 10} KiB"), None
        if not isinstance(reply, End) and status_of(reply) != "done":
            return failure(reply, seconds, **shown), None
        if found := output_difference(test.expected, output):
            return TestResult("wrong_answer", found, seconds=seconds, **shown), None
        return TestResult("passed", seconds=seconds), None

    @contextmanager
    def _asserts(self, tests: int) -> Iterator[_Opened]:
        with ExitStack() as stack:
            ends = socket.socketpair()
            try:
                guest, failed = stack.enter_context(self._loaded("serve", tests, calls=ends[0]))
                if not failed:
                    referee = stack.enter_context(Session(self._server, "referee", self._limits, tests, calls=ends[1]))
            finally:
                for end in ends:
                    end.close()
            if failed:
                yield None, failed
                return
            referee.send({"nonce": referee.nonce, "calls_nonce": guest.nonce})
            yield (lambda index: self._ask_referee(guest, referee, index)), None

    def _ask_referee(self, guest: Session, referee: Session, index: int) -> Answer:
        guest.begin()
        referee.begin()
        reply = self._reply(referee, self._code(index), watched=[guest])
        if status_of(reply) == "lost":
            reply = wait(guest, self._limits, self._stop)
            if not isinstance(reply, End):
                reply = End("runtime_error", "the process of the program wrote to the judge's channel")
        if isinstance(reply, End):
            return ended(reply, guest)
        seconds = guest.spent()
        match status_of(reply):
            case "passed":
                return TestResult("passed", seconds=seconds), None
            case "beside":
                return TestResult(BESIDE), None
            case "broken":
                return failure(reply | {"status": "runtime_error"}, seconds, "the test itself failed: "), None
        shown = {key: clean(str(reply.get(key) or ""), SHOWN) for key in ("expected", "actual")}
        call = f"{reply['call']}: " if reply.get("call") else ""
        return failure(reply, seconds, call, **shown), None

    @contextmanager
    def _beside(self, tests: int) -> Iterator[_Opened]:
        with self._loaded("beside", tests) as (session, failed):
            if failed:
                yield None, replace(failed, verified=False)
            else:
                yield (lambda index: self._ask_beside(session, index)), None

    def _ask_beside(self, session: Session, index: int) -> Answer:
        session.begin()
        reply = self._reply(session, self._code(index))
        if isinstance(reply, End):
            result, end = ended(reply, session)
            return replace(result, verified=False), end
        if status_of(reply) == "passed":
            return TestResult("passed", seconds=session.spent(), verified=False), None
        return replace(failure(reply, session.spent()), verified=False), None

    def _code(self, index: int) -> dict[str, str]:
        test = self._tests[index]
        assert isinstance(test, AssertTest)
        return {"code": test.code, "entry": test.entry_point}


def _sealed(data: bytes) -> int:
    """Return a descriptor of a file in memory that holds ``data`` and that nobody can write to or make longer."""
    fd = os.memfd_create("stdin", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    with os.fdopen(os.dup(fd), "wb") as file:
        file.write(data)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd
