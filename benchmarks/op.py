"""``python -m benchmarks.op``: the same as ``bdc bench op``."""

from __future__ import annotations

import sys

from bdc.cli import main

if __name__ == "__main__":
    sys.exit(main(["bench", "op", *sys.argv[1:]]))
