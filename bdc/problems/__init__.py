"""Problems: one record, readers for the public sets, and splits that do not leak."""

from __future__ import annotations

from bdc.problems.load import file_of, load
from bdc.problems.partition import normalise, split, without_duplicates
from bdc.problems.problem import Problem

__all__ = ["Problem", "file_of", "load", "normalise", "split", "without_duplicates"]
