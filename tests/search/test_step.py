"""`Forest.step` is expand, backup and select: the same rows and statistics, in one pass or in three calls."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from test_model import SETTINGS

from bdc.search import UCT, Forest, ForestError, Selection, Thompson

TREES, WAVES = 300, 12  # more than one thread's share


def by_calls(forest: Forest, selection: Selection, leaves: int, **given: Any) -> Selection:
    returns = given.pop("returns")
    forest.expand(selection.leaf, **given)
    forest.backup(selection, returns)
    return forest.select(np.unique(selection.tree), leaves)


def columns(selection: Selection) -> list[list[int]]:
    names = ("tree", "leaf", "depth", "ticket", "agent", "path_offsets", "path")
    return [getattr(selection, name).tolist() for name in names]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", SETTINGS)
def test_a_step_is_three_calls(name: str, threads: int) -> None:
    rng = np.random.default_rng(5)
    one, other = (Forest(**SETTINGS[name], threads=n) for n in (threads, 1))
    agents = one.rule.agents if isinstance(one.rule, Thompson) else 4
    ours, theirs = (forest.select(forest.plant(TREES), 2) for forest in (one, other))
    for wave in range(WAVES):
        rows = len(ours)
        counts = rng.integers(0, 4, rows)
        given: dict[str, Any] = {"counts": counts, "returns": rng.random(rows)}
        if wave % 3:
            given |= {"priors": rng.random(counts.sum()), "tags": rng.integers(0, agents, counts.sum())}
        leaves = (1, 1, 3, 3, 2)[wave % 5]
        before = len(one)
        if wave % 4 == 3:
            ours = ours[:]  # rows that were picked take the longer way
        ours, theirs = one.step(ours, leaves=leaves, **given), by_calls(other, theirs, leaves, **given)
        assert columns(ours) == columns(theirs)
        assert ours.children.tolist() == list(range(before, len(one)))
    one.check()
    assert one.in_flight == other.in_flight == len(ours)
    for tree in one.trees[::7]:
        assert (one.nodes(tree) == other.nodes(tree)).all()


def test_some_rows_and_a_changed_forest() -> None:
    forest = Forest(UCT(), "mean", threads=1)
    roots = forest.plant(4)
    first = forest.select(roots[[3, 1, 0]], 2)  # the root twice each
    second = forest.step(first[[4, 1, 0]], 3, [0.1, 0.2, 0.3])
    assert second.tree.tolist() == roots[[0, 3]].tolist()
    assert second.children.tolist() == [*range(4, 13)]
    assert forest.in_flight == 3 + 2
    forest.prune([int(second.leaf[0])])
    with pytest.raises(ForestError, match="pruned") as caught:
        forest.step(second, 2, [0.5, 0.5])
    assert caught.value.index == 0
    forest.reopen([int(second.leaf[0])])
    third = forest.step(second, 2, [0.5, 0.5], leaves=4)
    assert third.tree.tolist() == [0] * 4 + [3] * 4
    with pytest.raises(ForestError, match="exactly once"):
        forest.step(second, 2, [0.5, 0.5])
    last = forest.step(third, 0, np.full(8, 0.5), leaves=0)
    assert len(last) == 0 and len(last.children) == 0
    assert len(forest.step(last, 1, [])) == 0
    forest.check()


def test_a_family_filled_to_its_limit() -> None:
    forest = Forest(UCT(), threads=1)
    selection = forest.select(forest.plant(1), 2)  # the root twice
    with pytest.raises(ForestError, match="4092") as caught:
        forest.step(selection, [4000, 93], [0.5, 0.5])
    assert caught.value.index == 1
    assert len(forest) == 1 and forest.in_flight == 2
    assert len(forest.step(selection, [4000, 92], [0.5, 0.5]).children) == 4092


def test_threads_serve_the_next_forest_and_a_forked_process() -> None:
    def depths() -> list[int]:
        forest = Forest(UCT(), "mean", threads=2)
        selection = forest.select(forest.plant(TREES))
        for _ in range(4):
            selection = forest.step(selection, 3, np.full(TREES, 0.5))
        forest.check()
        return selection.depth.tolist()

    expected = depths()
    assert depths() == expected  # on the threads of the first forest, which is gone

    def in_child() -> None:  # which has none of them
        assert depths() == expected

    child = multiprocessing.get_context("fork").Process(target=in_child)
    child.start()
    child.join(60)
    assert child.exitcode == 0


def ends_well(search: str, at_exit: str = "") -> None:
    """A process ends while a daemon thread is at `search`."""
    script = f"""
{at_exit}
import threading
import time
import numpy as np
from bdc.search import UCT, Forest

def search():
    forest = Forest(UCT(), "mean", threads=1)
    wave = forest.select(forest.plant(500))
    for _ in range(3):
        wave = forest.step(wave, 8, np.full(500, 0.5))
    {search}

threading.Thread(target=search, daemon=True).start()
time.sleep(0.2)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_daemon_thread_may_come_back_from_a_call_when_the_interpreter_has_ended() -> None:
    ends_well("while True: wave = forest.step(wave, 3, np.full(500, 0.5))")


def test_a_daemon_thread_may_be_in_a_call_when_statics_are_destroyed() -> None:
    late = "import ctypes; c = ctypes.CDLL(None); c.__cxa_atexit(c.usleep, 300_000, None)"  # after the core's statics
    ends_well("forest.select([0], 6_000_000)", late)
