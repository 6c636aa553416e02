"""Reader of APPS (Hendrycks et al., arXiv 2105.09938): the original layout and the one with ``sample_io``."""

from __future__ import annotations

import ast
import json
import re
from typing import Any

from bdc.errors import InputError
from bdc.problems.problem import Problem
from bdc.problems.records import Record, identity, items, text
from bdc.testcase import CallTest, StdinTest, Test


def parse(record: Record) -> Problem:
    """Read one line of either layout.

    With ``sample_io`` its tests are public and the rest of ``test_list`` is private. The original layout marks no
    public tests, so the first half is public (none of a single test).
    """
    return _original(record) if "input_output" in record else _sampled(record)


def _original(record: Record) -> Problem:
    data = _decoded(record, "input_output")
    if not isinstance(data, dict):
        raise InputError(f"field 'input_output' is of type {type(data).__name__}; it must be an object")
    inputs, outputs = items(data, "inputs", object), items(data, "outputs", object)
    if len(inputs) != len(outputs):
        raise InputError(f"field 'input_output' has {len(inputs)} inputs but {len(outputs)} outputs")
    name = text(data, "fn_name") if data.get("fn_name") is not None else None
    tests: list[Test]
    if name is None:
        tests = [StdinTest(_lines(i, "inputs"), _lines(o, "outputs")) for i, o in zip(inputs, outputs, strict=True)]
    else:
        arguments = [tuple(item) for item in items(data, "inputs", list)]
        tests = [CallTest(name, a, o) for a, o in zip(arguments, _unwrapped(outputs), strict=True)]
    metadata = record.get("metadata") or record
    solutions = items({"solutions": _decoded(record, "solutions")}, "solutions", str, required=False)
    return Problem(
        id=f"apps/{identity(record, 'problem_id' if 'problem_id' in record else 'id')}",
        source="apps",
        statement=text(record, "question"),
        entry_point=name,
        public_tests=tuple(tests[: len(tests) // 2]),
        private_tests=tuple(tests[len(tests) // 2 :]),
        starter_code=text(record, "starter_code", ""),
        solution=solutions[0] if solutions else None,
        difficulty=text(metadata, "difficulty", "") if isinstance(metadata, dict) else "",
    )


def _decoded(record: Record, name: str) -> Any:
    """Return a field that some copies hold as JSON text, and leave empty where there is nothing."""
    value = record.get(name)
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value) if value else None
    except (ValueError, RecursionError) as error:
        raise InputError(f"field {name!r} is not valid JSON: {error}") from error


def _sampled(record: Record) -> Problem:
    starter = text(record, "starter_code", "")
    samples = items(record, "sample_io", dict, required=False)
    rows = samples + items(record, "test_list", dict)
    name = None
    tests: list[Test]
    inputs = [text(row, "input", "") for row in rows]
    outputs = [items(row, "output", object) for row in rows]
    if starter.strip():
        name, parameters = _signature(starter)
        tests = [CallTest(name, a, o) for a, o in zip(_arguments(inputs, parameters), _unwrapped(outputs), strict=True)]
    else:
        tests = [StdinTest(i, _lines(o, "output")) for i, o in zip(inputs, outputs, strict=True)]
    # The lists overlap and repeat tests, sometimes with other blanks in a printed value.
    public = {repr(test): test for test in tests[: len(samples)]}
    private = {repr(test): test for test in tests if repr(test) not in public}
    if not private:
        # All tests are samples: half of them must stay hidden to judge by.
        keys = list(public)[len(public) // 2 :]
        private = {key: public.pop(key) for key in keys}
    return Problem(
        id=f"apps/{identity(record, 'id')}",
        source="apps",
        statement=text(record, "description"),
        entry_point=name,
        public_tests=tuple(public.values()),
        private_tests=tuple(private.values()),
        starter_code=starter,
        difficulty=text(record, "difficulty", ""),
    )


def _lines(value: Any, field: str) -> str:
    if isinstance(value, list) and all(isinstance(line, str) for line in value):
        return "\n".join(value)
    if not isinstance(value, str):
        raise InputError(f"field {field!r} holds {type(value).__name__}; it must hold strings or lists of lines")
    return value


def _unwrapped(outputs: list[Any]) -> list[Any]:
    """Undo the list that APPS puts around results; a problem has it around all of them or around none."""
    if all(isinstance(output, list) and len(output) == 1 for output in outputs):
        return [output[0] for output in outputs]
    return outputs


def _signature(starter: str) -> tuple[str, int]:
    """Return the name and the number of positional parameters of the last function in the starter code."""
    found = re.findall(r"def\s+(\w+)\s*\((.*?)\)\s*(?:->[^:\n]*)?:", starter, re.DOTALL)
    if not found:
        raise InputError(f"field 'starter_code' defines no function: {starter.strip()!r:.100}")
    name, parameters = found[-1]
    try:
        arguments = ast.parse(f"def f({parameters}): pass").body[0]
    except SyntaxError as error:
        raise InputError(f"field 'starter_code' has a signature that is not Python: {error}") from error
    assert isinstance(arguments, ast.FunctionDef)
    names = [argument.arg for argument in arguments.args.args]
    return name, len([argument for argument in names if argument != "self"])


def _arguments(inputs: list[str], parameters: int) -> list[tuple[Any, ...]]:
    """Read arguments printed one a line.

    Strings are printed without quotes, so ``12`` may be a string: a parameter holds literals only if the values
    of all tests are literals. Surplus lines belong to the first parameter, a string of several lines.
    """
    rows = []
    for printed in inputs:
        lines = printed.split("\n")
        surplus = max(0, len(lines) - parameters)
        rows.append((["\n".join(lines[: surplus + 1]), *lines[surplus + 1 :]])[:parameters])
    columns = [[row[place] for row in rows if place < len(row)] for place in range(parameters)]
    literal = [all(_is_literal(value) for value in column) for column in columns]
    return [
        tuple(ast.literal_eval(value.strip()) if literal[place] else value for place, value in enumerate(row))
        for row in rows
    ]


def _is_literal(value: str) -> bool:
    try:
        ast.literal_eval(value.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return False
    return True
