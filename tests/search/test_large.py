"""Ten million edges: ids, arrays and memory."""

from __future__ import annotations

import numpy as np
import pytest

from bdc.search import UCT, Forest


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_ten_million_edges_in_one_tree_and_in_many() -> None:
    """Statistics add up, ids stay dense, and a node takes at most 64 bytes. Limits beyond: ids and trees are 30 and 22
    bits of a location, the blocks 2^30 grains of 32 bytes, so 10^8 edges take 6 of 32 GiB and a tenth of the ids."""
    forest = Forest(UCT(), "mean", gamma=1.0)
    (root,) = forest.plant(1)
    branching, wave = 8, 1024
    rng = np.random.default_rng(0)
    sums = 0.0
    while len(forest) < 10_000_000:
        selection = forest.select([root], wave)
        leaves = np.unique(selection.leaf)
        children = forest.expand(leaves, branching)
        assert children[0] == len(forest) - len(children)
        returns = rng.random(wave)
        sums += returns.sum()
        forest.backup(selection, returns)
    assert forest.nbytes / len(forest) <= 64
    assert forest.in_flight == 0
    forest.check()
    row = forest.rows([root])[0]
    assert row["visits"] == row["n"] + 1 - wave  # the first wave ended at the root itself
    assert abs(row["mean"] * row["n"] - sums) < 1e-6 * sums
    last = forest.rows([len(forest) - 1])[0]
    assert last["tree"] == root and last["id"] == len(forest) - 1
    assert len(forest.best_path(int(root), by="visits")) > 5
