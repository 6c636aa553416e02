"""The pool: parallel, asynchronous, cancelled, robust against the death of its servers; it leaves nothing behind."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from bdc.errors import InputError
from bdc.sandbox import LevelRefusedError, Limits, Sandbox, Verdict, detect_level, pool, run
from bdc.sandbox.server import ForkServer
from bdc.testcase import AssertTest, CallTest, StdinTest, Test

ADD = "def f(a, b): return a + b"
ONE: list[Test] = [CallTest("f", (1, 2), 3)]


def children() -> list[int]:
    """Process ids below this one, at any depth."""
    parents: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        parents.setdefault(int(fields[1]), []).append(int(folder.name))
    found, queue = [], [os.getpid()]
    while queue:
        below = parents.get(queue.pop(), [])
        found += below
        queue += below
    return found


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208


def test_run_uses_the_strongest_level_on_offer() -> None:
    verdict = run(ADD, ONE)
    assert verdict.passed
    assert verdict.level == detect_level().level


def test_many_programs_keep_their_order() -> None:
    with Sandbox(workers=2) as sandbox:
        jobs = [(f"def f(): return {n}", [CallTest("f", (), n - n % 2)]) for n in range(20)]
        verdicts = sandbox.judge_many(jobs)
    assert [verdict.passed for verdict in verdicts] == [n % 2 == 0 for n in range(20)]


def test_async_face_judges_at_once() -> None:
    async def main(sandbox: Sandbox) -> list[Verdict]:
        return await asyncio.gather(*(sandbox.judge(ADD, ONE) for _ in range(10)))

    with Sandbox(workers=2) as sandbox:
        assert all(verdict.passed for verdict in asyncio.run(main(sandbox)))


def test_cancelling_ends_the_program() -> None:
    async def main(sandbox: Sandbox) -> None:
        task = asyncio.create_task(
            sandbox.judge("import time\ndef f(): time.sleep(100)", [CallTest("f", (), 1)], Limits(wall_seconds=100))
        )
        await asyncio.sleep(0.3)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    with Sandbox(workers=1) as sandbox:
        started = time.monotonic()
        asyncio.run(main(sandbox))
        assert sandbox.judge_many([(ADD, ONE)])[0].passed
        assert time.monotonic() - started < 10


@pytest.mark.parametrize("level", ["L3", "L2", "L1"])
def test_a_server_that_dies_is_replaced(level: str) -> None:
    with Sandbox(workers=1, level=level) as sandbox:
        assert sandbox.judge_many([(ADD, ONE)])[0].passed
        for pid in set(children()):
            try:
                if (
                    b"boot.py" in Path(f"/proc/{pid}/cmdline").read_bytes()
                    and level.encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
                ):
                    os.kill(pid, signal.SIGKILL)
            except (OSError, ProcessLookupError):
                continue
        assert sandbox.judge_many([(ADD, ONE)])[0].passed


@pytest.mark.parametrize("level", ["L3", "L2"])
def test_a_program_dies_with_its_server(level: str) -> None:
    before = set(children())
    with Sandbox(workers=1, level=level) as sandbox:
        sandbox.judge_many([(ADD, ONE)])
        server = sandbox._idle.queue[0]
        assert server is not None
        job = threading.Thread(
            target=lambda: sandbox.judge_many([("while True: pass", ONE)], Limits(cpu_seconds=0.6, wall_seconds=9.0))
        )
        job.start()
        time.sleep(0.25)
        alive = set(children()) - before
        os.kill(server.pid, signal.SIGKILL)
        job.join()
        assert not alive & set(children())
    assert set(children()) <= before


def test_the_pool_ends_with_its_process() -> None:
    script = (
        "import os, signal\nfrom bdc.sandbox import Sandbox\nfrom bdc.testcase import CallTest\n"
        "s = Sandbox(workers=2)\ns.judge_many([('def f(): return 1', [CallTest('f', (), 1)])] * 4)\n"
        "print(*[server.pid for server in s._idle.queue if server], flush=True)\nos.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2]
    )
    pids = [int(pid) for pid in done.stdout.split()]
    assert pids, done.stderr
    deadline = time.monotonic() + 10
    while (left := [pid for pid in pids if _runs(pid)]) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not left


def _runs(pid: int) -> bool:
    try:
        return " Z " not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False


def test_servers_are_recycled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "_RECYCLE", 3)
    with Sandbox(workers=1) as sandbox:
        pids = set()
        for _ in range(8):
            assert sandbox.judge_many([(ADD, ONE)])[0].passed
            pids |= {server.pid for server in sandbox._idle.queue if server}
    assert len(pids) >= 2


@pytest.mark.parametrize("level", ["L3", "L2"])
def test_soak_leaves_nothing_behind(level: str) -> None:
    programs = [
        (ADD, ONE),
        ("def f(a, b): return a", ONE),
        ("def f(a, b):\n    while True: pass", ONE),
        ("import os\ndef f(a, b): os._exit(0)", ONE),
        ("def f(a, b): return bytearray(1 << 40)", ONE),
        ("def f(a, b):\n    open('/tmp/x', 'w').write('x')\n    return a + b", ONE),
        ("def f(a, b): print('x' * (1 << 20))", ONE),
        ("print(input())", [StdinTest("a", "a")]),
        (ADD, [AssertTest("assert f(1, 2) == 3", "f"), AssertTest("assert f(lambda: 1, 2)", "f")]),
        ("import threading, time\nthreading.Thread(target=time.sleep, args=(99,), daemon=True).start()\n" + ADD, ONE),
    ]
    limits = Limits(cpu_seconds=0.05, wall_seconds=5.0, memory_mb=128)
    before = set(children())
    with Sandbox(workers=2, level=level) as sandbox:
        first = sandbox.judge_many(programs * 2, limits)
        gc.collect()
        processes, fds = len(children()), descriptors()
        again = sandbox.judge_many(programs * 20, limits)
        gc.collect()
        assert (len(children()), descriptors()) == (processes, fds)
    assert [r.status for v in again for r in v.results] == [r.status for v in first for r in v.results] * 10
    assert set(children()) <= before


def test_verdicts_do_not_depend_on_load() -> None:
    program = "def f(n):\n    s = 0\n    for i in range(n): s += i\n    return s"
    tests = [CallTest("f", (n,), n * (n - 1) // 2) for n in (10, 300_000)] + [CallTest("f", (10**9,), 0)]
    limits = Limits(cpu_seconds=0.4, wall_seconds=20.0)
    burners = [subprocess.Popen([sys.executable, "-S", "-c", "while True: pass"]) for _ in range(6)]
    try:
        with Sandbox(workers=2) as sandbox:
            verdicts = sandbox.judge_many([(program, tests)] * 4, limits)
    finally:
        for burner in burners:
            burner.kill()
            burner.wait()
    for verdict in verdicts:
        assert [result.status for result in verdict.results] == ["passed", "passed", "timeout"]


def test_weaker_levels_work_when_asked_for() -> None:
    for level in ("L1", "L0"):
        verdict = run(ADD, ONE, level=level)
        assert (verdict.passed, verdict.level) == (True, level)


def test_stray_processes_are_ended_at_l1() -> None:
    before = set(children())
    program = (
        "import os, time\ndef f():\n    if os.fork() == 0:\n        os.setsid()\n        time.sleep(100)\n    return 1"
    )
    with Sandbox(workers=1, level="L1") as sandbox:
        assert sandbox.judge_many([(program, [CallTest("f", (), 1)])])[0].passed
        assert sandbox.judge_many([(ADD, ONE)])[0].passed
        assert len(set(children()) - before) == 1
    assert set(children()) <= before


def test_extra_modules(tmp_path: Path) -> None:
    pytest.importorskip("numpy", reason="numpy is not installed; install it to try an extra module")
    program = "import numpy\ndef f(): return numpy.arange(3).sum()"
    with Sandbox(workers=1, modules=["numpy"]) as sandbox:
        assert sandbox.judge_many([(program, [CallTest("f", (), 3)])])[0].passed
    assert run(program, [CallTest("f", (), 3)]).results[0].status == "runtime_error"


def test_bad_arguments_are_named() -> None:
    with pytest.raises(InputError, match="L9"):
        Sandbox(level="L9")
    with pytest.raises(InputError, match="workers"):
        Sandbox(workers=0)
    with (
        pytest.raises(InputError, match="/nonexistent/python"),
        Sandbox(python="/nonexistent/python", level="L3") as sandbox,
    ):
        sandbox.judge_many([(ADD, ONE)])
    with Sandbox(workers=1) as sandbox:
        pass
    with pytest.raises(InputError, match="closed"):
        sandbox.judge_many([(ADD, ONE)])


def test_a_level_that_is_refused_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LevelRefusedError, match="no_such_module"):
        ForkServer("L3", None, ("no_such_module",))
