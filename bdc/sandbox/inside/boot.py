"""Entry point of a fork server: make this folder importable without running `bdc/__init__.py`, then serve.

Run as ``python -S -B boot.py FD CONFIG``; FD is the one inherited socket, CONFIG a JSON object (see `forkserver.main`).
"""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path


def _namespace(name: str, folder: Path) -> None:
    module = types.ModuleType(name)
    module.__path__ = [str(folder)]
    sys.modules[name] = module


if __name__ == "__main__":
    here = Path(__file__).resolve().parent
    sys.path[:] = [entry for entry in sys.path if entry and Path(entry).resolve() != here]
    _namespace("bdc", here.parent.parent)
    _namespace("bdc.sandbox", here.parent)
    from bdc.sandbox.inside import forkserver

    forkserver.main(int(sys.argv[1]), json.loads(sys.argv[2]))
