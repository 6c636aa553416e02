"""Level L3's world: a root that holds the interpreter and an empty scratch folder, no network, no other process.

Entered once by the fork server. As root it first leaves root behind, so that both kinds of caller run the same way:
an ordinary user inside a user namespace of its own.
"""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Sequence
from pathlib import Path

from bdc.sandbox.inside import kernel

NOBODY = 65534
_WORLD = kernel.CLONE_NEWNS | kernel.CLONE_NEWNET | kernel.CLONE_NEWIPC | kernel.CLONE_NEWUTS
DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom")


class World:
    """The namespaces of a fork server and its scratch folder; each child begins a pid namespace of its own."""

    def __init__(self, readable: Sequence[str], scratch_mb: int) -> None:
        """Enter; ``readable`` are absolute paths that stay visible, read-only. Raises OSError where forbidden.

        The caller goes on as process 1 of a pid namespace, so that its end is the end of every child; the process
        that it was waits for it and ends with it.
        """
        # A scratch folder mounted over a readable path would hide it.
        self.scratch = "/scratch" if any(path.startswith("/tmp/") for path in readable) else "/tmp"
        self._scratch_options = f"size={scratch_mb}m,nr_inodes=1024,mode=700"
        proc = os.open("/proc", os.O_PATH | os.O_DIRECTORY)
        if os.geteuid() == 0:
            kernel.unshare(kernel.CLONE_NEWNS)
            _build_root(readable, self.scratch)
            become_nobody()
            _own_user_namespace(proc)
        else:
            _own_user_namespace(proc)
            _build_root(readable, self.scratch)
        _continue_as_init()
        os.close(proc)
        self._mount_scratch()

    def _mount_scratch(self) -> None:
        kernel.mount("tmpfs", self.scratch, "tmpfs", kernel.MS_NOSUID_NODEV_NOEXEC, self._scratch_options)
        os.chdir(self.scratch)
        self.folder = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def renew(self) -> None:
        """Make the scratch folder an empty one."""
        os.close(self.folder)
        os.chdir("/")
        kernel.unmount(self.scratch)
        self._mount_scratch()


def become_nobody(keep: int = 0) -> None:
    """Leave root for good; ``keep`` is a mask of capabilities to keep."""
    kernel.prctl(kernel.PR_SET_KEEPCAPS, int(bool(keep)))
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)
    kernel.set_capabilities(keep)
    kernel.prctl(kernel.PR_SET_DUMPABLE, 1)  # else /proc/self stays root's and the user map cannot be written


def _own_user_namespace(proc: int) -> None:
    uid, gid = os.geteuid(), os.getegid()
    kernel.unshare(kernel.CLONE_NEWUSER | kernel.CLONE_NEWPID | _WORLD)
    for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
        fd = os.open(f"self/{name}", os.O_WRONLY, dir_fd=proc)
        try:
            os.write(fd, text.encode())
        finally:
            os.close(fd)


def _continue_as_init() -> None:
    waiting = os.pidfd_open(os.getpid())
    pid = os.fork()
    if pid:
        os.closerange(3, waiting)
        os.closerange(waiting + 1, 256)
        _, status = os.waitpid(pid, 0)
        os._exit(os.waitstatus_to_exitcode(status) & 255)
    kernel.prctl(kernel.PR_SET_PDEATHSIG, int(signal.SIGKILL))
    if select.select([waiting], [], [], 0)[0]:
        os._exit(1)
    os.close(waiting)


def _build_root(readable: Sequence[str], scratch: str) -> None:
    kernel.mount("none", "/", None, kernel.MS_PRIVATE_REC)
    kept = [(path, kernel.clone_tree(path)) for path in (*readable, *DEVICES) if not Path(path).is_symlink()]
    links = [(path, Path(path).readlink()) for path in readable if Path(path).is_symlink()]
    base = next(path for path in ("/tmp", "/mnt", "/var", "/usr") if Path(path).is_dir())
    directories = {path: Path(path).is_dir() for path, _ in kept}
    kernel.mount("tmpfs", base, "tmpfs", kernel.MS_NOSUID_NODEV_NOEXEC, "size=1m,mode=755")
    os.chdir(base)
    Path(scratch[1:]).mkdir()
    for path, fd in kept:
        target = Path(path[1:])
        if directories[path]:
            target.mkdir(parents=True, exist_ok=True)
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.touch()
        kernel.attach_tree(fd, path[1:])
    for path, destination in links:
        Path(path[1:]).parent.mkdir(parents=True, exist_ok=True)
        Path(path[1:]).symlink_to(destination)
    kernel.pivot_here()
    kernel.read_only("/")
