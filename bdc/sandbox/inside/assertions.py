"""Run one assert-style test: the code of a problem file against a candidate function.

Used twice: by the referee, whose candidate is a proxy, and beside the program where values cannot travel.
"""

from __future__ import annotations

import ast
import builtins
import importlib
import reprlib
import sys
import traceback
import types
from collections.abc import Callable
from typing import Any

TEST_FILE = "<test>"
_STDLIB = set(sys.stdlib_module_names) if hasattr(sys, "stdlib_module_names") else set(sys.builtin_module_names)
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 2000
_SHORT.maxlist = _SHORT.maxtuple = _SHORT.maxdict = _SHORT.maxset = 200


class Test:
    """A parsed test: its tree, the names it expects from the program, and how to run it."""

    def __init__(self, code: str, entry_point: str) -> None:
        """Parse ``code``; call a ``check`` that it defines and never calls. Raises SyntaxError."""
        self.code, self.entry_point = code, entry_point
        tree = ast.parse(code, TEST_FILE)
        if _defines_check(tree) and not _calls_check(tree):
            tree.body += ast.parse("check(candidate)", TEST_FILE).body
        self.tree = tree
        self._compiled = compile(tree, TEST_FILE, "exec", dont_inherit=True)

    def foreign_names(self) -> list[str]:
        """Return the names that are read and that neither the test, nor builtins, nor the candidate gives."""
        bound = set(dir(builtins)) | {"candidate", self.entry_point, "__name__", "__file__"}
        read = []
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Name):
                if isinstance(node.ctx, ast.Load):
                    read.append(node.id)
                else:
                    bound.add(node.id)
            elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                bound.add(node.name)
            elif isinstance(node, ast.arg):
                bound.add(node.arg)
            elif isinstance(node, ast.alias):
                bound.add((node.asname or node.name).split(".")[0])
            elif isinstance(node, ast.ExceptHandler) and node.name:
                bound.add(node.name)
        return [name for name in dict.fromkeys(read) if name not in bound]

    def run(self, candidate: Callable[..., Any], names: dict[str, Any]) -> None:
        """Execute the test as a fresh module `__main__` with ``names``; its exceptions pass through."""
        module = sys.modules["__main__"] = types.ModuleType("__main__")
        space = vars(module)
        space.update(names, candidate=candidate)
        space.setdefault(self.entry_point, candidate)
        exec(self._compiled, space)

    def failed_statement(self, error: BaseException) -> tuple[int | None, str]:
        """Return the line and the source of the statement of this test that raised ``error``."""
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == TEST_FILE]
        if not lines or lines[-1] is None:
            return None, ""
        inner = [
            node
            for node in ast.walk(self.tree)
            if isinstance(node, ast.stmt) and node.lineno <= lines[-1] <= (node.end_lineno or 0)
        ]
        if not inner:
            return lines[-1], ""
        smallest = min(inner, key=lambda node: (node.end_lineno or 0) - node.lineno)
        return lines[-1], ast.get_source_segment(self.code, smallest) or ""


def _defines_check(tree: ast.Module) -> bool:
    return any(isinstance(node, ast.FunctionDef) and node.name == "check" for node in tree.body)


def _calls_check(tree: ast.Module) -> bool:
    top = [node for node in tree.body if not isinstance(node, (ast.FunctionDef, ast.ClassDef))]
    calls = (node for statement in top for node in ast.walk(statement) if isinstance(node, ast.Call))
    return any(isinstance(call.func, ast.Name) and call.func.id == "check" for call in calls)


def standard_modules(names: list[str]) -> tuple[dict[str, Any], list[str]]:
    """Split ``names`` into imported modules of the standard library and the rest."""
    modules = {name: importlib.import_module(name) for name in names if name in _STDLIB}
    return modules, [name for name in names if name not in modules]


def expected_text(statement: str) -> str:
    """Return the right side of an ``assert a == b`` statement, or an empty string."""
    try:
        node = ast.parse(statement.strip()).body[0]
    except (SyntaxError, IndexError, ValueError):
        return ""
    if isinstance(node, ast.Assert) and isinstance(node.test, ast.Compare) and isinstance(node.test.ops[0], ast.Eq):
        return ast.unparse(node.test.comparators[0])
    return ""


def short(value: Any) -> str:
    """Return a bounded repr that never raises."""
    try:
        return _SHORT.repr(value)[:4000]
    except Exception as error:
        return f"<{type(value).__name__} whose repr raises {type(error).__name__}>"
