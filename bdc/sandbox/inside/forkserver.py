"""The fork server: a warm interpreter that forks one confined child per program and reports how each one ended.

It never sees a program, a test or a value: a child's descriptors arrive over the host's socket and go straight to the
child, so the memory that a child inherits holds nothing of any other program and nothing of the judge.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import socket
import sys
from collections.abc import Callable
from typing import Any

from bdc.sandbox.inside import native, settle
from bdc.sandbox.inside.confine import Confinement
from bdc.sandbox.inside.orders import CALLS, CONTROL, SLOTS

# What programs import most; each megabyte more makes every fork dearer.
_WARM = """
    abc array ast bisect cmath collections collections.abc contextlib copy dataclasses datetime decimal enum fractions
    functools heapq io itertools json math numbers operator os random re string struct sys textwrap
    threading time traceback types typing encodings.latin_1 encodings.ascii
"""


def main(fd: int, config: dict[str, Any]) -> None:
    """Serve the host on the sequenced-packet socket ``fd`` until it hangs up.

    ``config``: level ("L3".."L0"), modules (extra modules to import and keep readable with their site folders), library
    (the path of `native.Library`).
    The first message is ``{"ready": level}`` or ``{"refused": reason, "module": whether an import failed}``. Then each message of the host is an `ORDER`
    for a child (or none, role 0) with its descriptors, and the `PID` of each child to end before; the answer is the
    new child's `PID` (or 0) and an `EXIT` for each that ended. A child is reaped on order only, so that its process id
    is the host's to use until then.
    """
    host = socket.socket(fileno=fd)
    try:
        _warm(config["modules"])
        settle.fill_holes()
        guest = importlib.import_module("bdc.sandbox.inside.guest")  # now, so that what every child runs lies together
        referee = importlib.import_module("bdc.sandbox.inside.referee")
        library = native.Library(config["library"])
        confinement = Confinement(config["level"])
    except (OSError, ImportError) as error:
        host.send(json.dumps({"refused": str(error), "module": isinstance(error, ImportError)}).encode())
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    guest.like_plain_python()
    os.environ.clear()
    sys.argv[:] = [""]
    settle.settle(guest)
    library.settle()
    confinement.close_ranks()
    host.send(json.dumps({"ready": config["level"]}).encode())
    _serve(library, host, confinement, {native.GUEST: guest.main, native.REFEREE: referee.main})


def _warm(modules: list[str]) -> None:
    """Import what programs need; then `sys.path` names the folders that they may read."""
    register, os.register_at_fork = os.register_at_fork, lambda **_: None
    try:
        for name in _WARM.split():
            importlib.import_module(name)
    finally:
        os.register_at_fork = register
    sys.modules["random"].seed(0)  # and no hook of `random` seeds it anew: every program sees the same sequence
    if not modules:
        return
    import site

    before = set(sys.path)
    site.main()
    for name in modules:
        try:
            importlib.import_module(name)
        except Exception as error:  # its own code runs
            raise ImportError(f"{name!r}: {type(error).__name__}: {error}") from error
    sys.path[:] = [path for path in sys.path if path in before or _needed(path)]


def _needed(path: str) -> bool:
    """Say whether a folder is one of site-packages or holds an imported module; a .pth file may name any other."""
    import site

    if path in (*site.getsitepackages(), site.getusersitepackages()):
        return True
    files = (getattr(module, "__file__", None) for module in list(sys.modules.values()))
    return any(file.startswith(path.rstrip("/") + "/") for file in files if isinstance(file, str))


def _serve(
    library: native.Library, host: socket.socket, confinement: Confinement, roles: dict[int, Callable[[int, int], None]]
) -> None:
    """Let the loop run, and do what it leaves to Python; in a child, become what was ordered."""
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    while os.dup(null) < SLOTS:  # what arrives must not land on a slot of the child
        pass
    os.dup2(null, 2)  # what programs write to stderr goes nowhere; until now it was the server's own
    server = native.Server(host=host.fileno())
    confinement.describe(server)
    loop = library.loop(server)
    while (event := loop()) != native.HANG_UP:
        if event in roles:
            try:
                roles[event](CONTROL, CALLS)
            finally:
                os._exit(0)
        elif event == native.DIRTY:
            confinement.clean(server)
        else:
            confinement.kill_strays(set(server.pids[: server.children]))
    confinement.kill_strays(set())
