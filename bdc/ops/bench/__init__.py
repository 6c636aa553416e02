"""``bdc bench op``: the rank-wise product beside what computes the same today, and beside the limits of the machine."""

from bdc.ops.bench.command import main

__all__ = ["main"]
