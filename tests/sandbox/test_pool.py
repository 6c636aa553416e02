"""The pool: parallel, asynchronous, cancelled, robust against the death of its servers; it leaves nothing behind."""

from __future__ import annotations

import asyncio
import errno
import gc
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import venv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from processes import children, descriptors

from bdc.errors import InputError
from bdc.sandbox import (
    LevelRefusedError,
    Limits,
    Sandbox,
    SandboxError,
    Verdict,
    detect_level,
    pool,
    run,
    server,
    session,
)
from bdc.sandbox.server import ForkServer, ServerLostError
from bdc.sandbox.session import End, Session
from bdc.testcase import AssertTest, CallTest, StdinTest, Test

ADD = "def f(a, b): return a + b"
ONE: list[Test] = [CallTest("f", (1, 2), 3)]


def test_run_uses_the_strongest_level_on_offer() -> None:
    verdict = run(ADD, ONE)
    assert verdict.passed
    assert verdict.level == detect_level().level


def test_a_worker_per_core() -> None:
    with Sandbox() as sandbox:
        assert sandbox.workers == len(os.sched_getaffinity(0))


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
        assert time.monotonic() - started < 50


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


@pytest.mark.parametrize("victim", ["server", "child"])
@pytest.mark.parametrize("level", ["L3", "L2"])
def test_a_death_in_the_middle_of_a_judgement(level: str, victim: str) -> None:
    """The host goes on: a dead server is replaced and the program judged again; a dead child fails its test alone."""
    before = set(children())
    slow = "import time\ndef f(n):\n    time.sleep(n)\n    return n"
    with Sandbox(workers=1, level=level) as sandbox:
        sandbox.judge_many([(ADD, ONE)])
        _, server = sandbox._idle.queue[0]
        assert server is not None
        found: list[Verdict] = []
        tests: list[Test] = [CallTest("f", (n,), n) for n in (0, 3, 0)]
        job = threading.Thread(target=lambda: found.extend(sandbox.judge_many([(slow, tests)])))
        job.start()
        time.sleep(1.5)  # in the middle of the second test
        inner = server._inner
        (child,) = [int(pid) for pid in Path(f"/proc/{inner}/task/{inner}/children").read_text().split()]
        os.kill(inner if victim == "server" else child, signal.SIGKILL)
        job.join()
        statuses = [result.status for result in found[0].results]
        assert statuses == (["passed"] * 3 if victim == "server" else ["passed", "memory", "passed"])
        assert sandbox.judge_many([(ADD, ONE)])[0].passed
    assert set(children()) <= before


@pytest.mark.parametrize("level", ["L3", "L2"])
def test_a_program_dies_with_its_server(level: str) -> None:
    before = set(children())
    with Sandbox(workers=1, level=level) as sandbox:
        sandbox.judge_many([(ADD, ONE)])
        _, server = sandbox._idle.queue[0]
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


def test_a_child_that_died_with_its_server_is_not_left_but_lost() -> None:
    fork_server = ForkServer("L3")
    try:
        guest = Session(fork_server, "guest", Limits(), 1)
        os.kill(fork_server._inner, signal.SIGKILL)
        deadline = time.monotonic() + 10
        while Path(f"/proc/{guest._child.pid}").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        with pytest.raises(ServerLostError):
            fork_server.leave(guest._child)
        guest._release()
    finally:
        fork_server.close()


@pytest.mark.parametrize("level", ["L3", "L2"])
def test_a_session_that_cannot_begin_leaves_nothing(level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No child that goes on in its server, and no descriptor of the host: none are free, or the server has died."""

    def full(*_: object) -> None:
        raise OSError(errno.EMFILE, "no descriptor is free")

    def lost(*_: object) -> None:
        raise ServerLostError("lost")

    fork_server = ForkServer(level)
    try:
        before = descriptors()
        for owner, name, failure in ((os, "pidfd_open", full), (session, "cpu_seconds", lost)):
            with monkeypatch.context() as patch, pytest.raises((OSError, ServerLostError)):
                patch.setattr(owner, name, failure)
                Session(fork_server, "guest", Limits(), 1)
            gc.collect()
            assert descriptors() == before
            if failure is full:
                with Session(fork_server, "guest", Limits(), 1) as alone:
                    inner = fork_server._inner
                    living = Path(f"/proc/{inner}/task/{inner}/children").read_text().split()
                    assert living == [str(alone._child.pid)]
    finally:
        fork_server.close()


def test_the_pool_ends_with_its_process() -> None:
    script = (
        "import os, signal\nfrom bdc.sandbox import Sandbox\nfrom bdc.testcase import CallTest\n"
        "s = Sandbox(workers=2)\ns.judge_many([('def f(): return 1', [CallTest('f', (), 1)])] * 4)\n"
        "print(*[server.pid for _, server in s._idle.queue if server], flush=True)\nos.kill(os.getpid(), signal.SIGKILL)"
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


@pytest.mark.parametrize("level", ["L3", "L2", "L1"])
def test_a_program_ends_with_its_host(level: str) -> None:
    """Also what it started at L1, where it can: the host is killed while the program runs."""
    program = "import os, time\ndef f():\n    try:\n        if os.fork() == 0: os.setsid(), os.fork()\n    except OSError: pass\n    time.sleep(100)"
    script = (
        "from bdc.sandbox import Limits, Sandbox\nfrom bdc.testcase import CallTest\n"
        f"Sandbox(1, {level!r}).judge_many([({program!r}, [CallTest('f', (), 1)])], Limits(wall_seconds=200))"
    )
    host = subprocess.Popen([sys.executable, "-c", script], cwd=Path(__file__).parents[2])
    expected = {"L3": 3, "L2": 2, "L1": 4}[level]  # the server (two processes at L3), the program and what it started
    deadline = time.monotonic() + 30
    while len(_servers_below(host.pid)) < expected and time.monotonic() < deadline:
        time.sleep(0.05)
    own = _servers_below(host.pid)
    assert len(own) == expected
    host.kill()
    host.wait()
    while any(map(_runs, own)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(_runs, own))


def _servers_below(host: int) -> set[int]:
    """The host's fork servers and their children."""
    boot = str(Path(pool.__file__).parent / "inside" / "boot.py").encode()
    parents, found = {}, set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if boot in (folder / "cmdline").read_bytes():
                found.add(int(folder.name))
        except OSError:
            continue

    def is_below(pid: int) -> bool:
        while pid not in (0, host):
            pid = parents.get(pid, 0)
        return pid == host

    return set(filter(is_below, found))


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
            pids |= {server.pid for _, server in sandbox._idle.queue if server}
    assert len(pids) >= 2


@pytest.mark.parametrize("level", ["L3", "L2"])
def test_a_thousand_runs_leave_no_process(level: str) -> None:
    before = set(children())
    program = "import threading\nt = threading.Timer(60, print)\nt.daemon = True\nt.start()\n" + ADD
    with Sandbox(workers=1, level=level) as sandbox:
        assert all(verdict.passed for verdict in sandbox.judge_iter([(program, ONE)] * 1000))
        assert len(set(children()) - before) <= (3 if level == "L3" else 2)  # the server, and the last child unreaped
    assert set(children()) <= before


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
        assert len(children()) <= processes + 2  # of each server the last child may be unreaped
        assert descriptors() == fds
    assert [r.status for v in again for r in v.results] == [r.status for v in first for r in v.results] * 10
    assert set(children()) <= before


def test_verdicts_do_not_depend_on_load() -> None:
    program = "def f(n):\n    s = 0\n    for i in range(n): s += i\n    return s"
    tests = [CallTest("f", (n,), n * (n - 1) // 2) for n in (10, 300_000)] + [CallTest("f", (10**9,), 0)]
    limits = Limits(cpu_seconds=0.4, wall_seconds=20.0)
    burners = [
        subprocess.Popen([sys.executable, "-S", "-c", "while True: pass"], start_new_session=True) for _ in range(6)
    ]
    try:
        with Sandbox(workers=2) as sandbox:
            verdicts = sandbox.judge_many([(program, tests)] * 4, limits)
    finally:
        for burner in burners:
            burner.kill()
            burner.wait()
    for verdict in verdicts:
        assert [result.status for result in verdict.results] == ["passed", "passed", "timeout"]


def test_waiting_for_a_core_is_not_the_program_s_time() -> None:
    """The wall limit is a fraction of what the program needs while others keep the one core busy."""
    program = "def f(n):\n    s = 0\n    for i in range(n): s += i\n    return s"
    tests = [CallTest("f", (6_000_000,), 17999997000000)]
    burn = [sys.executable, "-S", "-c", "while True: pass"]  # each in a session of its own, with a share of its own
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    burners = [subprocess.Popen(burn, start_new_session=True) for _ in range(10)]
    try:
        with Sandbox(workers=1) as sandbox:
            (first,) = sandbox.judge_many([(program, tests)])
            cpu = first.results[0].seconds
            started = time.monotonic()
            (verdict,) = sandbox.judge_many([(program, tests)], Limits(cpu_seconds=2 * cpu, wall_seconds=3 * cpu))
            elapsed = time.monotonic() - started
    finally:
        os.sched_setaffinity(0, cores)
        for burner in burners:
            burner.kill()
            burner.wait()
    assert first.passed and verdict.passed, verdict
    assert elapsed > 3 * cpu  # else the core was never busy, and the test says nothing


def test_a_large_argument_reaches_a_child_that_had_no_core_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    send = Session.send

    def stalled(self: Session, message: Any, *stop: Any) -> None:
        if "steps" in message:
            os.kill(self._child.pid, signal.SIGSTOP)
            threading.Timer(1.5, os.kill, (self._child.pid, signal.SIGCONT)).start()
        send(self, message, *stop)

    monkeypatch.setattr(Session, "send", stalled)
    with Sandbox(workers=1) as sandbox:
        test = CallTest("f", ("x" * 3_000_000,), 3_000_000)
        (verdict,) = sandbox.judge_many([("def f(x): return len(x)", [test])])
    assert verdict.passed and verdict.seconds > 1.4, verdict


SLEEP = "import time\ndef f(n):\n    time.sleep(n)\n    return n"


def judgements(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Record the number of tests of each attempt, and of the attempts that were under way when it began."""
    seen: list[tuple[int, int]] = []
    running = 0
    attempt = Sandbox._attempt

    def counted(self: Sandbox, program: str, tests: tuple[Test, ...], *rest: Any, alone: bool = False) -> Any:
        nonlocal running
        seen.append((len(tests), running))
        running += 1
        try:
            return attempt(self, program, tests, *rest, alone=alone)
        finally:
            running -= 1

    monkeypatch.setattr(Sandbox, "_attempt", counted)
    return seen


@pytest.mark.parametrize("workers", [1, 3])
def test_what_the_wall_clock_decided_is_retried_once_alone(monkeypatch: pytest.MonkeyPatch, workers: int) -> None:
    seen = judgements(monkeypatch)
    limits = Limits(cpu_seconds=0.3, wall_seconds=0.4)
    tests = [CallTest("f", (n,), n) for n in (0, 100, 0)]
    quick = [(ADD, ONE)] * 6
    with Sandbox(workers=workers) as sandbox:
        verdict, *others = sandbox.judge_many([(SLEEP, tests), *quick], limits)
        assert None in {server.cpu for _, server in sandbox._idle.queue if server}  # the retry left its core
    assert [result.status for result in verdict.results] == ["passed", "timeout", "passed"]
    assert all(other.passed for other in others)
    assert [size for size, _ in seen].count(3) == 1
    assert (1, 0) in seen and len(seen) == 8  # one more attempt, of the one test that the clock had decided


def test_a_verdict_of_a_busy_moment_is_corrected(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first attempt is stopped on the wall clock in the middle of loading, as on a machine that stood still."""
    held = threading.Event()
    check = Session.check

    def stalled(self: Session, limits: Limits) -> End | None:
        if not held.is_set():
            held.set()
            return End("timeout", "the program did not answer within 0.4 s", by_wall=True)
        return check(self, limits)

    monkeypatch.setattr(Session, "check", stalled)
    with Sandbox(workers=2) as sandbox:
        (verdict,) = sandbox.judge_many([(ADD, ONE * 3)])
    assert held.is_set() and verdict.passed


def test_tests_that_share_a_verdict_of_the_wall_clock_are_retried_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = judgements(monkeypatch)
    limits = Limits(cpu_seconds=0.1, wall_seconds=0.2, restarts=1)
    with Sandbox(workers=1) as sandbox:
        (verdict,) = sandbox.judge_many([(SLEEP, [CallTest("f", (100,), 100)] * 4)], limits)
    assert [size for size, _ in seen] == [4, 4]
    assert {result.status for result in verdict.results} == {"timeout"}


def test_jobs_are_taken_as_they_can_be_judged() -> None:
    taken = 0

    def endless() -> Iterator[tuple[str, list[Test]]]:
        nonlocal taken
        while True:
            taken += 1
            yield ADD, ONE

    with Sandbox(workers=2) as sandbox:
        verdicts = sandbox.judge_iter(endless())
        for count in range(1, 100):
            assert next(verdicts).passed
            assert taken <= count + 2 * pool._AHEAD
        verdicts.close()


def test_tasks_beyond_the_room_wait_and_can_be_cancelled() -> None:
    async def main(sandbox: Sandbox) -> None:
        slow = [
            asyncio.create_task(sandbox.judge(SLEEP, [CallTest("f", (60,), 60)], Limits(wall_seconds=90)))
            for _ in range(200)
        ]
        await asyncio.sleep(0.3)
        assert sandbox._threads._work_queue.qsize() <= pool._AHEAD
        for task in slow:
            task.cancel()
        assert all(isinstance(e, asyncio.CancelledError) for e in await asyncio.gather(*slow, return_exceptions=True))
        assert (await sandbox.judge(ADD, ONE)).passed

    before, started = set(children()), time.monotonic()
    with Sandbox(workers=1) as sandbox:
        asyncio.run(main(sandbox))
    assert time.monotonic() - started < 50
    assert set(children()) <= before


@pytest.mark.parametrize("level", ["L3", "L2", "L1"])
def test_an_interrupted_batch_leaves_no_process_and_no_file(level: str, tmp_path: Path) -> None:
    """An exception in the consumer, like Ctrl-C, ends what runs; the pool goes on and then leaves nothing."""
    before, files, fds = set(children()), set(os.listdir(tempfile.gettempdir())), descriptors()  # noqa: PTH208
    with Sandbox(workers=2, level=level) as sandbox:
        jobs: Any = [(ADD, ONE), *[(SLEEP, [CallTest("f", (60,), 60)])] * 8, (b"no text", ONE)]
        started = time.monotonic()
        with pytest.raises(InputError):
            sandbox.judge_many(jobs, Limits(wall_seconds=90))
        assert sandbox.judge_many([(ADD, ONE)] * 3)[2].passed
        assert time.monotonic() - started < 50
    gc.collect()
    assert set(children()) <= before
    assert descriptors() == fds
    left = set(os.listdir(tempfile.gettempdir())) - files  # noqa: PTH208
    assert not {name for name in left if "bdc" in name or "scratch" in name}


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


@pytest.mark.parametrize("level", ["L3", "L2"])
def test_an_extra_module_opens_its_site_packages_and_no_other_folder(tmp_path: Path, level: str) -> None:
    """A .pth file of an editable installation puts a project's folder on the path of every interpreter."""
    for folder in (tmp_path, *list(tmp_path.parents)[:3]):
        if folder != Path("/tmp") and folder.stat().st_uid == os.getuid():
            folder.chmod(0o755)
    venv.create(tmp_path / "venv", symlinks=True)
    (site,) = (tmp_path / "venv").glob("lib/python*/site-packages")
    (site / "extra.py").write_text("x = 5")
    for project, file in (("project", "secret.py"), ("editable", "wanted.py")):
        (tmp_path / project).mkdir()
        (tmp_path / project / file).write_text("x = 6")
        (site / f"{project}.pth").write_text(f"{tmp_path / project}\n")
    program = """
import extra, wanted
def f(path):
    try: return open(path).read()
    except OSError: return extra.x + wanted.x
"""
    tests: list[Test] = [CallTest("f", (str(tmp_path / "project" / "secret.py"),), 11)]
    python = str(tmp_path / "venv" / "bin" / "python")
    with Sandbox(workers=1, level=level, python=python, modules=["extra", "wanted"]) as sandbox:
        (verdict,) = sandbox.judge_many([(program, tests)])
    assert verdict.passed, verdict


def other_interpreters() -> list[Path]:
    """Interpreters of other versions, from 3.10 on: beside this one as pyenv lays them, or the system's."""
    version = f"3.{sys.version_info.minor}"
    found = [*Path(sys.base_prefix).parent.glob("3.1[0-9]*/bin/python3"), *Path("/usr/bin").glob("python3.1[0-9]")]
    return [path for path in found if f"/{version}." not in str(path) and not path.name.endswith(version)]


def test_other_interpreters_run_programs() -> None:
    """The host, the loop in C and the code inside meet interpreters of any version from 3.10 on."""
    interpreters = other_interpreters()
    if not interpreters:
        pytest.skip("no other interpreter is installed; install Python 3.10, 3.12 or 3.13 to try one")
    program = "import sys\ndef f(): return list(sys.version_info[:2])\nif __name__ == '__main__': print(input())"
    for python in interpreters:
        output = subprocess.run(
            [python, "-c", "import sys; print(*sys.version_info[:2])"], capture_output=True, text=True
        )
        version = list(map(int, output.stdout.split()))
        tests: list[Test] = [CallTest("f", (), version), AssertTest(f"v = {version}\nassert f() == v", "f")]
        for level in ("L3", "L2"):
            with Sandbox(workers=1, level=level, python=str(python)) as sandbox:
                (verdict,) = sandbox.judge_many([(program, [*tests, StdinTest("x y", "x y")])])
            assert verdict.passed and verdict.verified, (python, verdict)


@pytest.mark.parametrize("level", ["auto", "L3"])
def test_what_cannot_serve_as_interpreter_is_named(level: str) -> None:
    with pytest.raises(InputError, match="'/bin/true' cannot serve"), Sandbox(1, level, python="/bin/true") as sandbox:
        sandbox.judge_many([(ADD, ONE)])


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


FORKS = """
import os
from bdc.sandbox import Sandbox, run
from bdc.testcase import CallTest
job = "def f(n): return n + 1", [CallTest("f", (1,), 2)]
with Sandbox(workers=1) as sandbox:
    sandbox.judge_many([job])
    if os.fork() == 0:
        try:
            sandbox.judge_many([job])
        except Exception as error:
            print(type(error).__name__, error, run(*job).passed, flush=True)
        sandbox.close()
        os._exit(0)
    os.wait()
    print(sandbox.judge_many([job])[0].passed)
"""


def test_a_forked_child_of_the_host_is_told_to_make_its_own_pool() -> None:
    done = subprocess.run([sys.executable, "-c", FORKS], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines() == [
        "InputError the sandbox belongs to the process that this one was forked from; make another one here True",
        "True",
    ]


def test_a_loop_that_is_missing_or_none_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """No level may be taken for missing, and a weaker one chosen, where the compiled part is at fault."""
    monkeypatch.setattr(server, "find_spec", lambda name: None)
    detect_level.cache_clear()
    with pytest.raises(SandboxError, match="_forkserver"):
        Sandbox(workers=1)
    monkeypatch.setattr(server, "_library", lambda: __file__)
    with pytest.raises(SandboxError, match=r"no isolation level works here.*test_pool\.py"):
        detect_level.__wrapped__()


def test_a_level_that_is_refused_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LevelRefusedError, match="no_such_module"):
        ForkServer("L3", None, ("no_such_module",))
