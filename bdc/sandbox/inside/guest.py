"""The child that runs a program under test. Everything after `Program.load` is under the program's control."""

from __future__ import annotations

import _sitebuiltins
import atexit
import builtins
import contextlib
import gc
import io
import os
import sys
import threading
import traceback
import types
from collections.abc import Callable
from typing import Any

from bdc.sandbox.inside import assertions, values
from bdc.sandbox.inside.frames import Blocking, ProtocolError

PROGRAM_FILE = "<program>"
MODULE = "solution"  # the name of a program that is not run as a whole
MAX_MESSAGE = 4000


def main(control: int, calls: int) -> None:
    """Obey the one job on ``control``: run a whole program, or load one and serve calls or tests."""
    channel = Blocking(control)
    job = channel.receive()
    channel.nonce = job["nonce"].encode()
    try:
        if job["mode"] == "stdin":
            channel.send(_run_main(job["program"]))
            return
        space, failure = _load(job["program"], MODULE)
        channel.send(failure or {"status": "loaded"})
        if failure:
            return
        if job["mode"] == "serve":
            channel = Blocking(calls, channel.nonce)
        while True:
            message = channel.receive()
            if job["mode"] == "beside":
                _send(channel, _beside(space, message))
                continue
            for args, kwargs in message["steps"]:
                if _send(channel, _call(space, message, args, kwargs)) not in ("returned", "not_plain"):
                    break
    except EOFError:
        return


def _send(channel: Blocking, reply: dict[str, Any]) -> str:
    """Send a reply, or why it cannot be sent; return the status that went out."""
    try:  # noqa: SIM105 (a context manager costs a fresh child five pages)
        flush()
    except BaseException:
        pass
    try:
        channel.send(reply)
    except ProtocolError:
        reply = {"status": "output_limit", "message": "the answer is too large", "id": reply.get("id")}
        channel.send(reply)
    except MemoryError as error:
        reply = {**describe(error), "id": reply.get("id")}
        channel.send(reply)
    return str(reply["status"])


def like_plain_python() -> None:
    """Give programs what an interpreter started the usual way has: streams on descriptors 0 to 2, `exit` and the like.

    The descriptors are those that a child will have, whatever they are now, but for stdout: a stream remembers whether
    its descriptor can seek, so a pipe stands there already.
    """
    _pipe_to_nowhere(1)
    sys.stdin = _stream(io.BufferedReader(_raw(0, "r", "<stdin>")), "r", "surrogateescape")
    sys.stdout = _stream(io.BufferedWriter(_raw(1, "w", "<stdout>")), "w", "surrogateescape")
    sys.stderr = _stream(io.BufferedWriter(_raw(2, "w", "<stderr>")), "w", "backslashreplace", write_through=True)
    vars(sys).update(__stdin__=sys.stdin, __stdout__=sys.stdout, __stderr__=sys.stderr)
    for name in ("exit", "quit"):
        setattr(builtins, name, _sitebuiltins.Quitter(name, "Ctrl-D (i.e. EOF)"))
    vars(builtins)["help"] = _sitebuiltins._Helper()
    for name in ("copyright", "credits", "license"):
        setattr(builtins, name, _sitebuiltins._Printer(name, f"see sys.copyright for {name}"))


def _pipe_to_nowhere(fd: int) -> None:
    reader, writer = os.pipe()
    os.dup2(writer, fd)
    os.close(reader)
    os.close(writer)


def _raw(fd: int, mode: str, name: str) -> io.FileIO:
    raw = io.FileIO(fd, mode, closefd=False)
    vars(raw)["name"] = name
    return raw


def _stream(buffer: Any, mode: str, errors: str, write_through: bool = False) -> io.TextIOWrapper:
    """Return a text stream with the attribute `mode`, which programs that wrap a stream read."""
    stream = io.TextIOWrapper(buffer, "utf-8", errors, "\n", write_through=write_through)
    vars(stream)["mode"] = mode
    return stream


def describe(error: BaseException, file: str = PROGRAM_FILE) -> dict[str, Any]:
    """Return a failure frame for an exception: status, message, line in ``file``; of an exit, whether its code is 0."""
    if isinstance(error, MemoryError):
        return {"status": "memory", "message": "MemoryError: the program needs more memory than it may have"}
    name, clean = type(error).__name__, {}
    try:
        text = str(error)[:MAX_MESSAGE]
    except BaseException:
        text = ""
    if isinstance(error, SystemExit):
        name, text = "SystemExit", f"the program ended itself with {error.code!r:.100}"
        clean = {"clean": error.code is None or (isinstance(error.code, int) and int(error.code) == 0)}
    lines = [line for frame, line in traceback.walk_tb(error.__traceback__) if frame.f_code.co_filename == file]
    line = lines[-1] if lines else None
    return {"status": "runtime_error", "message": f"{name}: {text}" if text else name, "line": line, **clean}


def _load(source: str, name: str) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Execute a program as module ``name``; return its namespace and a failure frame, if any."""
    module = types.ModuleType(name)
    module.__dict__.update(__builtins__=__builtins__, __file__=PROGRAM_FILE)
    sys.modules[name] = module
    try:
        code = compile(source, PROGRAM_FILE, "exec", dont_inherit=True)
    except MemoryError as error:
        return {}, describe(error)
    except Exception as error:  # ValueError, RecursionError and OverflowError too: all say that this is no program
        line = error.lineno if isinstance(error, SyntaxError) else None
        text = error.msg if isinstance(error, SyntaxError) else str(error)
        return {}, {"status": "syntax_error", "message": f"{type(error).__name__}: {text}", "line": line}
    try:
        exec(code, module.__dict__)
    except BaseException as error:
        return module.__dict__, describe(error)
    return module.__dict__, None


def _run_main(source: str) -> dict[str, Any]:
    """Run a whole program as Python does: its threads, exit handlers and last words of its objects belong to it."""
    failure = _load(source, "__main__")[1]
    if failure and failure.get("clean"):
        failure = None
    try:
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        flush()
    except BaseException as error:
        return failure or describe(error)
    with contextlib.suppress(BaseException):  # as Python does, with a detached stream for instance
        sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__
        sys.modules.pop("__main__", None)
        gc.collect()  # a writer that nobody closed writes out its buffer when it goes
        flush()
    return failure or {"status": "done"}


def flush() -> None:
    """Write out what was printed, unless the program closed or dropped `sys.stdout`."""
    if sys.stdout is not None and not getattr(sys.stdout, "closed", False):
        sys.stdout.flush()


def _function(space: dict[str, Any], name: str) -> Callable[..., Any]:
    """Find an entry point: a global, or a method of a class `Solution` (one instance per call)."""
    if name in space:
        found = space[name]
    elif "Solution" in space and hasattr(space["Solution"], name):
        found = getattr(space["Solution"](), name)
    else:
        raise NameError(f"the program does not define {name!r}")
    if not callable(found):
        raise TypeError(f"{name!r} is not a function")
    return found  # type: ignore[no-any-return]


def _call(space: dict[str, Any], message: dict[str, Any], packed: Any, packed_kwargs: Any) -> dict[str, Any]:
    """Call the entry point; the reply carries the result and, for a referee, what changed in its objects first."""
    heap = values.Heap() if "id" in message else None
    args, kwargs = values.unpack(packed, heap, trusted=True), values.unpack(packed_kwargs, heap, trusted=True)
    reply: dict[str, Any]
    try:
        result = _function(space, message["entry"])(*args, **kwargs)
    except BaseException as error:
        reply = _raised(error, message)
    else:
        reply = {"status": "returned"}
    try:
        if heap is not None:
            reply |= {"id": message["id"], "objects": heap.changes((args, kwargs), [packed, packed_kwargs])}
        if reply["status"] == "returned":
            reply["value"] = values.pack(result, heap=heap)
        if heap is not None and heap.inexact:
            reply["inexact"] = True
    except values.NotPlainError as error:
        returned = reply["status"] == "returned"
        reply = {"status": "not_plain", "id": message.get("id"), "message": str(error)}
        if returned:
            reply["repr"] = assertions.short(result)
            if message.get("truth"):
                reply["truth"] = _truth(result)
    except BaseException as error:
        return _raised(error, message)
    return reply


def _raised(error: BaseException, message: dict[str, Any]) -> dict[str, Any]:
    """Return a failure frame; for a referee with what its test may catch and see."""
    reply = describe(error)
    if "id" in message:
        reply["id"] = message["id"]
        with contextlib.suppress(BaseException):  # not plain, or a property of the program's own
            reply["types"] = [f"{kind.__module__}:{kind.__qualname__}" for kind in type(error).__mro__]
            reply["raised"] = values.pack(error.args)
            reply["attributes"] = values.pack(vars(error))
    return reply


def _truth(value: Any) -> bool | None:
    """Return what `if value` would take it for, None where that raises."""
    try:
        return bool(value)
    except BaseException:
        return None


def _beside(space: dict[str, Any], message: dict[str, Any]) -> dict[str, Any]:
    """Run a test in the program's own process: what it says proves nothing, and its verdict is marked so."""
    try:
        test = assertions.Test(message["code"], message["entry"])
        names = {name: value for name, value in space.items() if not name.startswith("__")}
        modules, _ = assertions.standard_modules([n for n in test.foreign_names() if n not in names])
        candidate = _function(space, message["entry"])
        test.run(candidate, {**modules, **names})
    except SystemExit as error:
        failure = describe(error)
        if error.code or failure["line"]:  # the program's own exit proves nothing
            return failure
    except AssertionError as error:
        line, statement = test.failed_statement(error)
        if line is not None:
            return {"status": "wrong_answer", "message": statement or "an assertion failed", "test_line": line}
        return describe(error)
    except BaseException as error:
        return describe(error)
    return {"status": "passed"}
