"""Programs judged on a Ray cluster, here one of this machine's cores."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bdc.errors import BdcError, InputError
from bdc.sandbox import Limits, Sandbox, Verdict, cluster
from bdc.sandbox.cluster import RaySandbox
from bdc.testcase import CallTest

pytest.importorskip("ray", reason="Ray is not installed: pip install 'bdc[ray]'")

LIMITS = Limits(cpu_seconds=0.5, wall_seconds=5)
TESTS = tuple(CallTest("f", (x,), x + 1) for x in range(4))
PROGRAMS = [
    "def f(x):\n    return x + 1\n",
    "def f(x):\n    return x + 1 if x < 3 else None\n",
    "def f(x):\n    while True: pass\n",
    "def f(x):\n    return open('/etc/passwd').read()\n",
    "def f(:\n",
    "def f(x):\n    raise ValueError(x)\n",
]


@pytest.fixture(scope="module")
def ray_sandbox() -> Iterator[RaySandbox]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        with RaySandbox("local") as sandbox:
            yield sandbox


def findings(verdicts: list[Verdict]) -> list[object]:
    return [[(r.status, r.message, r.actual, r.line) for r in verdict.results] for verdict in verdicts]


def test_verdicts_are_those_of_this_machine(ray_sandbox: RaySandbox) -> None:
    jobs = [(program, TESTS) for program in PROGRAMS * 2]
    found = ray_sandbox.judge_many(jobs, LIMITS)
    with Sandbox(1) as local:
        expected = local.judge_many(jobs, LIMITS)
        assert ray_sandbox.level == local.level == found[0].level
    assert findings(found) == findings(expected)
    assert [verdict.pass_rate for verdict in found[:3]] == [1.0, 0.75, 0.0]


def test_jobs_are_taken_as_they_can_be_judged(ray_sandbox: RaySandbox) -> None:
    taken = 0

    def jobs() -> Iterator[tuple[str, tuple[CallTest, ...]]]:
        nonlocal taken
        for _ in range(1000):
            taken += 1
            yield PROGRAMS[0], TESTS

    verdicts = ray_sandbox.judge_iter(jobs(), LIMITS)
    assert next(verdicts).passed
    assert taken <= 2 * 4 * ray_sandbox.workers
    verdicts.close()  # type: ignore[attr-defined]
    assert ray_sandbox.judge_many([]) == []


def test_a_lost_worker_costs_no_verdict(ray_sandbox: RaySandbox) -> None:
    slow = "def f(x):\n    sum(range(3_000_000))\n    return x + 1\n"
    verdicts = ray_sandbox.judge_iter([(slow, TESTS)] * 24, LIMITS)
    found = [next(verdicts)]
    killed = [pid for pid in _workers_at_work() if os.kill(pid, signal.SIGKILL) is None][:1]
    found += verdicts
    assert killed and [verdict.passed for verdict in found] == [True] * 24


def _workers_at_work() -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                if (entry / "cmdline").read_bytes().startswith(b"ray::_judge"):
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


def test_what_a_node_says_is_said_here(ray_sandbox: RaySandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="has no tests"):
        ray_sandbox.judge_many([(PROGRAMS[0], ())])
    monkeypatch.setattr(cluster, "__version__", "0.0")
    with pytest.raises(InputError, match=r"a node of the Ray cluster has bdc 0\.1\.0, and this machine 0\.0"):
        ray_sandbox.judge_many([(PROGRAMS[0], TESTS)])
    monkeypatch.undo()
    remote, ray_sandbox._judge = ray_sandbox._judge, ray_sandbox._ray.remote(num_cpus=1)(_broken)
    with pytest.raises(BdcError, match=r"cannot judge: ModuleNotFoundError.*every node needs bdc"):
        ray_sandbox.judge_many([(PROGRAMS[0], TESTS)])
    ray_sandbox._judge = remote


def _broken(*_: object) -> None:
    import no_such_module  # type: ignore[import-not-found]  # noqa: F401


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "nonsense"])
def test_where_no_cluster_is(address: str) -> None:
    """In a process of its own: one that has joined a cluster joins no other."""
    code = "import sys; from bdc.sandbox.cluster import RaySandbox; RaySandbox(sys.argv[1])"
    command = [sys.executable, "-c", code, address]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert f"InputError: no Ray cluster can be used at {address}: " in done.stderr.strip().splitlines()[-1]
