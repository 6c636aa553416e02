from __future__ import annotations

from collections.abc import Iterator

import pytest

from bdc.sandbox import Limits, Sandbox
from bdc.testcase import CallTest

QUICK = Limits(cpu_seconds=0.3, wall_seconds=3.0, memory_mb=256)


@pytest.fixture(scope="session", params=["L3", "L2"])
def isolated(request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    """A pool of one at each level that must hold hostile programs."""
    with Sandbox(workers=1, level=request.param) as sandbox:
        sandbox.judge_many([("f = len", [CallTest("f", ([],), 0)])])  # starts what tests then find running
        yield sandbox


@pytest.fixture
def quick() -> Limits:
    return QUICK
