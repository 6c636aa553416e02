"""Assertions that need no execution: ``assert f(literals) == literal`` read as calls and expected values.

Most tests of HumanEval and MBPP are of this form. The judge asks for the calls itself and compares, which saves the
referee's process and gives the first difference; everything else goes to the referee.
"""

from __future__ import annotations

import ast
import functools
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from bdc.sandbox.compare import equal
from bdc.sandbox.inside import values

_MAX_CODE = 200_000


@dataclass(frozen=True, slots=True)
class Step:
    """One assertion: the packed arguments of its call, what must hold of the result, and where it stands."""

    args: Any
    kwargs: Any
    relation: str  # "==", "is", "true" or "false"
    expected: Any
    statement: str
    call: str

    @property
    def by_truth(self) -> bool:
        """Whether only the truth of the result matters."""
        return self.relation in ("true", "false")

    def holds(self, actual: Any) -> bool:
        """Whether the assertion holds for what the call returned."""
        match self.relation:
            case "==":
                return equal(self.expected, actual)
            case "is":
                return type(actual) is type(self.expected) and bool(actual == self.expected)
        return bool(actual) is (self.relation == "true")


class _NotSimpleError(Exception):
    pass


@functools.lru_cache(maxsize=4096)
def plan(code: str, entry_point: str) -> tuple[Step, ...] | None:
    """Return the assertions of a test in order, or None where it is more than literals and comparisons."""
    if len(code) > _MAX_CODE:
        return None
    try:
        steps = tuple(_module(ast.parse(code), entry_point))
    except (_NotSimpleError, SyntaxError, ValueError, TypeError, RecursionError, MemoryError, values.NotPlainError):
        return None
    return steps or None


def _module(tree: ast.Module, entry_point: str) -> Iterator[Step]:
    check: ast.FunctionDef | None = None
    called = False
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name == "check" and check is None:
            check = node
        elif check is not None and not called and ast.unparse(node) in ("check(candidate)", f"check({entry_point})"):
            called = True
            yield from _check(check, entry_point)
        else:
            yield from _statement(node, {"candidate", entry_point})
    if check is not None and not called:
        yield from _check(check, entry_point)


def _check(node: ast.FunctionDef, entry_point: str) -> Iterator[Step]:
    arguments = node.args
    if node.decorator_list or len(arguments.args) != 1 or arguments.vararg or arguments.kwarg or arguments.kwonlyargs:
        raise _NotSimpleError
    for statement in node.body:
        yield from _statement(statement, {arguments.args[0].arg, entry_point})


def _statement(node: ast.stmt, functions: set[str]) -> Iterator[Step]:
    match node:
        case ast.Assert(test=ast.Constant(value=value)) if value:
            return
        case ast.Assert(test=test, msg=None | ast.Constant()):
            yield _step(node, test, functions)
        case ast.Expr(value=ast.Constant()) | ast.Pass():
            return
        case ast.Assign(targets=[ast.Name(id=name)], value=value) if name not in functions:
            ast.literal_eval(value)
        case ast.Import(names=names) if all(_standard(name.name) and not name.asname for name in names):
            return
        case ast.ImportFrom(module=str(module), level=0, names=names) if _standard(module):
            if any((name.asname or name.name) in (*functions, "*") for name in names):
                raise _NotSimpleError
        case _:
            raise _NotSimpleError


def _standard(module: str) -> bool:
    return module.partition(".")[0] in sys.stdlib_module_names


def _step(node: ast.Assert, test: ast.expr, functions: set[str]) -> Step:
    relation, expected = "true", None
    match test:
        case ast.UnaryOp(op=ast.Not(), operand=ast.Call() as call):
            relation = "false"
        case ast.Call() as call:
            pass
        case ast.Compare(left=ast.Call() as call, ops=[ast.Eq()], comparators=[right]):
            relation, expected = "==", ast.literal_eval(right)
        case ast.Compare(left=left, ops=[ast.Eq()], comparators=[ast.Call() as call]):
            relation, expected = "==", ast.literal_eval(left)
        case ast.Compare(
            left=ast.Call() as call, ops=[ast.Is()], comparators=[ast.Constant(value=None | bool()) as right]
        ):
            relation, expected = "is", right.value
        case _:
            raise _NotSimpleError
    if not (isinstance(call.func, ast.Name) and call.func.id in functions):
        raise _NotSimpleError
    args = tuple(ast.literal_eval(argument) for argument in call.args)
    kwargs = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords if keyword.arg}
    if len(kwargs) != len(call.keywords):
        raise _NotSimpleError
    values.pack(expected)
    return Step(values.pack(args), values.pack(kwargs), relation, expected, ast.unparse(node), ast.unparse(call))
