"""Twenty thousand programs, good and hostile: the machine ends as it began. BDC_SOAK changes the number."""

from __future__ import annotations

import collections
import gc
import os
import resource
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from processes import children, descriptors

from bdc.sandbox import Limits, Sandbox
from bdc.testcase import AssertTest, CallTest, StdinTest, Test

COUNT = int(os.environ.get("BDC_SOAK", "20000"))
LIMITS = Limits(cpu_seconds=0.05, wall_seconds=5.0, memory_mb=128)
ONE: list[Test] = [CallTest("f", (1, 2), 3)]
ADD = "def f(a, b): return a + b"
# Program, tests, status of the first result.
MIX: list[tuple[str, list[Test], str]] = [
    *[(ADD, ONE, "passed")] * 6,
    (ADD, [AssertTest("assert f(1, 2) == 3\nassert f(2, 2) == 4", "f")], "passed"),
    (ADD, [AssertTest("x = f(1, 2)\nassert x == 3", "f")], "passed"),
    ("def f(a, b): return map(int, '12')", [AssertTest("assert sum(f(1, 2)) == 3", "f")], "passed"),
    ("print(sum(map(int, input().split())))", [StdinTest("1 2", "3")], "passed"),
    ("def f(a, b): return a - b", ONE, "wrong_answer"),
    ("def f(a, b): return [a] * b", ONE, "wrong_answer"),
    ("def f(a, b): return a / 0", ONE, "runtime_error"),
    ("def f(a, b: return 3", ONE, "syntax_error"),
    ("import os\ndef f(a, b): os._exit(0)", ONE, "runtime_error"),
    ("import ctypes\ndef f(a, b): ctypes.string_at(0)", ONE, "runtime_error"),
    ("import os\ndef f(a, b):\n    while True:\n        try: os.fork()\n        except OSError: pass", ONE, "timeout"),
    ("def f(a, b):\n    while True: pass", ONE, "timeout"),
    ("def f(a, b): return bytearray(1 << 40)", ONE, "memory"),
    ("def f(a, b):\n    x = []\n    while True: x.append(bytes(1 << 24))", ONE, "memory"),
    ("def f(a, b):\n    while True: print('x' * 10000)", ONE, "output_limit"),
    ("def f(a, b):\n    for i in range(20): open(f'/tmp/{i}', 'w').write('x' * 9999)\n    return 3", ONE, "passed"),
    (
        "import threading, time\nfor _ in range(9):\n"
        "    threading.Thread(target=time.sleep, args=(99,), daemon=True).start()\n" + ADD,
        ONE,
        "passed",
    ),
]


def counts() -> dict[str, int]:
    """What a leak would add to: processes below this one, its descriptors, threads, mounts, and its memory in MiB."""
    gc.collect()
    return {
        "processes": len(children()),
        "descriptors": descriptors(),
        "threads": len(list(Path("/proc/self/task").iterdir())),
        "mounts": len(Path("/proc/self/mountinfo").read_text().splitlines()),
        "memory": int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() >> 20,
    }


def soak(level: str, count: int) -> tuple[dict[str, int], dict[str, int], dict[str, int]]:
    """Judge ``count`` programs; return the counts before, while the pool idles after, and when it is closed."""
    before = counts()
    wrong: collections.Counter[tuple[str, str]] = collections.Counter()
    with Sandbox(workers=2, level=level) as sandbox:
        chosen = [MIX[n % len(MIX)] for n in range(count)]
        if level == "L2":  # no scratch folder there
            chosen = [item for item in chosen if "/tmp/" not in item[0]]

        def jobs() -> Iterator[tuple[str, list[Test]]]:
            yield from ((program, tests) for program, tests, _ in chosen)

        for (program, _, status), verdict in zip(chosen, sandbox.judge_iter(jobs(), LIMITS), strict=True):
            if verdict.results[0].status != status:
                wrong[program, verdict.results[0].status] += 1
        idle = counts()
    assert not wrong
    return before, idle, counts()


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("level", ["L3", "L2"])
def test_soak(level: str) -> None:
    count = COUNT if level == "L3" else COUNT // 10
    soak(level, 2 * len(MIX))  # what is imported and allocated once
    before, idle, after = soak(level, count)
    started = time.monotonic()
    while counts()["threads"] > before["threads"] and time.monotonic() - started < 5:
        time.sleep(0.1)
    print(level, count, before, idle, after)
    # Two servers, which are two processes each at L3, and at most one ended child each that nobody waits for yet.
    assert idle["processes"] - before["processes"] <= (6 if level == "L3" else 4)
    assert {key: after[key] for key in before if key != "memory"} == {
        key: before[key] for key in before if key != "memory"
    }
    assert after["memory"] <= before["memory"] + 16
