"""Seccomp filters by hand: an allow-list of system calls, some by argument, everything else refused.

A refused call fails with EPERM, so that a program sees a Python exception; calls that libraries fall back from
(clone3, openat2) fail with ENOSYS. A filter is a balanced tree over call numbers: the kernel runs it once per
number when it is installed. So the long one is installed once, in the fork server, and each child adds a short one.
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import struct

from bdc.sandbox.inside import kernel

_LOAD, _JUMP_EQ, _JUMP_GE, _JUMP_SET, _AND, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x54, 0x06
_ALLOW, _KILL = 0x7FFF0000, 0x80000000
_EPERM, _ENOSYS = 0x00050000 | errno.EPERM, 0x00050000 | errno.ENOSYS
_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_CLONE_THREAD, _MSG_OOB = 0x00010000, 1
OWN_PID = 0x0BADCAFE  # a child puts its own process id in its place

# name: (x86_64, aarch64); -1 where the architecture has no such call.
_PLAIN = {
    "read": (0, 63), "write": (1, 64), "open": (2, -1), "close": (3, 57), "stat": (4, -1), "fstat": (5, 80),
    "lstat": (6, -1), "poll": (7, -1), "lseek": (8, 62), "mmap": (9, 222), "mprotect": (10, 226), "munmap": (11, 215),
    "brk": (12, 214), "rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139),
    "pread64": (17, 67), "pwrite64": (18, 68), "readv": (19, 65), "writev": (20, 66), "access": (21, -1),
    "pipe": (22, -1), "select": (23, -1), "sched_yield": (24, 124), "mremap": (25, 216), "mincore": (27, 232),
    "madvise": (28, 233), "dup": (32, 23), "dup2": (33, -1), "pause": (34, -1), "nanosleep": (35, 101),
    "getitimer": (36, 102), "alarm": (37, -1), "setitimer": (38, 103), "getpid": (39, 172), "recvfrom": (45, 207),
    "shutdown": (48, 210), "getsockname": (51, 204), "getpeername": (52, 205), "getsockopt": (55, 209),
    "exit": (60, 93), "uname": (63, 160), "fsync": (74, 82), "fdatasync": (75, 83), "truncate": (76, 45),
    "ftruncate": (77, 46), "getdents": (78, -1), "getcwd": (79, 17), "chdir": (80, 49), "fchdir": (81, 50),
    "rename": (82, -1), "mkdir": (83, -1), "rmdir": (84, -1), "creat": (85, -1), "unlink": (87, -1),
    "symlink": (88, -1), "readlink": (89, -1), "umask": (95, 166), "gettimeofday": (96, 169), "getrlimit": (97, 163),
    "getrusage": (98, 165), "sysinfo": (99, 179), "times": (100, 153), "getuid": (102, 174), "getgid": (104, 176),
    "geteuid": (107, 175), "getegid": (108, 177), "getppid": (110, 173), "getpgrp": (111, -1), "getgroups": (115, 158),
    "getresuid": (118, 148), "getresgid": (120, 150), "getpgid": (121, 155), "getsid": (124, 156),
    "rt_sigpending": (127, 136), "rt_sigtimedwait": (128, 137), "rt_sigsuspend": (130, 133), "sigaltstack": (131, 132),
    "statfs": (137, 43), "fstatfs": (138, 44), "getpriority": (140, 141), "gettid": (186, 178), "time": (201, -1),
    "futex": (202, 98), "sched_getaffinity": (204, 123), "epoll_create": (213, -1), "getdents64": (217, 61),
    "set_tid_address": (218, 96), "restart_syscall": (219, 128), "fadvise64": (221, 223), "clock_gettime": (228, 113),
    "clock_getres": (229, 114), "clock_nanosleep": (230, 115), "exit_group": (231, 94), "epoll_wait": (232, -1),
    "epoll_ctl": (233, 21), "openat": (257, 56), "mkdirat": (258, 34), "newfstatat": (262, 79), "unlinkat": (263, 35),
    "renameat": (264, 38), "symlinkat": (266, 36), "readlinkat": (267, 78), "faccessat": (269, 48),
    "pselect6": (270, 72), "ppoll": (271, 73), "set_robust_list": (273, 99), "get_robust_list": (274, 100),
    "epoll_pwait": (281, 22), "eventfd2": (290, 19), "epoll_create1": (291, 20), "dup3": (292, 24), "pipe2": (293, 59),
    "preadv": (295, 69), "pwritev": (296, 70), "getcpu": (309, 168), "renameat2": (316, 276), "getrandom": (318, 278),
    "statx": (332, 291), "rseq": (334, 293), "close_range": (436, 436), "futex_waitv": (449, 449),
}  # fmt: skip
# What a fork server needs besides, and its children do not get.
_SERVER = {
    "sendmsg": (46, 211), "recvmsg": (47, 212), "wait4": (61, 260), "capset": (126, 91), "setrlimit": (160, 164),
    "mount": (165, 40), "umount2": (166, 39), "landlock_create_ruleset": (444, 444), "landlock_add_rule": (445, 445),
    "landlock_restrict_self": (446, 446),
}  # fmt: skip
_MISSING = {"clone3": (435, 435), "openat2": (437, 437), "faccessat2": (439, 439)}

_Code = list[tuple[int, int, int, int]]


def _argument(index: int, high: bool = False) -> tuple[int, int, int, int]:
    return (_LOAD, 0, 0, 16 + 8 * index + 4 * high)


def _returns(value: int) -> _Code:
    return [(_RETURN, 0, 0, value)]


def _one_of(index: int, values: tuple[int, ...]) -> _Code:
    """Allow when the low half of an argument is one of the values."""
    code: _Code = [_argument(index)]
    for position, value in enumerate(values):
        code.append((_JUMP_EQ, len(values) - position, 0, value))
    return [*code, *_returns(_EPERM), *_returns(_ALLOW)]


def _to_oneself(pid: int, number: int) -> _Code:
    """Allow a signal to the process itself; argument ``number`` is the signal.

    SIGKILL ends it here: process 1 would ignore it, and elsewhere the host would take it for a lack of memory.
    """
    code = [_argument(0), (_JUMP_EQ, 1, 0, pid), *_returns(_EPERM)]
    return [*code, _argument(number), (_JUMP_EQ, 0, 1, signal.SIGKILL), *_returns(_KILL), *_returns(_ALLOW)]


def _by_argument() -> dict[tuple[int, int], _Code]:
    """Calls that are allowed with some arguments, to the server as well."""
    no_address = [_argument(4), (_JUMP_EQ, 0, 3, 0), _argument(4, True), (_JUMP_EQ, 0, 1, 0), *_returns(_ALLOW)]
    not_urgent = [_argument(3), (_JUMP_SET, len(no_address), 0, _MSG_OOB)]
    stream_pair: _Code = [_argument(0), (_JUMP_EQ, 0, 4, 1), _argument(1), (_AND, 0, 0, 15), (_JUMP_EQ, 0, 1, 1)]
    terminal = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)  # queries, FIONREAD, FIONBIO, close-on-exec
    return {
        (16, 29): _one_of(1, terminal),
        (72, 25): _one_of(1, (0, 1, 2, 3, 4, 5, 6, 7, 1030, 1032)),  # no owner, lease, notification or pipe size
        (302, 261): _one_of(0, (0,)),  # prlimit64 of oneself
        # asyncio needs a pair; a datagram one could address others
        (53, 199): [*stream_pair, *_returns(_ALLOW), *_returns(_EPERM)],
        (44, 206): [*not_urgent, *no_address, *_returns(_EPERM)],  # urgent data has cost the kernel several holes
    }


def _of_child(pid: int) -> dict[tuple[int, int], _Code]:
    """Calls that a child alone is refused with other arguments."""
    thread_only = [_argument(0), (_JUMP_SET, 0, 1, _CLONE_THREAD), *_returns(_ALLOW), *_returns(_EPERM)]
    return {
        (56, 220): thread_only,
        (62, 129): _to_oneself(pid, 1),
        (234, 131): _to_oneself(pid, 2),
        (157, 167): _one_of(0, (15, 16, 0x53564D41)),  # prctl: thread names and mapping names
    }


def _tree(ranges: list[tuple[int, _Code]]) -> _Code:
    """Return code for sorted ranges ``(first number, code)``; each reaches to the next one's first number."""
    if len(ranges) == 1:
        return ranges[0][1]
    middle = len(ranges) // 2
    left, right = _tree(ranges[:middle]), _tree(ranges[middle:])
    if len(left) > 255:
        raise ValueError("the seccomp filter has a jump over 255 instructions")
    return [(_JUMP_GE, len(left), 0, ranges[middle][0]), *left, *right]


class Filter:
    """A filter, made once and installed as often as needed.

    Args:
        actions: code by call number.
        default: code for every other number.
    """

    def __init__(self, actions: dict[int, _Code], default: _Code) -> None:
        actions.pop(-1, None)
        ranges: list[tuple[int, _Code]] = []
        for number in range(max(actions) + 2):
            code = actions.get(number, default)
            if not ranges or ranges[-1][1] != code:
                ranges.append((number, code))
        code = [
            (_LOAD, 0, 0, 4),
            (_JUMP_EQ, 1, 0, _ARCH[kernel.MACHINE]),
            *_returns(_KILL),
            (_LOAD, 0, 0, 0),
            *_tree(ranges),
        ]
        self._length = len(code)
        self._code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *instruction) for instruction in code))

    def code(self) -> tuple[int, int]:
        """Return the address of the instructions and their number."""
        return ctypes.addressof(self._code), self._length

    def install(self) -> None:
        """Filter the calling process and its children for good (no_new_privs must be set)."""
        address, length = self.code()
        kernel.prctl(kernel.PR_SET_SECCOMP, 2, ctypes.create_string_buffer(struct.pack("@HP", length, address)))


def _no_truncation() -> dict[tuple[int, int], _Code]:
    """Refuse to truncate by path, also by opening for anything but writing.

    Landlock knows of truncation only from ABI 3 (Linux 6.2) on, and takes the access modes 0 and 3 for no write.
    """
    mask, truncate = os.O_ACCMODE | os.O_TRUNC, os.O_TRUNC

    def opening(flags: int) -> _Code:
        forbidden = [(_JUMP_EQ, 2, 0, truncate), (_JUMP_EQ, 1, 0, truncate | os.O_ACCMODE)]
        return [_argument(flags), (_AND, 0, 0, mask), *forbidden, *_returns(_ALLOW), *_returns(_EPERM)]

    return {_PLAIN["open"]: opening(1), _PLAIN["openat"]: opening(2), _PLAIN["truncate"]: _returns(_EPERM)}


def server_filter(writable: bool) -> Filter:
    """Return the allow-list of a fork server, which its children inherit; the kernel prepares it once.

    Args:
        writable: whether there is a folder to write to; else no file may be truncated either.
    """
    column = list(_ARCH).index(kernel.MACHINE)
    actions = {numbers[column]: _returns(_ALLOW) for numbers in (*_PLAIN.values(), *_SERVER.values())}
    actions |= {numbers[column]: _returns(_ENOSYS) for numbers in _MISSING.values()}
    actions |= {numbers[column]: _returns(_ALLOW) for numbers in _of_child(OWN_PID)}
    actions |= {numbers[column]: code for numbers, code in _by_argument().items()}
    actions |= {numbers[column]: code for numbers, code in ({} if writable else _no_truncation()).items()}
    return Filter(actions, _returns(_EPERM))


def child_filter() -> Filter:
    """Return what a child adds to `server_filter`: no call of the server alone, no process, a signal to itself alone.

    It is short, since the kernel compiles it in every child.
    """
    column = list(_ARCH).index(kernel.MACHINE)
    actions = {numbers[column]: _returns(_EPERM) for numbers in _SERVER.values()}
    actions |= {numbers[column]: code for numbers, code in _of_child(OWN_PID).items()}
    return Filter(actions, _returns(_ALLOW))


def supported() -> bool:
    """Say whether this machine's architecture has a filter here."""
    return kernel.MACHINE in _ARCH
