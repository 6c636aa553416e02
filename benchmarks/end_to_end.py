"""``python -m benchmarks.end_to_end``: the same as ``bdc bench solver``."""

from __future__ import annotations

import sys

from bdc.cli import main

if __name__ == "__main__":
    sys.exit(main(["bench", "solver", *sys.argv[1:]]))
