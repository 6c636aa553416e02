"""``python -m benchmarks.search``: the same as ``bdc bench search``."""

from __future__ import annotations

import sys

from bdc.search.bench import main

if __name__ == "__main__":
    sys.exit(main())
