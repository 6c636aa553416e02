"""What a fork server and each of its children take away from themselves, by level.

L3: namespaces, Landlock, seccomp. L2: Landlock, seccomp. L1: rlimits, a process group, a subreaper. L0: rlimits.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
from pathlib import Path

from bdc.sandbox.inside import kernel, landlock, namespaces, native, seccomp

_LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/etc/ld.so.cache", "/usr/share/zoneinfo")
_SCRATCH_MB = 16
_STACK = 64 << 20
_THREADS = 64


def _interpreter_paths() -> list[str]:
    """Return the folders that Python and the libraries it may load live in, without those inside another one."""
    wanted = [*sys.path, str(Path(sys.base_prefix) / "lib"), str(Path(os.__file__).parent), *_LIBRARIES]
    real = [path for path in dict.fromkeys(wanted) if Path(path).exists()]
    return [path for path in real if not any(path.startswith(other.rstrip("/") + "/") for other in real)]


class Confinement:
    """Enter a level (the fork server, once) and say how its children are bound to it.

    Raises:
        OSError: the kernel or its policy does not offer the level.
    """

    def __init__(self, level: str) -> None:
        self.level = level
        self._world: namespaces.World | None = None
        self._rules: tuple[int, ...] = ()
        self._filter: seccomp.Filter | None = None
        self._readable = readable = _interpreter_paths()
        self._life = os.pidfd_open(os.getpid())
        self._others = 0
        self._base_memory = _address_space()  # now: /proc is out of reach later
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        self._most_memory = 1 << 62 if hard == resource.RLIM_INFINITY else hard
        kernel.prctl(kernel.PR_SET_CHILD_SUBREAPER, 1)
        if level == "L3":
            self._world = namespaces.World(readable, _SCRATCH_MB)
        elif os.geteuid() == 0 and level != "L0":
            # An interpreter under a private home (0700) stays readable through this one capability; Landlock bounds it.
            namespaces.become_nobody(keep=1 << kernel.CAP_DAC_READ_SEARCH)
        if level in ("L3", "L2"):
            if not seccomp.supported():
                raise OSError(f"seccomp: no filter for {kernel.MACHINE}")
            if not landlock.version():
                raise OSError("landlock: not offered by this kernel")
            self._make_rules()
            self._filter = seccomp.child_filter()
        self._limits_for_all()

    def _limits_for_all(self) -> None:
        """Set what the server can bear itself: children inherit it, which is cheaper than to set it in each."""
        if self.level in ("L3", "L2"):
            kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
        _limit(resource.RLIMIT_CORE, 0)
        _limit(resource.RLIMIT_NOFILE, 128)
        _limit(resource.RLIMIT_FSIZE, _SCRATCH_MB << 20 if self._world else 0)
        _limit(resource.RLIMIT_MEMLOCK, 0)
        _limit(resource.RLIMIT_MSGQUEUE, 0)
        # The hard one stays: programs raise the soft one, and memory bounds both.
        _, hard = resource.getrlimit(resource.RLIMIT_STACK)
        soft = _STACK if hard == resource.RLIM_INFINITY else min(_STACK, hard)
        resource.setrlimit(resource.RLIMIT_STACK, (soft, hard))
        if self._world:
            _limit(resource.RLIMIT_NPROC, _THREADS)
        else:
            self._others = _tasks_of(os.getuid())
        kernel.prctl(kernel.PR_SET_DUMPABLE, 0)

    def close_ranks(self) -> None:
        """Take from the server, and so from every child, what neither needs any more."""
        if self.level in ("L3", "L2"):
            seccomp.server_filter(writable=self._world is not None).install()

    def _make_rules(self) -> None:
        """Make the Landlock rulesets: only a program under test may write, and only to the scratch folder of L3."""
        for rules in self._rules:
            os.close(rules)
        devices = namespaces.DEVICES
        scratch = (self._world.scratch,) if self._world else ()
        guest = landlock.ruleset((*self._readable, *devices), (*scratch, "/dev/null"))
        referee = landlock.ruleset((*self._readable, *devices), ("/dev/null",))
        self._rules = guest, referee

    def describe(self, server: native.Server) -> None:
        """Say in the terms of the loop how its children are to be bound."""
        server.life, server.tasks = self._life, 0 if self._world else _THREADS + self._others
        server.new_pid_namespace = server.drop_capabilities = self._world is not None
        server.new_session = server.watch_strays = self.level == "L1"
        server.base_memory, server.most_memory = self._base_memory, self._most_memory
        server.scratch = self._world.folder if self._world else -1
        server.rules[:] = self._rules or (-1, -1)
        if self._filter:
            server.filter, server.filter_length = self._filter.code()

    def clean(self, server: native.Server) -> None:
        """Give the next program an empty scratch folder."""
        if self._world:
            self._world.renew()
            self._make_rules()  # rules name an inode, and the folder is a new one
            self.describe(server)

    def kill_strays(self, known: set[int]) -> None:
        """End what a child left behind, but for the ``known`` other children; from L2 on no program can fork."""
        if self.level != "L1":
            return
        children = Path(f"/proc/self/task/{os.getpid()}/children")
        while pids := set(map(int, children.read_text().split())) - known:
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)


def _limit(which: int, value: int) -> None:
    hard = resource.getrlimit(which)[1]
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(which, (value, value))


def _address_space() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def _tasks_of(uid: int) -> int:
    """Count the threads of a user: where the user is shared, RLIMIT_NPROC counts them all."""
    count = 0
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if folder.stat().st_uid == uid:
                count += sum(1 for _ in (folder / "task").iterdir())
        except OSError:
            continue
    return count
