"""Reader of MBPP (Austin et al., arXiv 2108.07732), full or sanitized."""

from __future__ import annotations

import ast
import builtins
import re

from bdc.errors import InputError
from bdc.problems.problem import Problem
from bdc.problems.records import Record, identity, items, text
from bdc.testcase import AssertTest


def parse(record: Record) -> Problem:
    """Read one line: the first assertion is public and shown in the statement, the others are private.

    A problem with a single assertion has no public test, and its statement only names the function.
    """
    statement = text(record, "text" if "text" in record else "prompt").strip()
    listed = [*items(record, "test_list", str), *items(record, "challenge_test_list", str, required=False)]
    asserts = list(dict.fromkeys(listed))
    setup = "\n".join([text(record, "test_setup_code", ""), *items(record, "test_imports", str, required=False)])
    # The published file has CRLF line ends inside the programs.
    setup = setup.replace("\r\n", "\n").strip()
    solution = text(record, "code", "").replace("\r\n", "\n")
    name = _entry_point(asserts[0], solution)
    tests = tuple(AssertTest(f"{setup}\n{line}" if setup else line, name) for line in asserts)
    public = min(1, len(tests) - 1)
    hint = f"Your code should pass this test:\n{asserts[0]}" if public else f"The function is called {name}."
    return Problem(
        id=f"mbpp/{identity(record, 'task_id')}",
        source="mbpp",
        statement=f"{statement}\n{hint}",
        entry_point=name,
        public_tests=tests[:public],
        private_tests=tests[public:],
        solution=solution or None,
    )


def _entry_point(line: str, solution: str) -> str:
    """Return the function that the assertion calls: one the solution defines, else the first that is no builtin."""
    try:
        tree = ast.parse(line)
    except SyntaxError as error:
        raise InputError(f"field 'test_list[0]' is not Python: {error}") from error
    defined = set(re.findall(r"^def\s+(\w+)", solution, re.MULTILINE))
    called = [n.func.id for n in ast.walk(tree) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)]
    for name in called:
        if name in defined or (not defined and not hasattr(builtins, name)):
            return name
    raise InputError(f"field 'test_list[0]' calls no function of the solution: {line!r:.100}")
