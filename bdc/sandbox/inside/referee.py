"""The child that runs a problem's assertions: its `candidate` sends each call to the process of the program.

The code of a problem file is trusted more than a program and less than ours: it runs confined, apart from both.
"""

from __future__ import annotations

import sys
import threading
from typing import Any

from bdc.sandbox.inside import assertions, values
from bdc.sandbox.inside.frames import MAX_FRAME, MAX_ORDER, Blocking, ProtocolError
from bdc.sandbox.inside.guest import describe

# The only words of a program's process that reach the judge through here; "passed" and "beside" must not.
_FAILURES = ("runtime_error", "memory", "output_limit")


class CannotTravelError(BaseException):
    """A value of a call is no plain data; a BaseException, so that no `except Exception` of a test swallows it."""


class ProgramLostError(BaseException):
    """The process of the program is gone or breaks the protocol."""


class AnswerLostError(BaseException):
    """A call failed and what it did to its arguments is unknown: the test cannot go on."""


class Candidate:
    """Stands for the program's function: sends the arguments, returns the value or raises what the call raised."""

    def __init__(self, channel: Blocking, nonce: bytes, entry_point: str) -> None:
        self._channel, self._nonce, self.__name__ = channel, nonce, entry_point
        self.number = 0  # of calls made
        self._one_at_a_time = threading.Lock()
        self.inexact = False  # whether a value of a call arrived as another type
        self.given_up: CannotTravelError | ProgramLostError | AnswerLostError | None = None
        self.calls: list[tuple[tuple[Any, ...], dict[str, Any], Any]] = []
        self.failure: tuple[BaseException, dict[str, Any]] | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        try:
            with self._one_at_a_time:
                return self._call(args, kwargs)
        except (CannotTravelError, ProgramLostError, AnswerLostError) as error:
            self.given_up = error
            raise

    def _call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self.number += 1
        heap = values.Heap()
        try:
            step = [values.pack(args, heap=heap), values.pack(kwargs, heap=heap)]
            message = {"id": self.number, "entry": self.__name__, "steps": [step]}
        except values.NotPlainError as error:
            raise CannotTravelError(f"the test passes {error}") from error
        self.inexact |= heap.inexact
        try:
            self._channel.send(message, MAX_ORDER)
        except ProtocolError as error:
            raise CannotTravelError(f"the test passes {error}") from error
        except OSError as error:
            raise ProgramLostError from error
        try:
            reply = self._channel.receive(self._nonce, MAX_FRAME)
        except (OSError, EOFError, ProtocolError) as error:
            raise ProgramLostError from error
        if not isinstance(reply, dict) or reply.get("id") != self.number:
            raise ProgramLostError
        self.inexact |= "inexact" in reply
        if reply.get("status") == "returned":
            value = _returned(reply, heap)
            self.calls[:] = [(args, kwargs, value)]
            return value
        if reply.get("status") == "not_plain":
            raise CannotTravelError(f"the program returns {reply.get('message')!s:.200}")
        raise self._exception(reply, heap)

    def _exception(self, reply: dict[str, Any], heap: values.Heap) -> Exception | AnswerLostError:
        text = str(reply.get("message"))
        error: Exception | AnswerLostError = AnswerLostError()
        if "objects" in reply:
            _returned({"objects": reply["objects"]}, heap)
            try:
                error = _made(_class(reply["types"]), reply)
            except Exception:  # its arguments are no plain data
                error = Exception(text.partition(": ")[2])
        status = reply.get("status") if reply.get("status") in _FAILURES else "runtime_error"
        self.failure = (error, {"status": status, "message": text, "line": reply.get("line")})
        return error


def _class(names: list[str]) -> type[Exception]:
    """Find the first class of the standard library in a list of ``module:name``; nothing is imported for it.

    Not those with which a program would skip the test that calls it, or end its loop over `map` before an assertion.
    """
    for name in names:
        module, _, path = name.partition(":")
        found: Any = sys.modules.get(module) if module.partition(".")[0] in sys.stdlib_module_names else None
        for part in path.split("."):
            found = getattr(found, "__dict__", {}).get(part)
        if isinstance(found, type) and issubclass(found, Exception) and not any(map(_silent, found.__mro__)):
            return found
    return Exception


def _silent(kind: type) -> bool:
    return kind in (StopIteration, StopAsyncIteration) or kind.__module__.partition(".")[0] == "unittest"


def _made(kind: type[Exception], reply: dict[str, Any]) -> Exception:
    args, attributes = values.unpack(reply["raised"]), values.unpack(reply.get("attributes", {"d": []}))
    try:
        error = kind(*args)
    except TypeError:  # one that keeps other arguments than it takes
        error = kind.__new__(kind, *args)
    vars(error).update(attributes)
    return error


def _returned(reply: dict[str, Any], heap: values.Heap) -> Any:
    """Repeat on the test's objects what the call did to its copies, and return its value."""
    try:
        heap.apply(reply.get("objects"))
        return values.unpack(reply.get("value"), heap)
    except values.NotPlainError as error:
        raise CannotTravelError(f"the program returns {error}") from error


def main(control: int, calls: int) -> None:
    """Run the tests that arrive on ``control``, one reply each; ``calls`` leads to the program's process."""
    channel = Blocking(control)
    job = channel.receive()
    channel.nonce = job["nonce"].encode()
    calls_channel = Blocking(calls)
    try:
        while True:
            message = channel.receive()
            channel.send(_run(message, Candidate(calls_channel, job["calls_nonce"].encode(), message["entry"])))
    except EOFError:
        return


def _run(message: dict[str, Any], candidate: Candidate) -> dict[str, Any]:
    try:
        test = assertions.Test(message["code"], message["entry"])
        modules, foreign = assertions.standard_modules(test.foreign_names())
    except BaseException as error:
        return {"status": "broken", "message": describe(error, assertions.TEST_FILE)["message"]}
    if foreign:
        return {"status": "beside", "message": f"the test uses {', '.join(foreign)} of the program"}
    failure: BaseException | None = None
    try:
        test.run(candidate, modules)
    except BaseException as error:
        if not isinstance(error, SystemExit) or error.code:
            failure = error
    if isinstance(candidate.given_up, CannotTravelError):  # also where a bare `except` of the test caught it
        return {"status": "beside", "message": str(candidate.given_up)}
    if isinstance(candidate.given_up, ProgramLostError):
        return {"status": "lost"}
    if candidate.inexact and failure and not candidate.given_up:
        return {"status": "beside", "message": "a value of a subclass, which arrived as its base, may be why it fails"}
    if failure := candidate.given_up or failure:
        return _judge(failure, test, candidate)
    if not candidate.number:
        return {"status": "broken", "message": "it never calls the program"}
    return {"status": "passed"}


def _judge(error: BaseException, test: assertions.Test, candidate: Candidate) -> dict[str, Any]:
    line, statement = test.failed_statement(error)
    if candidate.failure and error is candidate.failure[0]:
        return {**candidate.failure[1], "test_line": line, "call": statement}
    if not isinstance(error, AssertionError):
        if not (candidate.number if isinstance(error, SystemExit) else candidate.calls):
            return {"status": "broken", "message": describe(error, assertions.TEST_FILE)["message"], "test_line": line}
        statement = f"{describe(error, assertions.TEST_FILE)['message']} in: {statement}"
    reply = {"status": "wrong_answer", "message": statement or str(error) or "an assertion failed", "test_line": line}
    if candidate.calls:
        args, kwargs, value = candidate.calls[-1]
        shown = [assertions.short(item) for item in args] + [f"{k}={assertions.short(v)}" for k, v in kwargs.items()]
        reply |= {"call": f"{candidate.__name__}({', '.join(shown)})", "actual": assertions.short(value)}
        reply["expected"] = assertions.expected_text(statement)
    return reply
