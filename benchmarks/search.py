"""``python -m benchmarks.search``: the same as ``bdc bench search``."""

from __future__ import annotations

import sys

from bdc.cli import main

if __name__ == "__main__":
    sys.exit(main(["bench", "search", *sys.argv[1:]]))
