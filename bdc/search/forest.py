"""`Forest`: the Python face of the tree core."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bdc import _search
from bdc._search import Selection
from bdc.search.errors import ForestError
from bdc.search.rules import PUCB, Rule, Widening, decode, encode

_search.raise_as(ForestError)

Ids = NDArray[np.int32]
_BY = ("value", "max", "mean", "visits")


@dataclass(frozen=True, slots=True)
class TreeStats:
    """One tree in numbers."""

    nodes: int
    leaves: int  # nodes without children
    pruned: int  # nodes that prune excluded themselves
    depth: int  # of the deepest node
    visits: int  # N of the root
    pending: int  # selections in flight
    value: float  # Q of the root: its returns' max or mean
    depth_histogram: NDArray[np.int64]  # [depth + 1] nodes at each depth
    visit_histogram: NDArray[np.int64]  # [m] nodes with 0, 1, 2-3, 4-7, ... returns


def default_threads() -> int:
    """The processors this process may use, at most 8."""
    return min(8, len(os.sched_getaffinity(0)))


class Forest:
    """Many search trees with their statistics; thoughts and programs live elsewhere, keyed by node id.

    A tree is named by the id of its root. Ids are dense int32 numbers, given in the order of the calls, and stay valid
    until `compact`. Backup: the edge into a leaf receives the return v, the edge above gamma * v, and so on; each adds
    a visit to the node it leaves. Calls release the GIL; trees are spread over `threads`, and the result is the same
    for any number of them. Arrays that a call was given must not change while it runs. Returns, priors and rule
    parameters lie within +-1e100. Bad input raises `ForestError` (an `InputError`) and changes nothing.

    Args:
        rule: see `bdc.search.rules`.
        backup: the value of an edge is the "max" or the "mean" of its returns.
        gamma: discount per level, in 0..1.
        virtual_loss: with l > 0 a selection in flight lowers the value of the edges on its path by
            `l * pending / (n + pending)`; 0 counts it as a visit in the exploration terms only (WU-UCT).
        widening: progressive widening, off by default.
        seed: of the sampling rules; draws are keyed by (seed, tree, node, visits).
        threads: default: the processors at hand, at most 8.
    """

    def __init__(
        self,
        rule: Rule | None = None,
        backup: Literal["max", "mean"] = "max",
        gamma: float = 0.9,
        virtual_loss: float = 0.0,
        seed: int = 0,
        *,
        widening: Widening | None = None,
        threads: int | None = None,
    ) -> None:
        if backup not in ("max", "mean"):
            raise ForestError(f"backup is {backup!r}; use 'max' or 'mean'")
        if not 0 <= seed < 1 << 64:
            raise ForestError(f"seed is {seed}; it lies in 0..2^64-1")
        kind, parameters = encode(rule if rule is not None else PUCB())
        widen = widening if widening is not None else Widening(0.0)
        self._core = _search.Forest(
            kind, parameters, backup == "mean", gamma, virtual_loss, widen.c, widen.alpha, seed, _threads(threads)
        )

    @property
    def rule(self) -> Rule:
        kind, parameters = self._core.config[:2]
        return decode(kind, parameters)

    @property
    def backup_mode(self) -> str:
        return "mean" if self._core.config[2] else "max"

    @property
    def gamma(self) -> float:
        return self._core.config[3]

    @property
    def trees(self) -> Ids:
        """Root ids of all trees."""
        return self._core.trees()

    @property
    def in_flight(self) -> int:
        """Tickets that are neither backed up nor abandoned."""
        return self._core.in_flight

    @property
    def nbytes(self) -> int:
        """Memory held, in bytes, without the tables by visits (512 KiB each at most), which all forests share."""
        return self._core.bytes

    def __len__(self) -> int:
        """Ids given out since the last `compact`."""
        return self._core.size

    def plant(self, n: int) -> Ids:
        """Adds `n` trees; their root ids. Dropped trees count towards the limit of 2^22 until `compact`."""
        return self._core.plant(n)

    def select(self, trees: ArrayLike, leaves: int = 1) -> Selection:
        """Descends `leaves` times in each tree (root ids), counting the visits already in flight; stops at a node
        without children, or at one that widening or a generate arm picks."""
        return self._core.select(trees, leaves)

    def expand(
        self,
        nodes: ArrayLike,
        counts: ArrayLike,
        priors: ArrayLike | None = None,
        tags: ArrayLike | None = None,
    ) -> Ids:
        """Adds `counts` children to each node (one count each, or one for all; 0 leaves a leaf). `priors` and `tags`
        (the agent, 0..65535) hold one entry per child, node after node; by default 1 / count and 0. A node that has
        children gets more. Returns the children's ids, consecutive, in the same order."""
        return self._core.expand(nodes, counts, priors, tags)

    def backup(
        self, leaves_or_selection: ArrayLike | Selection, returns: ArrayLike, *, tickets: ArrayLike | None = None
    ) -> None:
        """Adds one return per leaf, discounted on the way up, and lands the selections in flight.

        A `Selection` resolves its own tickets. Node ids resolve `tickets` where given (a ticket of the node, or of its
        parent); without, each the node's oldest ticket, or, when it has none, all tickets of its parent: so a wave may
        select leaves, expand them, and back up at the new children. Nodes without tickets take returns just the same.
        """
        self._core.backup(leaves_or_selection, returns, tickets)

    def step(
        self,
        selection: Selection,
        counts: ArrayLike,
        returns: ArrayLike,
        *,
        priors: ArrayLike | None = None,
        tags: ArrayLike | None = None,
        leaves: int = 1,
    ) -> Selection:
        """A search's loop in one call: `expand(selection.leaf, counts, priors, tags)`, `backup(selection, returns)`, and
        `select` of `leaves` in each tree of the selection. Returns what select returns; its `children` are the new ids.

        The same result as the three calls, in one pass over each tree: for evaluators that return a leaf's children and
        its value at once, as a network does. It is the faster way after a `select` or `step` of trees in rising order,
        without another change to the forest in between; for some rows of a selection, or after other calls, it takes as
        long as the three. Where a tree has several rows, it comes once, in the order of first rows.
        """
        return self._core.step(selection, counts, returns, priors, tags, leaves)

    def abandon(self, leaves_or_selection: ArrayLike | Selection, *, tickets: ArrayLike | None = None) -> None:
        """Takes selections back without a trace in the statistics; by node id, the oldest one of each entry."""
        self._core.abandon(leaves_or_selection, tickets)

    def prune(self, nodes: ArrayLike, reasons: ArrayLike = 1) -> Ids:
        """Excludes nodes from selection and keeps their records, with a reason in 1..255. Where no sibling is left
        open, the one with the best value reopens; returns the ids that did."""
        return self._core.prune(nodes, reasons)

    def reopen(self, nodes: ArrayLike) -> None:
        """Undoes `prune`."""
        self._core.reopen(nodes)

    def refine(self, nodes: ArrayLike) -> None:
        """Restarts the statistics of leaves whose thought was replaced; id, prior, tag and place stay, and so do the
        returns that their ancestors have received."""
        self._core.refine(nodes)

    def rows(self, nodes: ArrayLike) -> NDArray[Any]:
        """A record per node id: id, parent (-1 at a root), tree, depth, tag, children, n (returns of the edge into it),
        visits (N), pending, reason (0 open), refined, prior, value, max, mean."""
        return self._core.rows(nodes)

    def children(self, node: int) -> NDArray[Any]:
        """`rows` of the node's children, in the order they were added."""
        return self._core.children(node)

    def nodes(self, tree: int) -> NDArray[Any]:
        """`rows` of the whole tree, breadth first."""
        return self._core.nodes(tree)

    def stats(self, tree: int) -> TreeStats:
        """One tree in numbers."""
        rows = self.nodes(tree)
        root = rows[0]
        return TreeStats(
            nodes=len(rows),
            leaves=int((rows["children"] == 0).sum()),
            pruned=int((rows["reason"] != 0).sum()),
            depth=int(rows["depth"].max()),
            visits=int(root["visits"]),
            pending=int(root["pending"]),
            value=float(root["value"]),
            depth_histogram=np.bincount(rows["depth"]),
            visit_histogram=np.bincount(np.frexp(rows["n"].astype(np.float64))[1]),
        )

    def best_path(self, tree: int, by: Literal["value", "max", "mean", "visits"] = "value") -> Ids:
        """Node ids from the root along the open children with returns that are best by `by`."""
        if by not in _BY:
            raise ForestError(f"best_path got by={by!r}; use one of {', '.join(_BY)}")
        return self._core.best_path(tree, _BY.index(by))

    def drop(self, trees: ArrayLike) -> None:
        """Frees trees; their ids and tickets become invalid, all others stay. `compact` frees their ids, too."""
        self._core.drop(trees)

    def compact(self, *, drop_pruned: bool = False) -> Ids:
        """Renumbers ids and trees without gaps and packs the memory; optionally forgets pruned subtrees (their returns
        stay in the ancestors). Returns the new id of every old one, -1 for those gone. Tickets stay valid; the ids in a
        `Selection` do not. The draws of a tree behind a dropped one change with its ids, and a tree planted later may
        draw as a dropped one did."""
        return self._core.compact(drop_pruned)

    def check(self) -> None:
        """Walks everything and raises where an invariant does not hold (a bug, never bad input)."""
        self._core.check()

    def save(self, path: str | os.PathLike[str], *, sync: bool = True) -> None:
        """Writes a snapshot (versioned, checksummed) to a temporary file and renames it: whenever the process is
        killed, `path` is the old snapshot or the new one. With `sync=False` it does not wait for the disk, which takes
        a fraction of the time; a power cut within the next seconds may then lose the new snapshot, or damage it so
        that `load` refuses it."""
        self._core.save(str(Path(path)), sync)

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, threads: int | None = None, verify: bool = True) -> Forest:
        """Opens a snapshot; a truncated, damaged, foreign or newer file raises `ForestError`.

        With `verify=False` the file is mapped and read as the search touches it, so that opening takes no time whatever
        its size. Statistics and references are then taken as they are: only for files whose author you trust.
        """
        forest = cls.__new__(cls)
        forest._core = _search.Forest.load(str(Path(path)), _threads(threads), verify)
        return forest


def _threads(threads: int | None) -> int:
    if threads is None:
        return default_threads()
    if not 1 <= threads <= 256:
        raise ForestError(f"threads is {threads}; it lies in 1..256")
    return threads
