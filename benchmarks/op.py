"""``python -m benchmarks.op``: the same as ``bdc bench op``."""

from __future__ import annotations

import sys

from bdc.ops.bench import main

if __name__ == "__main__":
    sys.exit(main())
