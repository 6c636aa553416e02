"""The typed error of the tree core."""

from __future__ import annotations

from bdc.errors import InputError


class ForestError(InputError):
    """A call on a `Forest` got bad input and changed nothing; `index` is the offending position, if there is one."""

    def __init__(self, message: str, index: int | None = None) -> None:
        super().__init__(message)
        self.index = index
