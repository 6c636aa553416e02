"""Tests by calls: ask the program's process for a value, compare it here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bdc.errors import InputError
from bdc.sandbox.compare import difference, equal
from bdc.sandbox.feedback import clean
from bdc.sandbox.inside import values
from bdc.sandbox.inside.assertions import short
from bdc.sandbox.plan import Step
from bdc.sandbox.session import ENOUGH, End, Session
from bdc.sandbox.verdict import STATUSES, TestResult
from bdc.testcase import CallTest

SHOWN = 1000
BESIDE = "beside"  # the status of a test that has to run again in the program's own process
Answer = tuple[TestResult, End | None]
Reply = Callable[[Session, Any], Any]
_FAILURES = frozenset(STATUSES) - {"passed"}


def ask_call(session: Session, reply_to: Reply, test: CallTest) -> Answer:
    """Run a `CallTest`; InputError where its arguments are no plain data."""
    try:
        message = {"entry": test.entry_point, "steps": [[values.pack(test.args), values.pack(test.kwargs)]]}
    except values.NotPlainError as error:
        raise InputError(f"a test of {test.entry_point!r} passes {error}; only plain values can be passed") from error
    call = f"{test.entry_point}({', '.join(short(item) for item in test.args)})"
    session.begin()
    shown: dict[str, Any] = {"expected": clean(short(test.expected), SHOWN)}
    reply = reply_to(session, message)
    actual, refused = _value(reply)
    if refused:
        return _refusal(session, reply, refused, clean(call, SHOWN), shown)
    if equal(test.expected, actual):
        return TestResult("passed", seconds=session.spent()), None
    text = f"{clean(call, SHOWN)}: {difference(test.expected, actual)}"
    return TestResult("wrong_answer", text, actual=clean(short(actual), SHOWN), seconds=session.spent(), **shown), None


def ask_plan(session: Session, reply_to: Reply, entry_point: str, steps: tuple[Step, ...]) -> Answer:
    """Run the assertions of a planned `AssertTest` until one fails; all of them share the limits of one test.

    The calls are sent together and answered one by one, until one raises. Where an answer before the last is wrong, the
    child is ended: an answer that nobody read would be taken for one to the next test.
    """
    session.begin()
    truth = any(step.by_truth for step in steps)
    message: dict[str, Any] | None
    message = {"entry": entry_point, "truth": truth, "steps": [[step.args, step.kwargs] for step in steps]}
    for step in steps:
        reply = reply_to(session, message)
        result, end = _step(session, reply, step)
        if result:
            goes_on = step is not steps[-1] and status_of(reply) in ("returned", "not_plain")
            return result, end or (ENOUGH if goes_on else None)
        message = None
    return TestResult("passed", seconds=session.spent()), None


def _step(session: Session, reply: Any, step: Step) -> tuple[TestResult | None, End | None]:
    """Return the result of an assertion that does not hold, else None; and how the child ended, if it did."""
    if status_of(reply) == "not_plain":
        if not (step.by_truth and isinstance(reply.get("truth"), bool)):
            return TestResult(BESIDE), None
        reply = {"status": "returned", "value": reply["truth"]}
    actual, refused = _value(reply)
    if not refused and step.holds(actual):
        return None, None
    call = clean(step.call, SHOWN)
    shown: dict[str, Any] = {"expected": clean(short(step.expected), SHOWN)} if step.relation == "==" else {}
    if refused:
        return _refusal(session, reply, refused, call, shown)
    text, seen = clean(f"{step.call}: {step.statement}", SHOWN), clean(short(actual), SHOWN)
    return TestResult("wrong_answer", text, actual=seen, seconds=session.spent(), **shown), None


def _value(reply: Any) -> tuple[Any, str]:
    """Return the value that a reply carries, or why it carries none."""
    if status_of(reply) != "returned":
        return None, "no value"
    try:
        return values.unpack(reply.get("value")), ""
    except (values.NotPlainError, RecursionError) as error:
        return None, str(error)


def _refusal(session: Session, reply: Any, refused: str, call: str, shown: dict[str, Any]) -> Answer:
    """Return the answer that a reply without a value amounts to."""
    if isinstance(reply, End):
        return ended(reply, session, **shown)
    seconds = session.spent()
    if status_of(reply) == "not_plain":
        text = f"{call}: the result is {clean(str(reply.get('message')), 200)}, not plain data"
        actual = clean(str(reply.get("repr")), SHOWN)
        return TestResult("wrong_answer", text, actual=actual, seconds=seconds, **shown), None
    if status_of(reply) != "returned":
        return failure(reply, seconds, f"{call}: ", **shown), None
    return TestResult("wrong_answer", f"{call}: the result is {refused}", seconds=seconds, **shown), None


def ended(end: End, session: Session, **shown: Any) -> Answer:
    """Make the answer of a test in which the process ended."""
    return TestResult(end.status, end.message, seconds=session.spent(), **shown), end


def status_of(reply: Any) -> str:
    """Return the status that a frame claims."""
    return str(reply.get("status")) if isinstance(reply, dict) else ""


def failure(reply: Any, seconds: float, prefix: str = "", **shown: Any) -> TestResult:
    """Make a result of a child's own account of a failure; nothing that it says can make a test pass."""
    status = status_of(reply)
    if status not in _FAILURES:
        return TestResult("runtime_error", "the process broke the judge's protocol", seconds=seconds, **shown)
    line = reply.get("line")
    message = prefix + str(reply.get("message") or "")
    return TestResult(
        status,
        clean(message, SHOWN),
        line=line if type(line) is int and 0 < line < 1 << 31 else None,
        seconds=seconds,
        **shown,
    )
