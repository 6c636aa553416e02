"""Run a Python command as an ordinary user (uid 65534), started by root: ``python as_nobody.py -m pytest ...``.

The interpreter may live in a home that only root can enter; in a mount namespace of its own this process first makes
a way to it, then leaves root for good.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from bdc.sandbox.inside import kernel, namespaces


def _make_reachable(path: Path) -> None:
    """Cover the first closed folder above ``path`` with an open one that holds nothing but ``path``."""
    closed = next((folder for folder in reversed(path.parents) if not folder.stat().st_mode & 0o001), None)
    if closed is None:
        return
    tree = kernel.clone_tree(str(path))
    kernel.mount("tmpfs", str(closed), "tmpfs", 0, "mode=755")
    path.mkdir(parents=True)
    kernel.attach_tree(tree, str(path))


if __name__ == "__main__":
    kernel.unshare(kernel.CLONE_NEWNS)
    kernel.mount("none", "/", None, kernel.MS_PRIVATE_REC)
    for prefix in {Path(sys.base_prefix), Path(sys.prefix), Path.cwd()}:
        _make_reachable(prefix)
    namespaces.become_nobody()
    os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
