"""What hostile programs try. Each test asserts on what the attacker wanted, at L3 and at L2."""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from bdc.sandbox import Limits, Sandbox, TestResult
from bdc.sandbox.check import self_check
from bdc.testcase import AssertTest, CallTest, StdinTest


def attack(sandbox: Sandbox, program: str, *args: Any, limits: Limits | None = None) -> TestResult:
    """Run ``f(*args)`` of a program; its result, if any, is in ``actual``."""
    limits = limits or Limits(cpu_seconds=1.0, wall_seconds=8.0, memory_mb=256)
    return sandbox.judge_many([(program, [CallTest("f", args, "unguessable")])], limits)[0].results[0]


def mine() -> set[int]:
    """Processes of the sandbox below this one or orphaned, once killed ones are gone.

    They are known by the file of the fork server in their command lines; other runs' servers have living parents.
    """
    time.sleep(0.2)
    parents, servers = {}, set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if b"sandbox/inside/boot.py" in (folder / "cmdline").read_bytes():
                servers.add(int(folder.name))
        except OSError:
            continue
    found = set()
    for pid in servers:
        line = [pid]
        while (parent := parents.get(line[-1], 0)) and parent != os.getpid():
            line.append(parent)
        if parent == os.getpid() or not any(ancestor not in servers for ancestor in line if ancestor != 1):
            found.add(pid)
    return found


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    for folder in (tmp_path, *list(tmp_path.parents)[:3]):
        if folder != Path("/tmp") and folder.stat().st_uid == os.getuid():
            folder.chmod(0o755)
    path = tmp_path / "secret"
    path.write_text(secrets.token_hex())
    path.chmod(0o666)
    return path


def test_read_a_secret_file(isolated: Sandbox, secret: Path) -> None:
    program = """
import os, ctypes, io, mmap
def f(path):
    got = []
    for read in (
        lambda: open(path).read(),
        lambda: os.read(os.open(path, os.O_RDONLY), 99).decode(),
        lambda: open("/proc/self/root" + path).read(),
        lambda: open("/proc/1/root" + path).read(),
        lambda: os.read(os.open(path, os.O_RDONLY, dir_fd=os.open("/", os.O_RDONLY)), 99).decode(),
        lambda: (os.symlink(path, "link"), open("link").read())[1],
        lambda: (os.symlink("/", "root"), open("root" + path).read())[1],
        lambda: (os.link(path, "hard"), open("hard").read())[1],
        lambda: open("../" * 20 + path).read(),
        lambda: open("/etc/passwd").read(),
        lambda: open("/etc/hostname").read(),
        lambda: __import__("shutil").copy(path, "copy") and open("copy").read(),
    ):
        try:
            got.append(read())
        except OSError:
            pass
    return got
"""
    result = attack(isolated, program, str(secret))
    assert result.actual == "[]", result


def test_write_outside(isolated: Sandbox, secret: Path) -> None:
    content, mode = secret.read_text(), secret.stat().st_mode
    program = """
import os
def f(path):
    folder = os.path.dirname(path)
    done = []
    for name, write in {
        "overwrite": lambda: open(path, "w").write("x"),
        "append": lambda: open(path, "a").write("x"),
        "truncate": lambda: os.truncate(path, 0),
        "create": lambda: open(folder + "/new", "w").write("x"),
        "mkdir": lambda: os.mkdir(folder + "/new"),
        "remove": lambda: os.remove(path),
        "rename": lambda: os.rename(path, folder + "/new"),
        "chmod": lambda: os.chmod(path, 0o600),
        "chown": lambda: os.chown(path, os.getuid(), os.getgid()),
        "utime": lambda: os.utime(path, (0, 0)),
        "xattr": lambda: os.setxattr(path, "user.x", b"x"),
        "symlink": lambda: os.symlink("/etc/passwd", folder + "/new"),
        "interpreter": lambda: open(os.__file__, "a").write("x"),
        "shm": lambda: open("/dev/shm/bdc-escape", "w").write("x"),
        "var": lambda: open("/var/tmp/bdc-escape", "w").write("x"),
        "root": lambda: open("/bdc-escape", "w").write("x"),
    }.items():
        try:
            write()
            done.append(name)
        except OSError:
            pass
    return done
"""
    result = attack(isolated, program, str(secret))
    assert result.actual == "[]", result
    assert secret.read_text() == content
    assert (secret.stat().st_mode, secret.stat().st_mtime > 0) == (mode, True)
    assert os.listdir(secret.parent) == ["secret"]  # noqa: PTH208
    assert not any(Path(p).exists() for p in ("/dev/shm/bdc-escape", "/var/tmp/bdc-escape", "/bdc-escape"))


def test_truncation_where_landlock_knows_none(secret: Path) -> None:
    """Level L2 on Linux 5.13 to 6.1: Landlock there has no right to truncate, so another layer must refuse it."""
    script = f"""
import os
from bdc.sandbox.inside import confine, kernel, landlock, native
landlock.version = lambda: 2
confinement = confine.Confinement("L2")
server = native.Server()
confinement.describe(server)
confinement.close_ranks()
kernel.syscall("landlock_restrict_self", 446, server.rules[0], 0)
for attempt in (
    lambda: os.truncate({str(secret)!r}, 0),
    lambda: os.open({str(secret)!r}, os.O_RDONLY | os.O_TRUNC),
    lambda: os.open({str(secret)!r}, os.O_ACCMODE | os.O_TRUNC),
    lambda: os.open({str(secret)!r}, os.O_WRONLY | os.O_TRUNC),
):
    try:
        attempt()
    except OSError:
        pass
open("/dev/null", "w").write("still open")
print("tried")
"""
    content = secret.read_text()
    done = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout == "tried\n", done.stderr
    assert secret.read_text() == content


def test_the_environment_and_arguments_of_the_parent(isolated: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BDC_ESCAPE_SECRET", secrets.token_hex())
    with Sandbox(workers=1, level=isolated.level) as sandbox:  # its server is started with the secret set
        program = """
import os, sys, ctypes
def f(parent):
    got = [dict(os.environ), sys.argv]
    environ = ctypes.POINTER(ctypes.c_char_p).in_dll(ctypes.CDLL(None), "environ")
    while environ and environ[0]:
        got.append(environ[0])
        environ = ctypes.cast(ctypes.addressof(environ.contents) + 8, ctypes.POINTER(ctypes.c_char_p))
    for pid in ("self", parent, os.getppid(), 1):
        for name in ("environ", "cmdline", "maps", "mem"):
            try:
                got.append(open(f"/proc/{pid}/{name}", "rb").read())
            except (OSError, OverflowError):
                pass
    return got
"""
        result = attack(sandbox, program, os.getpid())
    assert result.actual == "[{}, ['']]", result


@pytest.mark.parametrize("family", ["tcp", "udp", "unix", "abstract"])
def test_network(isolated: Sandbox, secret: Path, family: str) -> None:
    kind = socket.SOCK_DGRAM if family == "udp" else socket.SOCK_STREAM
    listener = socket.socket(socket.AF_INET if family in ("tcp", "udp") else socket.AF_UNIX, kind)
    address: Any = ("127.0.0.1", 0)
    if family == "unix":
        address = str(secret.parent / "socket")
    elif family == "abstract":
        address = "\0bdc-" + secrets.token_hex(4)
    with listener:
        listener.bind(address)
        listener.settimeout(0.3)
        if kind == socket.SOCK_STREAM:
            listener.listen()
        program = """
import socket
def f(domain, kind, address):
    address = tuple(address) if isinstance(address, list) else address
    try:
        s = socket.socket(domain, kind)
        s.connect(address)
        s.send(b"x")
        return "reached"
    except OSError:
        pass
    try:
        a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        a.sendto(b"x", address)
        return "reached by a pair"
    except (OSError, TypeError):
        return "refused"
"""
        name = listener.getsockname()
        if isinstance(name, bytes):
            name = name.decode()
        result = attack(isolated, program, int(listener.family), int(kind), name)
        assert result.actual == "'refused'", result
        with pytest.raises(TimeoutError):
            listener.recvfrom(1) if kind == socket.SOCK_DGRAM else listener.accept()


def test_name_lookup_and_other_socket_families(isolated: Sandbox) -> None:
    program = """
import socket
def f():
    opened = []
    try:
        opened.append(socket.getaddrinfo("localhost.localdomain", 80)[0][4][0])
    except OSError:
        pass
    for family in range(50):
        for kind in (1, 2, 3):
            try:
                opened.append((family, kind, socket.socket(family, kind).fileno()))
            except OSError:
                pass
    return opened
"""
    assert attack(isolated, program).actual == "[]"


def test_processes(isolated: Sandbox) -> None:
    before = mine()
    program = """
import os, subprocess, ctypes
def f():
    made = []
    libc = ctypes.CDLL(None)
    for name, start in {
        "fork": os.fork,
        "vfork": lambda: libc.syscall(58),
        "clone": lambda: libc.syscall(56, 17, 0, 0, 0, 0),
        "clone namespace": lambda: libc.syscall(56, 0x10000000 | 17, 0, 0, 0, 0),
        "spawn": lambda: os.posix_spawn("/bin/true", ["true"], {}),
        "subprocess": lambda: subprocess.Popen(["/bin/sh", "-c", "sleep 1000"]).pid,
        "system": lambda: os.system("sleep 1000 &") == 0,
        "exec": lambda: os.execv("/bin/true", ["true"]),
        "multiprocessing": lambda: __import__("multiprocessing").Process(target=print).start() or 1,
    }.items():
        try:
            value = start()
            if value == 0 and name != "system":
                while True: pass
            if value is not False and value != -1:
                made.append(name)
        except OSError:
            pass
    return made
"""
    result = attack(isolated, program)
    assert result.actual == "[]", result
    assert mine() == before


def test_fork_bomb_and_double_fork(isolated: Sandbox) -> None:
    before = mine()
    bomb = "import os\ndef f():\n    while True:\n        try: os.fork()\n        except OSError: pass"
    assert attack(isolated, bomb, limits=Limits(cpu_seconds=0.2)).status == "timeout"
    outlive = """
import os, time
def f():
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            time.sleep(1000)
    os._exit(0)
"""
    assert attack(isolated, outlive).status == "runtime_error"
    assert mine() == before


def test_thread_bomb(isolated: Sandbox) -> None:
    program = """
import threading, time
threading.stack_size(32768)
def f():
    n = 0
    try:
        while n < 100000:
            threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()
            n += 1
    except (RuntimeError, MemoryError):
        pass
    return n
"""
    started = time.monotonic()
    result = attack(isolated, program)
    if isolated.level == "L3":
        assert 8 <= int(result.actual) <= 64
    else:  # the user's other threads count too, so the bound is not exact
        assert result.status in ("timeout", "memory") or int(result.actual) < 20_000
    assert time.monotonic() - started < 600


@pytest.mark.parametrize(
    "bomb",
    [
        "x = []\n    while True: x.append(bytearray(1 << 20))",
        "return len('x' * (1 << 40))",
        "import mmap\n    return [mmap.mmap(-1, 64 << 20) for _ in range(100)]",
        "x = []\n    x.append(x)\n    y = [x] * (1 << 28)\n    return len(y)",
    ],
)
def test_memory_bomb(isolated: Sandbox, bomb: str) -> None:
    result = attack(isolated, f"def f():\n    {bomb}")
    assert result.status in ("memory", "runtime_error"), result
    assert result.actual == ""


def test_scratch_is_small_and_does_not_outlive_the_program(isolated: Sandbox) -> None:
    fill = """
import os
def f():
    total = 0
    try:
        for i in range(100):
            with open(f"/tmp/{i}", "wb", 0) as file:
                for _ in range(10):
                    total += file.write(b"x" * (1 << 20))
    except OSError:
        pass
    return total >> 20
"""
    assert int(attack(isolated, fill).actual) <= 16
    left = attack(isolated, "import os\ndef f(): return os.path.exists('/tmp/0') or os.path.exists('0')")
    assert left.actual == "False"
    again = attack(isolated, "def f():\n    open('note', 'w').write('x')\n    return open('note').read()")
    assert again.actual == ("'x'" if isolated.level == "L3" else ""), again


@pytest.mark.parametrize("length", [1, 188, 189, 235, 236, 237, 255])
def test_a_file_with_a_name_of_any_length_does_not_outlive_its_program(isolated: Sandbox, length: int) -> None:
    leave = f"def f():\n    try: open('x' * {length}, 'w').write('secret')\n    except OSError: pass"
    look = "import os\ndef f():\n    try: return os.listdir('.')\n    except OSError: return []"
    assert attack(isolated, leave).actual == "None"
    assert attack(isolated, look).actual == "[]"


def test_kill_and_trace(isolated: Sandbox) -> None:
    program = """
import os, signal, ctypes
def f(parent):
    libc = ctypes.CDLL(None, use_errno=True)
    done = []
    for pid in (parent, os.getppid(), -1, 0, -parent):
        for number in (0, signal.SIGTERM, signal.SIGKILL):
            try:
                os.kill(pid, number)
                done.append((pid, number))
            except (OSError, OverflowError):
                pass
    buffer = ctypes.create_string_buffer(64)
    for name, call in {
        "ptrace": (101, 16, parent, 0, 0), "process_vm_readv": (310, parent, buffer, 1, buffer, 1, 0),
        "pidfd_open": (434, parent, 0), "tkill": (200, parent, 9), "rt_sigqueueinfo": (129, parent, 9, buffer),
        "kcmp": (312, parent, parent, 0, 0, 0), "setpriority": (141, 0, parent, 19),
    }.items():
        if libc.syscall(*call) != -1:
            done.append(name)
    return done
"""
    result = attack(isolated, program, os.getpid())
    assert result.actual == "[]", result


def test_kernel_doors_are_shut(isolated: Sandbox) -> None:
    """System calls that widen the attack surface or undo the isolation, by number (x86-64)."""
    if os.uname().machine != "x86_64":
        pytest.skip("the numbers are of x86-64; run it there")
    program = """
import ctypes, errno
def f(calls):
    libc = ctypes.CDLL(None, use_errno=True)
    answered = []
    buffer = ctypes.create_string_buffer(4096)
    for name, number in calls.items():
        ctypes.set_errno(0)
        for args in ((0, 0, 0, 0, 0), (0x10000000, 0, 0, 0, 0), (buffer, buffer, buffer, 0, 0)):
            if libc.syscall(number, *args) != -1 or ctypes.get_errno() not in (errno.EPERM, errno.ENOSYS):
                answered.append(name)
    return answered
"""
    calls = {
        "ptrace": 101, "mount": 165, "umount2": 166, "pivot_root": 155, "chroot": 161, "unshare": 272, "setns": 308,
        "bpf": 321, "keyctl": 250, "add_key": 248, "request_key": 249, "perf_event_open": 298, "userfaultfd": 323,
        "io_uring_setup": 425, "memfd_create": 319, "open_by_handle_at": 304, "init_module": 175, "kexec_load": 246,
        "reboot": 169, "swapon": 167, "sethostname": 170, "personality": 135, "setuid": 105, "capset": 126,
        "socket": 41, "connect": 42, "bind": 49, "execve": 59, "execveat": 322, "fork": 57, "vfork": 58,
        "setsid": 112, "setpgid": 109, "chmod": 90, "fchmod": 91, "chown": 92, "shmget": 29, "msgget": 68,
        "semget": 64, "mq_open": 240,
        "open_tree": 428, "move_mount": 429, "fsopen": 430, "mount_setattr": 442, "landlock_create_ruleset": 444,
        "seccomp": 317, "clone3": 435, "timer_create": 222, "inotify_init": 253, "fanotify_init": 300, "quotactl": 179,
        "x32 read": 0x40000000, "x32 getpid": 0x40000027, "modify_ldt": 154, "iopl": 172, "syslog": 103, "acct": 163,
        "process_madvise": 440, "pidfd_getfd": 438, "sched_setaffinity": 203, "settimeofday": 164, "mknod": 133,
        "pidfd_open": 434, "pidfd_send_signal": 424, "process_vm_readv": 310, "process_vm_writev": 311, "kcmp": 312,
        "io_uring_enter": 426, "memfd_secret": 447, "vmsplice": 278, "splice": 275, "sendmmsg": 307, "recvmmsg": 299,
        "sendmsg": 46, "recvmsg": 47, "landlock_add_rule": 445, "landlock_restrict_self": 446, "fsmount": 432,
        "finit_module": 313, "kexec_file_load": 320, "name_to_handle_at": 303, "link": 86, "linkat": 265,
        "fchmodat": 268, "fchownat": 260, "mknodat": 259, "utimensat": 280, "setxattr": 188, "flock": 73, "fallocate": 285,
        "setrlimit": 160, "sched_setscheduler": 144, "ioprio_set": 251, "mlockall": 151, "move_pages": 279, "arch_prctl": 158,
        "set_mempolicy": 238, "migrate_pages": 256, "remap_file_pages": 216, "wait4": 61, "tkill": 200, "rt_sigqueueinfo": 129,
    }  # fmt: skip
    result = attack(isolated, program, calls)
    assert result.actual == "[]", result


def test_a_child_begins_with_nothing_of_its_server(isolated: Sandbox) -> None:
    """No descriptor but its own streams and channel, no user or group of root, no capability, no signal held back."""
    program = """
import os, ctypes, signal
def f():
    opened = []
    for fd in range(1024):
        try: opened.append((fd, os.fstat(fd).st_mode >> 12))
        except OSError: pass
    ids = {*os.getresuid(), *os.getresgid(), *os.getgroups()}
    return opened, 0 in ids, ctypes.CDLL(None).prctl(23, 21), signal.pthread_sigmask(signal.SIG_BLOCK, []), os.getcwd()
"""
    result = attack(isolated, program)
    place = "/" if isolated.level == "L2" else result.actual.rpartition(", '")[2][:-2]
    assert place in ("/", "/tmp", "/scratch")
    character, pipe, channel = 0o2, 0o1, 0o14
    opened = [(0, character), (1, pipe), (2, character), (3, channel)]
    assert result.actual == repr((opened, False, -1, set(), place)), result


def test_a_program_that_stops_itself_is_ended(isolated: Sandbox) -> None:
    before = mine()
    program = """
import os, signal, time
def f():
    for number in (signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN):
        os.kill(os.getpid(), number)
    time.sleep(1000)
"""
    assert attack(isolated, program, limits=Limits(cpu_seconds=0.2, wall_seconds=0.5)).status == "timeout"
    assert mine() <= before


def test_a_program_that_kills_itself_has_ended(isolated: Sandbox, quick: Limits) -> None:
    """Process 1 of a namespace ignores a SIGKILL of its own, and the host must not take one for a lack of memory."""
    for kill in ("os.kill(os.getpid(), 9)", "signal.raise_signal(9)", "signal.pthread_kill(threading.get_ident(), 9)"):
        program = f"import os, signal, threading\ndef f():\n    {kill}\n    return 1"
        (result,) = isolated.judge_many([(program, [CallTest("f", (), 1)])], quick)[0].results
        assert result.status == "runtime_error" and "ended by" in result.message, (kill, result)


def test_what_a_program_says_of_its_failure_is_bounded(isolated: Sandbox, quick: Limits) -> None:
    program = """
import gc, os, json
def f(n):
    nonce = next(o for o in gc.get_objects() if type(o).__name__ == "Blocking").nonce
    line = [10 ** 4000, -1, True, "x"][n]
    body = nonce + json.dumps({"status": "runtime_error", "line": line, "message": ["\\x1b" * 9 ** 6] * 2}).encode()
    data = len(body).to_bytes(4, "big") + body
    while data: data = data[os.write(3, data):]
    while True: pass
"""
    verdict = isolated.judge_many([(program, [CallTest("f", (n,), 1) for n in range(4)])], quick)[0]
    assert [(r.status, r.line) for r in verdict.results] == [("runtime_error", None)] * 4
    assert len(verdict.feedback()) < 4500 and "\x1b" not in verdict.feedback()


def test_what_a_program_says_of_its_result_is_printable(isolated: Sandbox, quick: Limits) -> None:
    """`bdc judge` prints the message of a result as it is."""
    program = """
import gc, os, json
def f():
    nonce = next(o for o in gc.get_objects() if type(o).__name__ == "Blocking").nonce
    body = nonce + json.dumps({"status": "not_plain", "message": "\x1b[2J", "repr": "\x1b[2J"}).encode()
    os.write(3, len(body).to_bytes(4, "big") + body)
    while True: pass
"""
    (result,) = isolated.judge_many([(program, [CallTest("f", (), 1)])], quick)[0].results
    assert result.status == "wrong_answer" and "\\x1b[2J" in result.message, result
    assert "\x1b" not in result.message + result.actual


def test_the_input_of_a_program_is_its_own(isolated: Sandbox, quick: Limits) -> None:
    """What one test writes to or does with its input changes nothing for the next, and cannot grow it."""
    program = """
import os
text = os.read(0, 100)
for change in (lambda: os.write(0, b"x" * 9), lambda: os.ftruncate(0, 0), lambda: os.ftruncate(0, 1 << 40), lambda: os.lseek(0, 1, 0)):
    try: change()
    except OSError: pass
print(text.decode(), os.fstat(0).st_size)
"""
    tests = [StdinTest("same", "same 4")] * 2
    assert isolated.judge_many([(program, tests)], quick)[0].passed


def test_a_stack_without_limit_is_bounded_by_memory(isolated: Sandbox) -> None:
    program = """
import resource, sys
resource.setrlimit(resource.RLIMIT_STACK, (resource.RLIM_INFINITY,) * 2)
sys.setrecursionlimit(1 << 30)
class Deep:
    def __init__(self, inner): self.inner = inner
    def __repr__(self): return repr(self.inner)
def f():
    deep = None
    for _ in range(10**6): deep = Deep(deep)
    return repr(deep)
"""
    assert attack(isolated, program).status in ("memory", "runtime_error", "timeout")


def test_limits_cannot_be_raised(isolated: Sandbox) -> None:
    program = """
import resource
def f():
    raised = []
    for name in ("AS", "CPU", "NPROC", "NOFILE", "FSIZE", "CORE"):
        limit = getattr(resource, "RLIMIT_" + name)
        for value in ((-1, -1), (resource.getrlimit(limit)[1] + 1,) * 2):
            try:
                resource.setrlimit(limit, value)
                raised.append(name)
            except (OSError, ValueError):
                pass
    return raised
"""
    assert attack(isolated, program).actual == "[]"


@pytest.mark.parametrize(
    "program",
    [
        "def f():\n    while True: print('x' * 1000)",
        "import os\ndef f():\n    while True: os.write(1, b'x' * 65536)",
        "import sys\ndef f():\n    sys.stdout.write('x' * (1 << 24))",
    ],
)
def test_endless_output(isolated: Sandbox, program: str) -> None:
    assert attack(isolated, program).status == "output_limit"


def test_signals_ignored(isolated: Sandbox) -> None:
    program = """
import signal
def f():
    for number in range(1, 65):
        try:
            signal.signal(number, signal.SIG_IGN)
        except (OSError, ValueError):
            pass
    while True:
        try:
            while True: pass
        except BaseException:
            pass
"""
    started = time.monotonic()
    assert attack(isolated, program, limits=Limits(cpu_seconds=0.3)).status == "timeout"
    assert time.monotonic() - started < 600


FORGERIES = {
    "leave with success": "import os\ndef f(*a): os._exit(0)",
    "sys.exit(0)": "import sys\ndef f(*a): sys.exit(0)",
    "leave while loading": "import os\nos._exit(0)",
    "print the marker": 'def f(*a): print(\'passed\\n{"status": "passed"}\\nOK\')',
    "equal to everything": """
class Yes(int):
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    __hash__ = int.__hash__
def f(*a): return Yes(3)
""",
    "equal list": """
class Yes(list):
    def __eq__(self, other): return True
    def __iter__(self): return iter([41])
def f(*a): return Yes([1])
""",
    "patched builtins": """
import builtins, unittest, operator, json, sys
builtins.all = builtins.any = builtins.bool = lambda *a: True
builtins.AssertionError = Exception
operator.eq = lambda a, b: True
unittest.TestCase.assertEqual = lambda *a: None
json.dumps = lambda *a, **k: '{"status":"passed"}'
builtins.__build_class__ = None
def f(*a): return 3
""",
    "patched streams": """
import sys, io, builtins
class Out(io.StringIO):
    def flush(self): raise SystemExit(0)
sys.stdout = sys.__stdout__ = sys.stderr = Out()
builtins.print = lambda *a, **k: None
builtins.open = io.open = None
def f(*a): return 3
""",
    "write frames": """
import os, json
def f(*a):
    for status in ("passed", "loaded", "done", "returned"):
        body = json.dumps({"status": status, "value": 41}).encode()
        for fd in range(3, 10):
            try: os.write(fd, len(body).to_bytes(4, "big") + body)
            except OSError: pass
    os._exit(0)
""",
    "write frames with the nonce": """
import gc, os
def f(*a):
    for item in gc.get_objects():
        if type(item).__name__ == "Blocking":
            for status in ("passed", "beside", "done", "loaded"):
                item.send({"status": status, "id": 1})
    for frame in __import__("sys")._current_frames().values():
        while frame:
            for item in list(frame.f_locals.values()):
                if type(item).__name__ == "Blocking":
                    for status in ("passed", "beside", "done"):
                        item.send({"status": status, "id": 1})
            frame = frame.f_back
    os._exit(0)
""",
    "replaced guest": """
import sys
for name, module in list(sys.modules.items()):
    if name.startswith("bdc"):
        for key in list(vars(module)):
            if not key.startswith("__"):
                try: setattr(module, key, lambda *a, **k: {"status": "passed", "id": 1})
                except Exception: pass
def f(*a): return 3
""",
    "SystemExit subclass": "class E(SystemExit): pass\ndef f(*a): raise E(0)",
    "atexit": "import atexit, os\natexit.register(lambda: os._exit(0))\ndef f(*a): return 3",
}


@pytest.mark.parametrize("name", FORGERIES)
def test_forged_success(isolated: Sandbox, quick: Limits, name: str) -> None:
    tests = [CallTest("f", (1,), 41), AssertTest("assert f(1) == 41", "f"), StdinTest("", "41")]
    for test in tests:
        verdict = isolated.judge_many([(FORGERIES[name], [test])], quick)[0]
        assert not (verdict.passed and verdict.verified), (test, verdict)
        assert isinstance(test, AssertTest) or not verdict.passed


@pytest.mark.parametrize("error", ["StopIteration", "StopAsyncIteration", "GeneratorExit", "Mine"])
def test_an_exception_ends_no_loop_of_the_test(isolated: Sandbox, quick: Limits, error: str) -> None:
    program = f"class Mine(StopIteration): pass\ndef f(x): raise {error}"
    codes = [
        "for got, want in zip(map(candidate, [1, 2]), [2, 3]):\n    assert got == want",
        "assert all(map(lambda x: candidate(x) == x + 1, [1, 2]))",
        "assert not [1 for got, want in zip(map(candidate, [1, 2]), [2, 3]) if got != want]",
    ]
    results = isolated.judge_many([(program, [AssertTest(code, "f") for code in codes])], quick)[0].results
    assert {(result.status, result.verified) for result in results} == {("runtime_error", True)}, results


def test_an_object_equal_to_everything_never_passes_verified(isolated: Sandbox, quick: Limits) -> None:
    program = "class Yes:\n    def __eq__(self, other): return True\ndef f(): return Yes()"
    tests = [CallTest("f", (), 41), AssertTest("assert f() == 41", "f")]
    first, second = isolated.judge_many([(program, tests)], quick)[0].results
    assert (first.status, first.verified) == ("wrong_answer", True)
    assert not second.verified


def test_the_expected_values_are_nowhere_in_the_process(isolated: Sandbox, quick: Limits) -> None:
    """Not now and not from an earlier judgement: the child looks through all objects and its whole memory."""
    token = secrets.token_hex(16)
    isolated.judge_many([("def f(x): return x", [AssertTest(f"assert f(1) == '{token}'", "f")])], quick)
    program = """
import gc, ctypes, sys
def f(half, other):
    base = id(object()) & ~0xfffff
    needle = half.encode()[:8] + other.encode()[:0]
    found = []
    for item in gc.get_objects():
        try:
            if half + other in repr(item)[:100000]: found.append("object")
        except Exception: pass
    for step in range(0, 1 << 20, 4096):
        page = ctypes.string_at(base + step, 4096) if base + step < id(gc) else b""
        if (half + other).encode() in page and (half + "!" + other).encode() not in page: found.append("memory")
    return found
"""
    tests = [AssertTest(f"assert f('{token[:16]}', '{token[16:]}') == ['{token}']", "f")]
    (result,) = isolated.judge_many([(program, tests)], quick)[0].results
    assert token not in result.actual
    assert "object" not in result.actual, result


@pytest.mark.parametrize(
    "program",
    [
        "import sys\nsys.setrecursionlimit(10**9)\ndef f(): return f()",
        "import sys\nsys.setrecursionlimit(10**9)\nclass A: __repr__ = lambda s: repr(s)\ndef f(): return repr(A())",
        "def f(): return 10 ** (10 ** 8)",
        "def f(): return str(10 ** (10 ** 7))",
        "def f():\n    x = []\n    for _ in range(10**6): x = [x]\n    return x",
        "def f():\n    x = []\n    x.append(x)\n    return x",
        "def f(): return {i * (2**61 - 1) for i in range(20000)}",
        "def f(): return 'x' * (20 << 20)",
        "def f(): return [0] * (5 << 20)",
        "import os\ndef f(): os.close(3); return 1",
        "import os\ndef f(): os.closerange(0, 100); return 1",
        "import os\ndef f():\n    os.write(3, b'\\xff' * 1000)\n    return 1",
        "import os\ndef f():\n    os.write(3, (9 << 20).to_bytes(4, 'big'))\n    return 1",
        "import ctypes\ndef f(): return ctypes.string_at(0)",
        "import os, signal\ndef f(): os.kill(os.getpid(), signal.SIGSEGV); os.abort()",
        "class E(Exception):\n    def __str__(self): raise self\ndef f(): raise E()",
        "class M(type): __name__ = property(lambda c: c.x)\nclass E(Exception, metaclass=M): pass\ndef f(): raise E()",
        "def f(): raise Exception('x' * (9 << 20))",
        "import sys\nsys.stdout.close()\ndef f(): return 1",
        "import sys\nsys.stdout = None\ndef f(): return 1",
        "import sys\nsys.modules.clear()\ndef f(): return 1",
    ],
)
def test_the_judge_survives(isolated: Sandbox, program: str) -> None:
    limits = Limits(cpu_seconds=0.5, wall_seconds=3.0, memory_mb=256)
    started = time.monotonic()
    result = attack(isolated, program, limits=limits)
    assert not result.passed
    assert result.message
    assert time.monotonic() - started < 600
    assert attack(isolated, "def f(): return 'unguessable'").passed


def test_self_check_holds(isolated: Sandbox) -> None:
    report = self_check(isolated.level)
    assert report.held, str(report)
    assert len(report.attempts) >= 8


HOSTILE_VALUES = {
    "signalling NaN": "from decimal import Decimal\ndef f(): return Decimal('sNaN')",
    "signalling NaN inside": "from decimal import Decimal\ndef f(): return [1, {2: Decimal('sNaN')}]",
    "huge exponent": "from decimal import Decimal\ndef f(): return Decimal('1E+999999999999')",
    "huge fraction": "from fractions import Fraction\ndef f(): return Fraction(10**400000, 3)",
    "huge range": "def f(): return range(10**30)",
    "huge int": "def f(): return 1 << 8000000",
    "group": "def f(): raise ExceptionGroup('x', [ValueError(1)])",
    "no exception of Python": "class E(Exception): pass\nE.__name__ = 'KeyboardInterrupt'\ndef f(): raise E()",
    "deep": "def f():\n    x = 1\n    for _ in range(150): x = [x]\n    return x",
}


@pytest.mark.parametrize("name", HOSTILE_VALUES)
def test_values_that_break_comparisons(isolated: Sandbox, quick: Limits, name: str) -> None:
    """The judge compares in its own process: neither an exception nor a hang may come of it."""
    tests = [CallTest("f", (), 1.5), CallTest("f", (), [1, {2: 3}]), AssertTest("x = 1.5\nassert f() == x", "f")]
    started = time.monotonic()
    results = isolated.judge_many([(HOSTILE_VALUES[name], tests)], quick)[0].results
    assert not any(result.passed for result in results), results
    assert time.monotonic() - started < 60


def test_frames_made_to_cost_the_judge_time(isolated: Sandbox, quick: Limits) -> None:
    """A program writes its answer by hand: half of the elements of a set have one hash, which Python inserts slowly."""
    program = """
import os, gc, json
def f():
    nonce = next(o for o in gc.get_objects() if type(o).__name__ == "Blocking").nonce
    m = 2 ** 61 - 1
    body = nonce + json.dumps({"status": "returned", "value": {"s": [*range(60000), *(i * m for i in range(60000))]}}).encode()
    data = len(body).to_bytes(4, "big") + body
    while data:
        data = data[os.write(3, data):]
    while True: pass
"""
    started = time.process_time()
    (result,) = isolated.judge_many([(program, [CallTest("f", (), {1})])], quick)[0].results
    assert result.status in ("wrong_answer", "timeout"), result
    assert time.process_time() - started < 2


def test_the_channel_of_a_program_that_the_referee_calls_cannot_fill_the_judge_s_memory(
    isolated: Sandbox, quick: Limits
) -> None:
    program = """
import os
def f():
    while True: os.write(3, bytes(1 << 16))
"""
    tracemalloc.start()
    try:
        (result,) = isolated.judge_many([(program, [AssertTest("x = 1\nassert f() == x", "f")])], quick)[0].results
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert result.status == "runtime_error" and "judge's channel" in result.message, result
    assert peak < 16 << 20


def test_the_channel_holds_no_expected_value(isolated: Sandbox, quick: Limits) -> None:
    token = secrets.token_hex(16)
    program = """
import os, gc
def f(n):
    if n: return n
    os.set_blocking(3, False)
    got = [repr([vars(o) for o in gc.get_objects() if type(o).__name__ == "Blocking"])]
    for fd in range(20):
        try: got.append(os.read(fd, 1 << 20))
        except OSError: pass
    return repr(got)
"""
    test = AssertTest(f"assert f(0) == '{token}'\nassert f(7) == '{token}'", "f")
    (result,) = isolated.judge_many([(program, [test])], quick)[0].results
    assert result.status == "wrong_answer" and token not in result.actual


def test_descriptors_and_credentials_cannot_be_sent(isolated: Sandbox) -> None:
    program = """
import socket, os, array
def f():
    sent = []
    channel = socket.socket(fileno=os.dup(3))
    for name, send in {
        "descriptor": lambda: channel.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0, 1]))]),
        "credentials": lambda: channel.sendmsg([b"x"], [(socket.SOL_SOCKET, 2, bytes(12))]),
        "receive": lambda: channel.recvmsg(1, 100, socket.MSG_DONTWAIT),
        "pass credentials": lambda: channel.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1),
        "name": lambda: channel.bind("name"),
        "urgent data": lambda: channel.send(b"x", socket.MSG_OOB),
        "urgent data in a pair": lambda: socket.socketpair()[0].send(b"x", socket.MSG_OOB),
    }.items():
        try:
            send()
            sent.append(name)
        except OSError:
            pass
    return sent
"""
    assert attack(isolated, program).actual == "[]"


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the machine code is for x86-64; run it there")
def test_other_system_call_tables(isolated: Sandbox) -> None:
    """The 32-bit table by int 0x80 and the x32 table number calls otherwise: a filter by number must refuse both."""
    call = """
import ctypes, mmap
def f():
    page = mmap.mmap(-1, 4096, prot=7)
    page.write(bytes.fromhex("{code}"))
    return ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))()
"""
    getpid_32 = "b814000000" + "cd80" + "c3"  # mov eax, 20; int 0x80; ret
    getpid_64 = "b827000000" + "0f05" + "c3"  # mov eax, 39; syscall; ret
    getpid_x32 = "b827000040" + "0f05" + "c3"  # mov eax, 0x40000027; syscall; ret
    assert attack(isolated, call.format(code=getpid_64)).actual.isdigit()  # code can run: the next two would, too
    result = attack(isolated, call.format(code=getpid_32))
    assert result.actual == "" and "SIGSYS" in result.message
    assert attack(isolated, call.format(code=getpid_x32)).actual.startswith("-")


def test_the_machine_cannot_be_slowed_or_changed(isolated: Sandbox) -> None:
    program = """
import os, time, resource, ctypes
def f():
    libc = ctypes.CDLL(None, use_errno=True)
    done = []
    for name, change in {
        "nice": lambda: os.nice(5), "priority": lambda: os.setpriority(os.PRIO_PROCESS, 0, 5),
        "real time": lambda: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1)),
        "affinity": lambda: os.sched_setaffinity(0, {0}), "clock": lambda: time.clock_settime(time.CLOCK_REALTIME, 0),
        "hostname": lambda: __import__("socket").sethostname("x"), "root": lambda: os.chroot("/"),
        "uid": lambda: os.setuid(0), "gid": lambda: os.setgid(0), "groups": lambda: os.setgroups([0]),
        "device": lambda: os.mknod("device", 0o20666, os.makedev(1, 1)), "mode": lambda: os.chmod(".", 0o777),
        "session": os.setsid, "group": lambda: os.setpgid(0, 0), "lock": lambda: libc.mlockall(3) == 0 or os.chroot("/"),
        "terminal": lambda: __import__("fcntl").ioctl(0, 0x5412, b"x"),
        "signal owner": lambda: __import__("fcntl").fcntl(3, 8, 1), "dumpable": lambda: libc.prctl(4, 1) == 0 or os.chroot("/"),
        "shared memory": lambda: libc.shmget(1, 4096, 0o1666) != -1 or os.chroot("/"),
        "queue": lambda: libc.msgget(1, 0o1666) != -1 or os.chroot("/"),
    }.items():
        try:
            change()
            done.append(name)
        except (OSError, AttributeError):
            pass
    return done
"""
    assert attack(isolated, program).actual == "[]"


def test_one_program_leaves_nothing_for_the_next(isolated: Sandbox) -> None:
    token = secrets.token_hex(8)
    leave = f"""
import os, sys, builtins, random, time, threading, signal, locale, gc, fcntl
def f():
    for fd in (0, 2): fcntl.fcntl(fd, fcntl.F_SETFL, os.O_NONBLOCK | os.O_APPEND)
    builtins.left = os.environ["LEFT"] = sys.argv[0] = "{token}"
    random.seed(5); random.random = lambda: "{token}"
    os.umask(0o777); sys.setrecursionlimit(77); gc.disable(); sys.path.append("{token}")
    signal.signal(signal.SIGALRM, signal.SIG_IGN)
    for name in ("{token}", "/tmp/{token}", "/scratch/{token}", "/dev/shm/{token}", "/var/tmp/{token}"):
        try:
            os.mkdir(name, 0)
            os.mkdir(name + "2")
            open(name + "2/file", "w").close()
        except OSError: pass
    threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()
    return 1
"""
    look = """
import os, sys, builtins, random, threading, signal, gc, fcntl
def f():
    files = [name for place in (".", "/tmp", "/scratch", "/dev/shm") if os.path.isdir(place) for name in readable(place)]
    return [hasattr(builtins, "left"), dict(os.environ), sys.argv, random.random(), sys.getrecursionlimit(),
        os.umask(0), gc.isenabled(), threading.active_count(), signal.getsignal(signal.SIGALRM) == signal.SIG_DFL,
        [fcntl.fcntl(fd, fcntl.F_GETFL) for fd in (0, 2)], files]
def readable(place):
    try: return os.listdir(place)
    except OSError: return []
"""
    before = attack(isolated, look).actual
    attack(isolated, leave)
    assert attack(isolated, look).actual == before
    assert token not in before and "[]]" in before
