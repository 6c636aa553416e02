"""Bring a fork server into the state in which a fork is cheapest: every page that a child writes to is copied for it."""

from __future__ import annotations

import contextlib
import gc
import os
import re
import socket
import sys
from typing import Any

_ROUNDS = 30  # more than the interpreter needs to specialise the code and to fill its caches
_BYTES_HEADER = 33
_POOLS = re.compile(r"^ *\d+ +(\d+) +\d+ +\d+ +(\d+)$", re.MULTILINE)
_PROGRAM = """
class Warm:
    def __init__(self, items): self.items = list(items)
    def total(self): return sum(item * 2 for item in self.items if item)
def f(a, b=0):
    seen = {}
    for i in range(3):
        seen[i] = seen.get(i, 0) + 1
    return [Warm([a, b]).total(), str(a), (a, b), {1: seen}, sorted({a, b}), f"{a}"]
"""
_held: list[bytes] = []


def settle(guest: Any) -> None:
    """Rehearse a program and its calls here, fill the holes of the allocator, and take the rest from the collector."""
    _rehearse(guest)
    gc.collect()
    fill_holes()
    gc.freeze()


def _rehearse(guest: Any) -> None:
    """Run the child's own code until its inline caches and the type cache no longer change."""
    from bdc.sandbox.inside import frames

    for _ in range(_ROUNDS):
        here, there = socket.socketpair()
        with here, there:
            call: dict[str, Any] = {
                "entry": "f",
                "steps": [[{"t": [1, 2]}, {"d": []}], [{"t": [2, [1.5, "x"]]}, {"d": []}]],
            }
            messages = [{"mode": "calls", "nonce": "0" * 16, "program": _PROGRAM}, call, call]
            there.sendall(b"".join(map(frames.dump, messages)))
            there.shutdown(socket.SHUT_WR)
            guest.main(here.fileno(), -1)
    del sys.modules[guest.MODULE]


def fill_holes() -> None:
    """Fill the pools of the allocator that are partly used, so that what a child makes lies together on new pages.

    The numbers come from the report that CPython writes to stderr; without them nothing is filled.
    """
    report, errors = os.memfd_create("pools"), os.dup(2)
    try:
        os.dup2(report, 2)
        with contextlib.suppress(AttributeError):
            sys._debugmallocstats()
        os.dup2(errors, 2)
        text = os.pread(report, 1 << 20, 0).decode("ascii", "replace")
    finally:
        os.close(errors)
        os.close(report)
    for size, free in ((int(size), int(free)) for size, free in _POOLS.findall(text)):
        if size > _BYTES_HEADER + 1:
            _held.extend(bytes(size - _BYTES_HEADER) for _ in range(free))
