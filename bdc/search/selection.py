"""What `Forest.select` and `Forest.step` return."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


class Selection:
    """Selected leaves, one row each (k rows, `trees` major, `leaves` minor). Pass it, or some of its rows
    (`selection[mask]`), to `Forest.backup` or `Forest.abandon`. Its arrays are views, made when asked for."""

    __slots__ = ("_core",)

    def __init__(self, core: Any) -> None:
        self._core = core

    @property
    def tree(self) -> NDArray[np.int32]:
        """[k] root id of the leaf's tree."""
        return self._core.tree

    @property
    def leaf(self) -> NDArray[np.int32]:
        """[k] node id: without children, or to be given more."""
        return self._core.leaf

    @property
    def depth(self) -> NDArray[np.int32]:
        """[k] edges from the root."""
        return self._core.depth

    @property
    def ticket(self) -> NDArray[np.int64]:
        """[k] resolved exactly once, by backup or abandon."""
        return self._core.ticket

    @property
    def path_offsets(self) -> NDArray[np.int64]:
        """[k + 1] row i's path is `path[path_offsets[i] : path_offsets[i + 1]]`."""
        return self._core.path_offsets

    @property
    def path(self) -> NDArray[np.int32]:
        """Node ids from root to leaf, all rows end to end."""
        return self._core.path

    @property
    def agent(self) -> NDArray[np.int32]:
        """[k] who shall add a child (Thompson), else -1."""
        return self._core.agent

    @property
    def children(self) -> NDArray[np.int32]:
        """Ids that `Forest.step` added before it selected, in the order of the rows it was given; none by `select`."""
        return self._core.children

    def __len__(self) -> int:
        return len(self._core)

    def path_of(self, row: int) -> NDArray[np.int32]:
        """Node ids from the root to leaf `row`."""
        offsets = self.path_offsets
        return self.path[offsets[row] : offsets[row + 1]]

    def __getitem__(self, rows: Any) -> Selection:
        """The rows that an index, slice, index array or mask picks."""
        return Selection(self._core.take(np.atleast_1d(np.arange(len(self))[rows])))
