"""What `Forest.select` returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Selection:
    """Selected leaves, one row each (k rows, `trees` major, `leaves` minor). Pass it, or some of its rows
    (`selection[mask]`), to `Forest.backup` or `Forest.abandon`."""

    tree: NDArray[np.int32]  # [k] root id of the leaf's tree
    leaf: NDArray[np.int32]  # [k] node id: without children, or to be given more
    depth: NDArray[np.int32]  # [k] edges from the root
    ticket: NDArray[np.int64]  # [k] resolved exactly once, by backup or abandon
    path_offsets: NDArray[np.int64]  # [k + 1] row i's path is path[path_offsets[i] : path_offsets[i + 1]]
    path: NDArray[np.int32]  # node ids from root to leaf, all rows end to end
    agent: NDArray[np.int32]  # [k] who shall add a child (Thompson), else -1

    def __len__(self) -> int:
        return len(self.leaf)

    def path_of(self, row: int) -> NDArray[np.int32]:
        """Node ids from the root to leaf `row`."""
        return self.path[self.path_offsets[row] : self.path_offsets[row + 1]]

    def __getitem__(self, rows: Any) -> Selection:
        """The rows that an index, slice, index array or mask picks."""
        picked = np.atleast_1d(np.arange(len(self))[rows])
        paths = [self.path_of(int(row)) for row in picked]
        offsets = np.zeros(len(picked) + 1, np.int64)
        np.cumsum([len(path) for path in paths], out=offsets[1:])
        return Selection(
            tree=self.tree[picked],
            leaf=self.leaf[picked],
            depth=self.depth[picked],
            ticket=self.ticket[picked],
            path_offsets=offsets,
            path=np.concatenate(paths) if paths else self.path[:0],
            agent=self.agent[picked],
        )
