"""A whole program meets the interpreter that it knows: the same output and exit as `python program.py`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from bdc.sandbox import Limits, Sandbox
from bdc.testcase import StdinTest

INPUT = "3 4\nzwei\r\n\nlast"
# A writer as competitive programmers paste it: it looks at `mode` and is never flushed by hand.
WRITER = """
import os, sys
from io import BytesIO, IOBase
class Writer(IOBase):
    def __init__(self, file):
        self.fd, self.buffer = file.fileno(), BytesIO()
        self.writable = "x" in file.mode or "r" not in file.mode
    def write(self, text): self.buffer.write(text.encode())
    def flush(self):
        os.write(self.fd, self.buffer.getvalue())
        self.buffer.truncate(0), self.buffer.seek(0)
"""
PROGRAMS = {
    "exit": "print(1)\nexit()\nprint(2)",
    "quit with 0": "print(1)\nquit(0)",
    "exit with 3": "print(1)\nexit(3)",
    "exit with a word": "exit('no')",
    "sys.exit": "import sys\nprint(1)\nsys.exit()",
    "raise SystemExit(0) in a function": "def f(): raise SystemExit(0)\nf()",
    "exit with what prints as 0": "class A:\n    def __repr__(s): return '0'\nprint(5)\nraise SystemExit(A())",
    "exit with an IntEnum": "import enum, sys\nclass E(enum.IntEnum):\n    OK = 0\nprint(5)\nsys.exit(E.OK)",
    "exit with 0.0": "import sys\nprint(5)\nsys.exit(0.0)",
    "os._exit": "import os\nos.write(1, b'x')\nprint('lost')\nos._exit(0)",
    "uncaught": "print(1)\n1 / 0",
    "a writer in the place of stdout": WRITER + "sys.stdout = Writer(sys.stdout)\nprint('x' * 10000)",
    "a writer of its own": WRITER + "out = Writer(sys.stdout)\nprint(1)\nout.write('later')",
    "buffer and text": "import sys\nprint('a')\nsys.stdout.buffer.write(b'b')\nprint('c')",
    "flushed in between": "import sys\nprint('a', flush=True)\nsys.stdout.buffer.write(b'b')",
    "closed": "import sys\nprint(1)\nsys.stdout.close()",
    "none": "import sys\nprint(1, flush=True)\nsys.stdout = None\nprint(2)",
    "redirected": "import sys, io\nsys.stdout = io.StringIO()\nprint(2)",
    "reconfigured": "import sys\nsys.stdout.reconfigure(line_buffering=True)\nprint('ä', end='')",
    "reopened": "out = open(1, 'w')\nout.write('x')",
    "stdout wrapped": "import sys, io\nsys.stdout = io.TextIOWrapper(sys.stdout.buffer, encoding='utf-8')\nprint('ä')",
    "stdout detached": "import sys, io\nsys.stdout = io.TextIOWrapper(sys.stdout.detach(), 'utf-8')\nprint('ä')",
    "stdout by number": "import os\nout = os.fdopen(1, 'w', closefd=False)\nout.write('x')",
    "stdin wrapped": "import sys, io\nsys.stdin = io.TextIOWrapper(sys.stdin.detach(), 'utf-8')\nprint(*sys.stdin)",
    "seeking": (
        "import sys, io\nprint([(s.seekable(), s.buffer.seekable()) for s in (sys.stdin, sys.stdout)])\n"
        "text = sys.stdin.read()\nprint(sys.stdin.seek(0), sys.stdin.read() == text)\n"
        "try: sys.stdout.tell()\nexcept io.UnsupportedOperation: print('cannot')\nexcept OSError as e: print(e)"
    ),
    "stderr": "import sys\nprint('x', file=sys.stderr)\nprint(1)",
    "__del__": "class A:\n    def __del__(self): print('gone', flush=True)\na = A()\na.me = a\nb = [A()]",
    "atexit": "import atexit\natexit.register(print, 'last')\nprint('first')",
    "atexit raises": "import atexit\natexit.register(lambda: 1 / 0)\nprint('first')",
    "threads": "import threading\nthreading.Timer(0.05, print, ('later',)).start()\nprint('first')",
    "main": "if __name__ == '__main__':\n    print(__name__, __doc__, '__file__' in globals())",
    "main module": "import __main__\nx = 5\nprint(__main__.x)",
    "pickle": "import pickle\nclass A: pass\nprint(type(pickle.loads(pickle.dumps(A()))).__name__)",
    "dataclass": "from dataclasses import dataclass\n@dataclass\nclass P:\n    x: 'int' = 1\nprint(P())",
    "input": "a, b = map(int, input().split())\nprint(a + b, input('prompt'), input() == '', input())",
    "input at the end": "while True: input()",
    "readlines": "import sys\nprint(sys.stdin.readline(), sys.stdin.readlines(), sys.stdin.read())",
    "buffer": "import sys\nprint(sys.stdin.buffer.read())",
    "os.read by size": "import os\nprint(os.read(0, os.fstat(0).st_size))",
    "open(0)": "print(open(0).read())",
    "names": "import builtins, sys\nprint(sorted(dir(builtins)), sys.stdin.name, sys.stdout.mode, sys.stdin.mode)",
    "streams": "import sys\nprint([(s.encoding, s.errors, s.isatty(), s.fileno()) for s in (sys.stdin, sys.stdout)])",
    "recursion": "import sys\nsys.setrecursionlimit(10**6)\ndef f(n): return n and 1 + f(n - 1)\nprint(f(50000))",
    "stack limit": (
        "import resource, sys\nresource.setrlimit(resource.RLIMIT_STACK, (resource.RLIM_INFINITY,) * 2)\n"
        "sys.setrecursionlimit(10**6)\ndef f(n): return n and 1 + f(n - 1)\nprint(f(50000))"
    ),
    "deep in a thread": (
        "import sys, threading\nsys.setrecursionlimit(10**6)\nthreading.stack_size(1 << 27)\n"
        "def f(n): return n and 1 + f(n - 1)\nt = threading.Thread(target=lambda: print(f(50000)))\nt.start(); t.join()"
    ),
    "digits": "print(len(str(10 ** 4000)))\nprint(10 ** 5000)",
    "asyncio": "import asyncio\nasync def f(): return await asyncio.sleep(0, 7)\nprint(asyncio.run(f()))",
    "warning": "import warnings\nwarnings.warn('x')\nprint(1)",
    "alarm": "import signal\nsignal.alarm(100)\nprint(signal.getsignal(signal.SIGALRM))",
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_like_a_plain_interpreter(isolated: Sandbox, tmp_path: Path, name: str) -> None:
    program, stdin = tmp_path / "program.py", tmp_path / "stdin"
    program.write_text(PROGRAMS[name])
    stdin.write_text(INPUT, newline="")
    with stdin.open() as file:
        plain = subprocess.run(
            [sys.executable, program],
            stdin=file,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={},
            check=False,
        )
    tests = [StdinTest(INPUT, plain.stdout.decode() + "x"), StdinTest(INPUT, plain.stdout.decode())]
    limits = Limits(cpu_seconds=2.0, wall_seconds=10.0, output_kb=64)
    wrong, result = isolated.judge_many([(PROGRAMS[name], tests)], limits)[0].results
    assert not wrong.passed
    assert result.status == ("passed" if plain.returncode == 0 else "runtime_error"), result
    if plain.returncode == 0:
        assert result.passed
    else:
        assert result.actual.split() == plain.stdout.decode().split()
