"""When memory or threads run out, and that none of it is lost while trees come and go."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest


def python(script: str) -> str:
    """What the script prints, in a process of its own, which has limits of its own."""
    command = [sys.executable, "-c", textwrap.dedent(script)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("call", ["forest.select(roots, 4000)", "forest.plant(100_000)", "grow()"])
def test_a_forest_without_memory_refuses_to_go_on(call: str, threads: int) -> None:
    said = python(f"""
        import resource
        from bdc.search import Forest, ForestError

        forest = Forest(threads={threads})
        roots = forest.plant(300)

        def grow():
            wave = forest.select(roots)
            forest.step(wave, 100, [0.5] * len(roots))

        with open("/proc/self/status") as status:
            data = next(int(line.split()[1]) << 10 for line in status if line.startswith("VmData"))
        resource.setrlimit(resource.RLIMIT_DATA, (data + (48 << 20), resource.RLIM_INFINITY))
        try:
            for _ in range(100_000):
                {call}
        except MemoryError:
            print("no memory")
        except ForestError as error:  # at the limit of ids
            print(error)
        resource.setrlimit(resource.RLIMIT_DATA, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        try:
            forest.select(roots)  # where nothing had begun
            forest.check()
        except ForestError as error:
            print(error)
    """)
    assert said.splitlines()[0] == "no memory"
    assert all("half changed; load a snapshot" in line for line in said.splitlines()[1:])


def test_threads_that_cannot_start_are_done_without() -> None:
    said = python("""
        import os
        import resource
        import numpy as np
        from bdc.search import UCT, Forest

        forest = Forest(UCT(), "mean", threads=8)
        with open("/proc/self/statm") as statm:
            used = int(statm.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + (12 << 20), resource.RLIM_INFINITY))  # two stacks do not fit
        wave = forest.select(forest.plant(1000))
        for _ in range(5):
            wave = forest.step(wave, 3, np.full(1000, 0.5))
        forest.check()
        print(len(forest), len(os.listdir("/proc/self/task")))
    """)
    nodes, running = map(int, said.split())
    assert nodes == 16_000 and running < 8


@pytest.mark.parametrize("again", ["roots = forest.compact()[roots]", "forest.drop(roots); roots = forest.plant(1000)"])
def test_no_memory_is_lost_where_trees_come_and_go(again: str) -> None:
    said = python(f"""
        import resource
        from bdc.search import PUCB, Forest

        def resident():
            with open("/proc/self/statm") as statm:
                return int(statm.read().split()[1]) * resource.getpagesize() - forest.nbytes

        forest = Forest(PUCB(), threads=4)
        roots = forest.plant(1000)
        sizes = []
        for cycle in range(300):
            forest.abandon(forest.select(roots, 100))
            {again}
            if cycle in (100, 299):
                sizes.append(resident())
        print(sizes[1] - sizes[0])
    """)
    assert int(said) < 8 << 20  # half a megabyte per cycle would be 100


def test_pages_of_a_freed_forest_are_the_systems_when_it_needs_them() -> None:
    said = python("""
        from pathlib import Path
        from bdc.search import UCT, Forest

        def own():  # less what the system may take at any moment, where its kernel has such pages
            lines = Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]
            sizes = {field: int(size) for field, size, _ in map(str.split, lines)}
            return sizes["Rss:"] - sizes.get("LazyFree:", 0)

        forest = Forest(UCT(), "mean", threads=2)
        roots = forest.plant(1000)
        for _ in range(50):
            forest.expand(forest.select(roots).leaf, 50)
        before = own()
        del forest
        print(before, own())
    """)
    before, freed = map(int, said.split())
    assert before - freed > 8 << 10  # KiB
