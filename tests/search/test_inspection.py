"""What a user looks at: views, tables, histograms, paths, exports."""

from __future__ import annotations

import gc
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from bdc.search import PUCB, UCT, Forest, Selection, to_json, to_networkx


def grown(seed: int = 0) -> tuple[Forest, int]:
    """Two trees of some hundred nodes; the second one's root."""
    forest = Forest(PUCB(), "mean", gamma=0.9, seed=seed)
    roots = forest.plant(2)
    rng = np.random.default_rng(seed)
    for _ in range(60):
        wave = forest.select(roots, 2)
        leaves = np.unique(wave.leaf)
        children = forest.expand(leaves, rng.integers(1, 5, len(leaves)), None, None)
        forest.backup(children, rng.random(len(children)))
    forest.prune(forest.children(roots[1])["id"][:1], 9)
    forest.select(roots[1:], 3)
    return forest, int(roots[1])


def test_columns_of_a_selection_are_views_that_keep_it_alive() -> None:
    forest = Forest(UCT(), threads=1)
    roots = forest.plant(300)
    wave = forest.select(roots, 2)
    columns = [wave.tree, wave.leaf, wave.depth, wave.ticket, wave.path, wave.path_offsets, wave.agent]
    for column in columns:
        assert not column.flags.owndata and column.base is not None
        with pytest.raises(ValueError, match="read-only"):  # the forest goes by them
            column[0] = 1
    leaf, copy = wave.leaf, wave.leaf.copy()
    forest.abandon(wave)
    del wave, columns
    for _ in range(8):  # others come and go, and take the room of those that are gone
        forest.abandon(forest.select(roots[:7], 3))
        gc.collect()
    assert (leaf == copy).all()


def test_rows_of_a_selection() -> None:
    forest = Forest(UCT(), threads=1)
    roots = forest.plant(3)
    forest.expand(roots, [2, 3, 4])
    wave = forest.select(roots, 2)
    mask = wave.tree == roots[1]
    some = wave[mask]
    assert isinstance(some, Selection) and len(some) == 2
    for name in ("tree", "leaf", "depth", "ticket", "agent"):
        assert (getattr(some, name) == getattr(wave, name)[mask]).all()
    for picked, rows in (
        *((wave[4], [4]), (wave[-2:], [4, 5]), (wave[[5, 0]], [5, 0]), (wave[:0], [])),
        *((wave[::2], [0, 2, 4]), (wave[1::2], [1, 3, 5]), (wave[::-1], [5, 4, 3, 2, 1, 0])),
        (wave[np.arange(6).reshape(2, 3).T], [0, 3, 1, 4, 2, 5]),
    ):
        assert picked.ticket.tolist() == wave.ticket[rows].tolist()
        assert [picked.path_of(i).tolist() for i in range(len(rows))] == [wave.path_of(row).tolist() for row in rows]
    twice = forest.select(np.repeat(roots, 3))
    assert twice.distinct_leaves.tolist() == sorted(set(twice.leaf.tolist())) != twice.leaf.tolist()
    assert twice.distinct_leaves.dtype == np.int32
    assert wave.path_of(-1).tolist() == [roots[2], wave.leaf[5]]
    for row in (6, -7):
        with pytest.raises(IndexError, match=f"row {row} of a selection of 6"):
            wave.path_of(row)
    with pytest.raises(IndexError):
        wave[6]


def test_statistics_of_a_tree_in_numbers() -> None:
    forest, root = grown()
    rows = forest.nodes(root)
    stats = forest.stats(root)
    assert stats.nodes == len(rows) > 100
    depth: dict[int, int] = {}
    children: Counter[int] = Counter()
    for row in rows:
        depth[int(row["id"])] = 0 if row["parent"] < 0 else depth[int(row["parent"])] + 1
        children[int(row["parent"])] += 1
    assert stats.depth == max(depth.values()) > 2
    assert stats.depth_histogram.tolist() == [Counter(depth.values())[level] for level in range(stats.depth + 1)]
    assert stats.leaves == sum(children[int(node)] == 0 for node in rows["id"])
    buckets = Counter(int(n).bit_length() for n in rows["n"])  # 0, 1, 2-3, 4-7, ...
    assert stats.visit_histogram.tolist() == [buckets[i] for i in range(max(buckets) + 1)]
    assert (stats.pruned, stats.pending) == (1, 3)
    assert stats.visits == rows["visits"][0] and stats.value == rows["value"][0]
    table = forest.children(root)
    assert table["id"].tolist() == [int(row["id"]) for row in rows if row["parent"] == root]
    assert (forest.rows(rows["id"]) == rows).all()


def test_exports_hold_the_whole_tree() -> None:
    forest, root = grown(1)
    rows = forest.nodes(root)
    exported = json.loads(to_json(forest, root))
    assert exported["root"] == root and len(exported["nodes"]) == len(rows)
    for node, row in zip(exported["nodes"], rows, strict=True):
        assert node["parent"] == (None if row["parent"] < 0 else row["parent"])
        for name in ("id", "n", "visits", "pending", "reason", "prior", "value", "max", "mean", "depth", "tag"):
            assert node[name] == row[name]
    networkx = pytest.importorskip("networkx")
    graph = to_networkx(forest, root)
    assert networkx.is_arborescence(graph) and set(graph) == set(rows["id"].tolist())
    for row in rows:
        assert graph.nodes[int(row["id"])]["n"] == row["n"]
        if row["parent"] >= 0:
            assert graph.has_edge(int(row["parent"]), int(row["id"]))


@pytest.mark.parametrize("dtype", ["<i4", ">i4", "<i8", ">i8", "u2", "u8"])
def test_ids_of_any_integer_type(dtype: str) -> None:
    forest = Forest(threads=1)
    forest.plant(3)
    every = forest.expand(np.array([2, 9, 0], dtype)[::2], np.array([1, 2], dtype))
    assert forest.rows(every.astype(dtype))["parent"].tolist() == [2, 0, 0]


@pytest.mark.parametrize("branching", [3, 8, 32])
def test_memory_of_small_trees(branching: int) -> None:
    """At most 64 bytes a node with all statistics, 64 trees of a thousand nodes growing side by side."""
    forest = Forest(UCT(), "mean", threads=1)
    roots = forest.plant(64)
    for _ in range(1000 // branching):
        wave = forest.select(roots)
        forest.expand(wave.leaf, branching)
        forest.backup(wave, np.full(64, 0.5))
    assert forest.nbytes / len(forest) <= 64


@pytest.mark.parametrize("nodes", [1000, 10_000, 100_000])
@pytest.mark.parametrize("branching", [3, 8, 32])
def test_memory_of_one_tree(branching: int, nodes: int) -> None:
    forest = Forest(UCT(), "mean", threads=1)
    wave = forest.select(forest.plant(1))
    for _ in range(nodes // branching):
        wave = forest.step(wave, branching, [0.5])
    assert forest.nbytes / len(forest) <= 64


@pytest.mark.parametrize("branching", [3, 8, 32])
def test_memory_of_small_trees_on_two_threads(branching: int) -> None:
    forest = Forest(UCT(), "mean", threads=2)
    wave = forest.select(forest.plant(256))
    for _ in range(1000 // branching):
        wave = forest.step(wave, branching, np.full(256, 0.5))
    assert forest.nbytes / len(forest) <= 64


def test_one_thread_goes_on_alone_where_others_worked(tmp_path: Path) -> None:
    """Memory comes to threads in turns of slabs: one that has no need of its own leaves them to the others."""
    forest = Forest(UCT(), "mean", threads=4)
    roots = forest.plant(256)
    for _ in range(3):
        forest.expand(forest.select(roots).leaf, 4)
    nodes, size = len(forest), forest.nbytes
    for _ in range(100):  # one tree, hence on the caller's thread: some 20 of its slabs
        forest.expand(forest.select(roots[:1]).leaf, 1000)
    assert len(forest) == nodes + 100_000
    assert forest.nbytes - size <= 60 * 100_000
    forest.check()
    forest.save(tmp_path / "forest")
    loaded = Forest.load(tmp_path / "forest", threads=4)
    loaded.check()
    assert len(loaded) == len(forest) and loaded.in_flight == forest.in_flight
    assert (tmp_path / "forest").stat().st_size <= forest.nbytes + (4 << 20)


def test_dropped_trees_make_room_for_the_next() -> None:
    forest = Forest(UCT(), "mean", threads=1)
    sizes = []
    for round_ in range(20):
        roots = forest.plant(16)
        for _ in range(50):
            wave = forest.select(roots)
            forest.expand(wave.leaf, 2 + round_ % 3)
            forest.backup(wave, np.full(16, 0.5))
        forest.drop(roots)
        sizes.append(forest.nbytes - 8 * len(forest))  # ids are not used again before `compact`
    assert sizes[-1] < 1.5 * max(sizes[:3]) + 16 * 20 * 192  # and what is known of each tree that was
    forest.check()
    forest.compact()
    assert len(forest) == 0
    assert forest.nbytes == Forest(UCT(), "mean", threads=1).nbytes


def test_dropped_trees_do_not_count_after_compact() -> None:
    """The limit is 2^22 trees; those left keep their order, statistics and tickets."""
    forest = Forest(UCT(), threads=1)
    roots = forest.plant(3)
    forest.backup(forest.expand(roots[1:], 2), [0.1, 0.2, 0.3, 0.4])
    wave = forest.select(roots[1:])
    before = forest.nodes(roots[2])
    for _ in range(17):
        forest.drop(forest.plant(1 << 18))
        names = forest.compact()
        roots = names[roots]
    assert forest.trees.tolist() == roots.tolist() == [0, 1, 2]
    after = forest.nodes(roots[2])
    for column in ("n", "value", "visits", "pending"):
        assert (before[column] == after[column]).all()
    forest.check()
    forest.backup(wave, [0.5, 0.5])
    assert forest.in_flight == 0
