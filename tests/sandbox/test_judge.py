"""Verdicts: every status, every kind of test, partial credit, and what a reader is shown."""

from __future__ import annotations

import json
from fractions import Fraction
from typing import Any

import pytest

from bdc.errors import InputError
from bdc.sandbox import Limits, Sandbox, TestResult, Verdict
from bdc.sandbox.session import Session
from bdc.testcase import AssertTest, CallTest, StdinTest, Test


def judge(sandbox: Sandbox, program: str, tests: list[Test], limits: Limits) -> Verdict:
    return sandbox.judge_many([(program, tests)], limits)[0]


def statuses(verdict: Verdict) -> list[str]:
    return [result.status for result in verdict.results]


MIXED = """
def f(n):
    if n == 1:
        return n + 2
    if n == 2:
        while True:
            pass
    if n == 3:
        return {}[n]
    if n == 4:
        return len([0] * 10**9)
    if n == 5:
        print("x" * 10**6)
    if n == 6:
        return (i for i in range(3))
    return n + 1
"""


def test_every_status_and_credit_for_what_follows(isolated: Sandbox, quick: Limits) -> None:
    verdict = judge(isolated, MIXED, [CallTest("f", (n,), n + 1) for n in range(9)], quick)
    assert statuses(verdict) == [
        "passed", "wrong_answer", "timeout", "runtime_error", "memory", "output_limit", "wrong_answer", "passed",
        "passed",
    ]  # fmt: skip
    assert verdict.level == isolated.level
    assert verdict.verified
    assert verdict.pass_rate == pytest.approx(3 / 9)
    assert verdict.results[3].line == 9
    assert "KeyError: 3" in verdict.results[3].message
    assert (verdict.results[1].expected, verdict.results[1].actual) == ("2", "3")


def test_syntax_error_has_a_line(isolated: Sandbox, quick: Limits) -> None:
    for program, line in (("x = 1\ndef f(:\n", 2), ("\0", None), ("x = '\ud800'", None)):
        (result,) = judge(isolated, program, [CallTest("f", (), 1)], quick).results
        assert (result.status, result.line) == ("syntax_error", line), program


def test_a_program_that_fails_at_import_fails_every_test_once(isolated: Sandbox, quick: Limits) -> None:
    verdict = judge(isolated, "while True: pass", [CallTest("f", (), 1)] * 50, quick)
    assert statuses(verdict) == ["timeout"] * 50
    assert verdict.seconds < 3
    verdict = judge(isolated, "\n1 / 0", [CallTest("f", (), 1)] * 2, quick)
    assert [(r.status, r.line) for r in verdict.results] == [("runtime_error", 2)] * 2


def test_restarts_are_bounded(isolated: Sandbox) -> None:
    limits = Limits(cpu_seconds=0.05, restarts=2)
    verdict = judge(
        isolated,
        "def f(n):\n    while n: pass\n    return n",
        [CallTest("f", (n % 4,), n % 4) for n in range(12)],
        limits,
    )
    assert statuses(verdict)[:4] == ["passed", "timeout", "timeout", "timeout"]
    assert set(statuses(verdict)[4:]) == {"timeout"}
    assert "not run" in verdict.results[-1].message


def test_sleeping_is_ended_by_the_wall_clock(isolated: Sandbox) -> None:
    limits = Limits(cpu_seconds=0.2, wall_seconds=0.5)
    (result,) = judge(isolated, "import time\ndef f(): time.sleep(60)", [CallTest("f", (), 1)], limits).results
    assert result.status == "timeout"
    assert result.seconds < 0.2


@pytest.mark.parametrize(
    ("expression", "expected", "status"),
    [
        ("(1, 2)", [1, 2], "wrong_answer"),
        ("[1, 2]", [1, 2], "passed"),
        ("(1, [2, {3: {4}}])", (1, [2, {3: {4}}]), "passed"),
        ("1.0", 1, "passed"),
        ("True", 1, "passed"),
        ("'1'", 1, "wrong_answer"),
        ("0.1 + 0.2", 0.3, "wrong_answer"),
        ("float('nan')", float("nan"), "passed"),
        ("[float('inf'), -float('inf')]", [float("inf"), -float("inf")], "passed"),
        ("__import__('collections').Counter('aab')", {"a": 2, "b": 1}, "passed"),
        ("__import__('fractions').Fraction(1, 2)", Fraction(1, 2), "passed"),
        ("3 ** 5000", 3**5000, "passed"),
        ("3 ** 5000 + 1", 3**5000, "wrong_answer"),
        ("b'a\\xff'", b"a\xff", "passed"),
        ("'\\ud800\\n\\x00'", "\ud800\n\x00", "passed"),
        ("{1: 2}.keys()", {1}, "passed"),
        ("frozenset([1])", {1}, "passed"),
        ("object()", None, "wrong_answer"),
        ("None", None, "passed"),
        ("1 + 2j", 1 + 2j, "passed"),
    ],
)
def test_equality_is_python_s(isolated: Sandbox, quick: Limits, expression: str, expected: object, status: str) -> None:
    (result,) = judge(isolated, f"def f(): return {expression}", [CallTest("f", (), expected)], quick).results
    assert result.status == status, result


def test_a_key_too_long_to_be_written_is_no_error(isolated: Sandbox, quick: Limits) -> None:
    tests: list[Test] = [CallTest("f", (1,), {10**5000: 1}), CallTest("f", (2,), {2: {10**5000: 1}})]
    assert statuses(judge(isolated, "def f(n): return {n: {10**5000: 2}}", tests, quick)) == ["wrong_answer"] * 2


def test_call_finds_methods_and_passes_keywords(isolated: Sandbox, quick: Limits) -> None:
    program = "class Solution:\n    def add(self, a, *, b=0): return a + b"
    assert judge(isolated, program, [CallTest("add", (1,), 3, {"b": 2})], quick).passed
    (result,) = judge(isolated, program, [CallTest("sub", (1,), 3)], quick).results
    assert (result.status, "NameError" in result.message) == ("runtime_error", True)


def test_whole_programs(isolated: Sandbox, quick: Limits) -> None:
    program = """
import sys, threading, atexit
atexit.register(lambda: print("last"))
def main():
    a, b = map(int, sys.stdin.readline().split())
    if a == 7: sys.exit(3)
    print(a / b, sys.stdin.read().strip())
threading.Thread(target=main).start() if __name__ == "__main__" else None
"""
    tests: list[Test] = [StdinTest("1 3\nrest\n", "0.33333333 rest last"), StdinTest("1 2\n", "0.5 last")]
    assert judge(isolated, program, tests, quick).passed
    verdict = judge(
        isolated,
        "n = int(input())\nif n == 0: raise SystemExit\nif n == 1: exit(4)\nif n == 2: input()\nprint(n)",
        [StdinTest(f"{n}\n", e) for n, e in ((0, ""), (1, ""), (2, ""), (3, "3"), (4, "5"))],
        quick,
    )
    assert statuses(verdict) == ["passed", "runtime_error", "runtime_error", "passed", "wrong_answer"]
    assert verdict.results[2].line == 4
    assert verdict.results[4].message == "token 1 is '4' instead of '5'"


def test_large_input_and_output(isolated: Sandbox) -> None:
    text = " ".join(map(str, range(200_000)))
    program = "import sys\nsys.stdout.write(sys.stdin.read())"
    assert judge(isolated, program, [StdinTest(text, text)], Limits()).passed


CHECK = """
METADATA = {'author': 'x'}

def check(candidate):
    assert candidate(2) == 3
    assert candidate(%d) == 4, "second"
"""


def test_assertions(isolated: Sandbox, quick: Limits) -> None:
    program = "def f(n):\n    if n == 9: raise ValueError('nine')\n    return n + 1"
    verdict = judge(
        isolated,
        program,
        [
            AssertTest(CHECK % 3, "f"),
            AssertTest(CHECK % 5, "f"),
            AssertTest("assert f(1) == 2", "f"),
            AssertTest("assert math.isclose(f(1), 2.0)", "f"),
            AssertTest("assert f(9) == 10", "f"),
            AssertTest("try:\n    f(9)\n    assert False\nexcept ValueError as e:\n    assert str(e) == 'nine'", "f"),
            AssertTest("assert f(1)[0] == 2", "f"),
            AssertTest("assert undefined(", "f"),
        ],
        quick,
    )
    assert statuses(verdict) == [
        "passed", "wrong_answer", "passed", "passed", "runtime_error", "passed", "wrong_answer", "runtime_error",
    ]  # fmt: skip
    assert verdict.verified
    assert (verdict.results[1].expected, verdict.results[1].actual) == ("4", "6")
    assert verdict.results[4].line == 2
    assert "the test itself failed" in verdict.results[7].message


def test_a_test_catches_what_the_program_raises(isolated: Sandbox, quick: Limits) -> None:
    """The built-in base and the arguments of an exception travel, so `except` and `args` mean what they say."""
    program = """
class Mine(ValueError): pass
def f(n): raise [KeyError("a"), Mine("b", 2), ZeroDivisionError, UnicodeDecodeError("ascii", b"x", 0, 1, "r"), KeyError(object())][n]
"""
    code = "try:\n    f(%d)\n    caught = None\nexcept %s as e:\n    caught = e.args\nassert caught == %r"
    cases = [(0, "KeyError", ("a",)), (1, "ValueError", ("b", 2)), (2, "ArithmeticError", ())]
    cases += [(3, "UnicodeError", ("ascii", b"x", 0, 1, "r")), (0, "LookupError", ("a",)), (0, "KeyError", ("b",))]
    verdict = judge(isolated, program, [AssertTest(code % case, "f") for case in cases], quick)
    assert statuses(verdict) == ["passed"] * 5 + ["wrong_answer"]
    (result,) = judge(isolated, program, [AssertTest(code % (4, "KeyError", ()), "f")], quick).results
    assert result.status == "runtime_error"


def test_a_test_catches_exceptions_of_the_standard_library(isolated: Sandbox, quick: Limits) -> None:
    program = """
import json, shutil, queue
class Mine(json.JSONDecodeError):
    def __init__(self): self.code = 7
def f(n):
    if n == 0: return json.loads("{")
    raise [None, Mine(), shutil.SameFileError("a"), queue.Empty, type("X", (Exception,), {"__module__": "nothing"})(1)][n]
"""
    code = "%s\ntry:\n    f(%d)\n    caught = None\nexcept %s as e:\n    caught = %s\nassert caught == %r"
    words = "Expecting property name enclosed in double quotes"
    cases = [
        (
            "import json",
            0,
            "json.JSONDecodeError",
            "e.pos, e.msg, e.args",
            (1, words, (f"{words}: line 1 column 2 (char 1)",)),
        ),
        ("from json import JSONDecodeError", 1, "JSONDecodeError", "e.code", 7),
        ("import shutil", 2, "shutil.Error", "str(e), type(e).__name__", ("a", "SameFileError")),
        ("", 2, "OSError", "str(e)", "a"),
        ("import queue", 3, "queue.Empty", "e.args", ()),
        ("", 3, "Exception", "e.args", ()),
        ("import json", 4, "Exception", "type(e).__name__, e.args", ("Exception", (1,))),
    ]
    verdict = judge(isolated, program, [AssertTest(code % case, "f") for case in cases], quick)
    assert statuses(verdict) == ["passed"] * 7, verdict
    assert verdict.verified


@pytest.mark.parametrize("answer", ["return 'x' * (9 << 20)", "raise ValueError('x' * (9 << 20))"])
def test_an_answer_that_is_too_large(isolated: Sandbox, quick: Limits, answer: str) -> None:
    tests: list[Test] = [AssertTest("x = 1\nassert f() == x", "f"), AssertTest("assert f() == 1", "f")]
    verdict = judge(isolated, f"def f(): {answer}", tests, quick)
    assert statuses(verdict)[0] == "output_limit"
    assert statuses(verdict)[1] in ("output_limit", "runtime_error")  # an exception's message is cut, and so fits
    assert verdict.seconds < quick.wall_seconds


def test_a_value_that_fits_but_whose_copy_does_not_is_a_lack_of_memory(isolated: Sandbox) -> None:
    test = AssertTest("x = 1\nassert f() == x", "f")
    verdict = judge(isolated, "def f(): return [0] * 20_000_000", [test], Limits(cpu_seconds=5.0, memory_mb=200))
    assert verdict.results[0].status == "memory", verdict
    assert verdict.seconds < Limits().wall_seconds


@pytest.mark.parametrize(
    ("answer", "memory_mb", "status"), [("'x' * (5 << 20)", 256, "output_limit"), ("'x' * (90 << 20)", 150, "memory")]
)
def test_an_answer_that_cannot_be_sent_leaves_none_for_the_next_test(
    isolated: Sandbox, answer: str, memory_mb: int, status: str
) -> None:
    program = f"def f(n): return {answer} if n == 0 else n"
    tests: list[Test] = [AssertTest("assert f(0) == 1\nassert f(5) == 5\nassert f(6) == 6", "f")]
    tests += [AssertTest("assert f(7) == 7", "f"), AssertTest("assert f(7) == 5", "f"), CallTest("f", (8,), 8)]
    verdict = judge(isolated, program, tests, Limits(memory_mb=memory_mb))
    assert statuses(verdict) == [status, "passed", "wrong_answer", "passed"]


def test_a_test_may_pass_more_than_a_program_may_answer(isolated: Sandbox, quick: Limits) -> None:
    test = AssertTest("x = 'x' * (5 << 20)\nassert f(x) == len(x)", "f")
    verdict = judge(isolated, "def f(x): return len(x)", [test], quick)
    assert verdict.passed and verdict.verified, verdict


def test_a_byte_order_mark_is_no_error(isolated: Sandbox, quick: Limits) -> None:
    assert judge(isolated, "\ufeffdef f(): return 1", [CallTest("f", (), 1)], quick).passed


def test_assertions_see_what_a_call_did_to_its_arguments(isolated: Sandbox, quick: Limits) -> None:
    program = "def f(a, d):\n    a.sort()\n    d['k'] = [1]"
    code = "a, d = [3, 1], {}\nassert f(a, d) is None\nassert a == [1, 3]\nassert d == {'k': [1]}"
    verdict = judge(isolated, program, [AssertTest(code, "f")], quick)
    assert verdict.passed and verdict.verified


@pytest.mark.parametrize(
    ("program", "code"),
    [
        ("return m", "m = [2, 1]\nr = f(m)\nassert r == m and r is not m"),
        ("return m", "m = [2, 1]\nr = f(m)\nr.append(3)\nassert m == [2, 1]"),
        ("return list(m)", "m = [[1], [2]]\nr = f(m)\nr[0].append(3)\nassert m == [[1], [2]]"),
        ("return list(m)", "m = [[1], [2]]\nr = f(m)\nassert r is not m and r[0] is m[0]"),
        ("m.sort()\n    return m", "m = [2, 1]\nassert f(m) is m and m == [1, 2]"),
        ("return m[1]", "m = [[1], [2]]\nassert f(m) is m[1]"),
        ("return {'in': (m, m)}", "m = {1}\nr = f(m)\nassert r['in'][0] is m and r['in'][1] is m"),
        ("a = []\n    return [a, a]", "r = f(1)\nassert r[0] is r[1]"),
        ("a = []\n    return [a, a]", "r = f(1)\nassert r[0] is not r[1]"),
        ("m[0].reverse()", "row = [1, 2]\nf([row])\nassert row == [2, 1]"),
        ("m[0] = m[0][::-1]", "row = [1, 2]\nm = [row]\nf(m)\nassert row == [1, 2] and m == [[2, 1]]"),
        ("m[0] = m[0][::-1]", "row = [1, 2]\nf([row])\nassert row == [2, 1]"),
        ("m.sort()", "a, b = [2], [1]\nm = [a, b]\nf(m)\nassert m[0] is b and m[1] is a"),
        ("m['a'][0].add(2)", "inner = {1}\nf({'a': (inner,)})\nassert inner == {1, 2}"),
        ("m.append(1)", "from collections import deque\nq = deque()\nf(q)\nassert list(q) == [1]"),
        (
            "del m['a']\n    m |= {'z': 1, 'a': 2}",
            "from collections import OrderedDict\nm = OrderedDict(a=1)\nf(m)\nassert list(m.items()) == [('z', 1), ('a', 2)]",
        ),
        ("m[0][0] = 5\n    return m", "assert f([[0] * 2] * 2) == [[5, 0], [5, 0]]"),
        ("m[0][0] = 5\n    return m", "x = [[0] * 2] * 2\nassert f(x) == [[5, 0], [0, 0]]"),
        ("m.append(m)\n    return m", "m = [1]\nr = f(m)\nassert r is m and r[1] is m"),
        ("n.clear()\n    return m", "a = [1]\nassert f(a, n=a) == []"),
        ("m.clear()\n    raise ValueError", "m = {1: 2}\ntry:\n    f(m)\nexcept ValueError:\n    pass\nassert not m"),
        ("m[:] = b'x'", "m = bytearray()\nf(m)\nassert m == b'x'"),
        ("m[0] = float(m[0])", "m = [1]\nf(m)\nassert type(m[0]) is float"),
        ("m[0] = 1.0", "m = [1]\nf(m)\nassert type(m[0]) is int"),
        ("m['a'] = True", "m = {'a': 1}\nf(m)\nassert m['a'] is True"),
        ("m[0] = -0.0", "m = [0.0]\nf(m)\nassert str(m) == '[-0.0]'"),
        ("m[0] = m[0][:]", "row = [1]\nm = [row]\nf(m)\nassert m[0] is not row and m == [[1]]"),
        ("m.pop().append(2)", "row = [1]\nm = [row]\nf(m)\nassert row == [1, 2] and m == []"),
        ("a = {}\n    a['b'] = {'a': a}\n    return a", "r = f(1)\nassert r['b']['a'] is r"),
        ("m.append([m, m])\n    return m[-1]", "m = []\nr = f(m)\nassert r[0] is m and m[0] is r"),
        (
            "return m.keys()",
            "assert list(f(dict.fromkeys(['zeta', 'alpha', 'mid', 'x', 'b']))) == ['zeta', 'alpha', 'mid', 'x', 'b']",
        ),
        ("return m.keys()", "x = {1, 2}\nassert f({1: 0, 2: 0}) == x"),
    ],
)
def test_objects_keep_their_identity_for_a_call(isolated: Sandbox, quick: Limits, program: str, code: str) -> None:
    program = f"def f(m, n=None):\n    {program}"
    space: dict[str, object] = {}
    exec(program, space)
    try:
        exec(code, space)
        status = "passed"
    except AssertionError:
        status = "wrong_answer"
    (result,) = judge(isolated, program, [AssertTest(code, "f")], quick).results
    assert (result.status, result.verified) == (status, True), result


@pytest.mark.parametrize(
    ("program", "code", "verified"),
    [
        ("return Counter(x)", "x = 'aab'\nassert f(x) == {'a': 2, 'b': 1}", True),
        ("return Counter(x)", "x = 'aab'\nassert f(x)['z'] == 0", False),
        ("return x.most_common(1)[0][0]", "from collections import Counter\nassert f(Counter('aab')) == 'a'", False),
        (
            "x['k'].append(1)",
            "from collections import defaultdict\nd = defaultdict(list)\nf(d)\nassert d['k'] == [1]",
            False,
        ),
        ("return x.a", "from collections import namedtuple\nassert f(namedtuple('P', 'a')(1)) == 1", False),
        ("return x[0]", "from collections import namedtuple\nassert f(namedtuple('P', 'a')(1)) == 1", True),
        (
            "x.appendleft(0)",
            "from collections import deque\nq = deque([1, 2], 2)\nf(q)\nassert list(q) == [0, 1]",
            False,
        ),
    ],
)
def test_where_a_base_fails_the_subclass_itself_is_tried(
    isolated: Sandbox, quick: Limits, program: str, code: str, verified: bool
) -> None:
    for end, status in (("", "passed"), ("\nassert f.__name__ == 'g'", "wrong_answer")):
        test = AssertTest(code + end, "f")
        (result,) = judge(isolated, f"from collections import *\ndef f(x): {program}", [test], quick).results
        assert (result.status, result.verified) == (status, verified and not end), result


UNIT = """
import unittest
class T(unittest.TestCase):
    def test_f(self):
        self.assertEqual(f(1), 2)
"""
SUITE = (
    UNIT
    + """
result = unittest.TextTestRunner().run(unittest.defaultTestLoader.loadTestsFromTestCase(T))
assert result.wasSuccessful()
"""
)
MAIN = UNIT + "if __name__ == '__main__':\n    unittest.main()"


@pytest.mark.parametrize(
    "code", [SUITE, MAIN, UNIT + "try:\n    unittest.main()\nexcept SystemExit as e:\n    assert not e.code"]
)
def test_no_exception_of_a_program_skips_a_test(isolated: Sandbox, quick: Limits, code: str) -> None:
    raised = [
        "unittest.SkipTest('a')",
        "unittest.case._ShouldStop",
        "SystemExit(0)",
        "GeneratorExit",
        "KeyboardInterrupt",
    ]
    for program in [*(f"raise {kind}" for kind in raised), "return n", "return n + 1"]:
        program = f"import unittest.case\ndef f(n): {program}"
        (result,) = judge(isolated, program, [AssertTest(code, "f")], quick).results
        assert (result.status == "passed") is ("n + 1" in program), (program, result)
        assert result.status in ("passed", "wrong_answer") and result.verified


@pytest.mark.parametrize("more", ["", "x = g()"])  # g of the program: the test runs beside it
@pytest.mark.parametrize(
    "last", ["check()", "check()\n    raise SystemExit", "check()\n    exit(0)", "exit(not check())"]
)
def test_code_under_main_runs(isolated: Sandbox, quick: Limits, last: str, more: str) -> None:
    code = f"{more}\ndef check():\n    assert f(1) == 2\n    return True\nif __name__ == '__main__':\n    {last}"
    programs = [
        f"def g(): pass\ndef f(n): {body}" for body in ("return n + 1", "return n", "raise SystemExit", "exit(0)")
    ]
    found = [judge(isolated, program, [AssertTest(code, "f")], quick).results[0] for program in programs]
    assert [result.status for result in found] == ["passed", "wrong_answer", "runtime_error", "runtime_error"]
    assert {result.verified for result in found} == {not more}


def test_a_test_that_ends_itself_with_a_code_fails(isolated: Sandbox, quick: Limits) -> None:
    (result,) = judge(isolated, "def f(n): return n", [AssertTest("exit(f(1) != 2)", "f")], quick).results
    assert (result.status, result.verified) == ("wrong_answer", True)


@pytest.mark.parametrize("code", ["P(1)\nassert f(p.x) == 1", "P(1)\nassert f(p) == p"])
def test_a_test_may_define_a_dataclass(isolated: Sandbox, quick: Limits, code: str) -> None:
    code = f"from dataclasses import dataclass\n@dataclass\nclass P:\n    x: int\np = {code}"
    assert judge(isolated, "def f(n): return n", [AssertTest(code, "f")], quick).passed


@pytest.mark.parametrize(
    ("program", "code"),
    [
        ("return [[x, x] for x in range(m)]", "n = 150_000\nassert len(f(n)) == n"),
        ("return len(m)", "m = [[x, x] for x in range(250_000)]\nassert f(m) == len(m)"),
        (
            "return len(m)",
            "m = {i: [i + 1, i + 2] for i in range(50_000)}\nfor _ in range(5):\n    assert f(m) == len(m)",
        ),
    ],
)
def test_many_objects_travel(isolated: Sandbox, program: str, code: str) -> None:
    verdict = judge(isolated, f"def f(m): {program}", [AssertTest(code, "f")], Limits(cpu_seconds=6.0))
    assert verdict.passed and verdict.verified, verdict


@pytest.mark.parametrize(("kind", "most"), [("[x]", 190), ("(x,)", 190), ("{1: x}", 190), ("([x],)", 95)])
def test_deep_values_travel(isolated: Sandbox, quick: Limits, kind: str, most: int) -> None:
    build = f"x = 1\nfor _ in range(%d):\n    x = {kind}"
    for depth, verified in ((most, True), (250, False)):
        code = f"{build % depth}\nassert f(x) is not None"
        (result,) = judge(isolated, "def f(x): return x", [AssertTest(code, "f")], quick).results
        assert (result.status, result.verified) == ("passed", verified), (depth, result)


def test_a_change_that_cannot_travel_is_not_lost_where_the_program_raises(isolated: Sandbox, quick: Limits) -> None:
    code = "m = []\ntry:\n    f(m)\nexcept Exception:\n    pass\nassert %s"
    program = "def f(m):\n    m.append(%s)\n    raise KeyError"
    (result,) = judge(isolated, program % "print", [AssertTest(code % "m == []", "f")], quick).results
    assert (result.status, result.verified) == ("wrong_answer", False)
    (result,) = judge(isolated, program % "print", [AssertTest(code % "m == [print]", "f")], quick).results
    assert (result.status, result.verified) == ("passed", False)
    (result,) = judge(isolated, program % "'x' * (9 << 20)", [AssertTest(code % "m == []", "f")], quick).results
    assert result.status == "output_limit"


def test_a_test_may_call_from_several_threads(isolated: Sandbox, quick: Limits) -> None:
    code = """
from concurrent.futures import ThreadPoolExecutor
with ThreadPoolExecutor(4) as threads:
    assert list(threads.map(f, range(200))) == list(range(200))
"""
    verdict = judge(isolated, "def f(n): return n", [AssertTest(code, "f")], quick)
    assert verdict.passed and verdict.verified, verdict


def test_a_program_that_raises_keeps_its_process(
    isolated: Sandbox, quick: Limits, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Any] = []

    def counted(*args: Any, **kwargs: Any) -> Session:
        opened.append(args)
        return Session(*args, **kwargs)

    monkeypatch.setattr("bdc.sandbox.judge.Session", counted)
    tests: list[Test] = [AssertTest(f"assert f({n}) == 0\nassert f(1) == 1", "f") for n in range(5)]
    assert statuses(judge(isolated, "def f(n): return n / 0", tests, quick)) == ["runtime_error"] * 5
    assert len(opened) == 1


@pytest.mark.parametrize(
    "code",
    ["def test_f():\n    assert f(1) == 2", "class T:\n    def test(self):\n        assert f(1) == 2", "x = 1", ""],
)
def test_a_test_that_never_calls_is_broken(isolated: Sandbox, quick: Limits, code: str) -> None:
    (result,) = judge(isolated, "def f(n): return n + 1", [AssertTest(code, "f")], quick).results
    assert result.status == "runtime_error"
    assert "the test itself failed: it never calls the program" in result.message


def test_a_bare_except_of_a_test_hides_neither_the_end_of_the_program_nor_what_cannot_travel(
    isolated: Sandbox, quick: Limits
) -> None:
    program = "import os\ndef f(n):\n    if n == 1: os._exit(0)\n    return print"
    code = "try:\n    f(%d)\nexcept:\n    pass"
    first, second = judge(isolated, program, [AssertTest(code % 1, "f"), AssertTest(code % 2, "f")], quick).results
    assert (first.status, second.status) == ("runtime_error", "passed")
    assert not second.verified


def test_values_that_cannot_travel_make_the_verdict_unverified(isolated: Sandbox, quick: Limits) -> None:
    program = "def f(g): return map(g, [1, 2])\ndef helper(): return 5\nclass Pair:\n    a = 1"
    tests: list[Test] = [
        AssertTest("assert list(f(lambda x: x + 1)) == [2, 3]", "f"),
        AssertTest("assert list(f(lambda x: x + 1)) == [2, 4]", "f"),
        AssertTest("assert helper() == 5 and Pair().a == 1", "f"),
    ]
    verdict = judge(isolated, program, tests, quick)
    assert statuses(verdict) == ["passed", "wrong_answer", "passed"]
    assert not verdict.verified
    assert [result.verified for result in verdict.results] == [False] * 3


def test_a_hanging_assertion_does_not_take_the_others_with_it(isolated: Sandbox, quick: Limits) -> None:
    program = "def f(n):\n    while n == 2: pass\n    return n"
    tests: list[Test] = [AssertTest(f"assert f({n}) == {n}", "f") for n in (1, 2, 3)] + [
        AssertTest("while True: pass", "f")
    ]
    verdict = judge(isolated, program, tests, quick)
    assert statuses(verdict) == ["passed", "timeout", "passed", "timeout"]
    assert "the code of the test" in verdict.results[3].message


def test_kinds_of_tests_mix(isolated: Sandbox, quick: Limits) -> None:
    tests: list[Test] = [
        StdinTest("", "hi"),
        AssertTest("assert f() == 1", "f"),
        CallTest("f", (), 1),
        StdinTest("", "ho"),
    ]
    verdict = judge(isolated, "def f(): return 1\nif __name__ == '__main__': print('hi')", tests, quick)
    assert statuses(verdict) == ["passed", "passed", "passed", "wrong_answer"]


def test_verdicts_survive_json(isolated: Sandbox, quick: Limits) -> None:
    verdict = judge(isolated, MIXED, [CallTest("f", (n,), 1) for n in (0, 1, 3)], quick)
    assert Verdict.from_json(json.loads(json.dumps(verdict.to_json()))) == verdict
    with pytest.raises(InputError):
        Verdict.from_json({"results": [{}]})


def test_feedback_is_bounded_and_printable(isolated: Sandbox, quick: Limits) -> None:
    program = "def f(n): return '\\x1b[2J' + chr(0x202e) + 'y' * 100000"
    text = judge(isolated, program, [CallTest("f", (n,), n) for n in range(9)], quick).feedback()
    assert text.startswith("0 of 9 tests passed.")
    assert "4 more tests failed." in text
    assert len(text) < 5000
    assert all(c.isprintable() or c in "\n\t" for c in text)


def test_feedback_of_a_pass() -> None:
    assert Verdict((TestResult("passed"),), "L3", True, 0.1).feedback() == "1 of 1 tests passed."


@pytest.mark.parametrize(
    ("program", "tests"),
    [(b"x", [CallTest("f", (), 1)]), ("x", []), ("x", ["assert True"])],
)
def test_bad_input_is_named(isolated: Sandbox, program: str, tests: list[Test]) -> None:
    with pytest.raises(InputError):
        isolated.judge_many([(program, tests)])


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        *((CallTest, (5, (), 1)), (CallTest, ("f", "x", 1)), (CallTest, ("f", (), 1, [])), (StdinTest, (b"", ""))),
        *((StdinTest, ("", None)), (AssertTest, (None, "f")), (AssertTest, ("", 1))),
    ],
)
def test_tests_of_the_wrong_types_are_refused(kind: type, values: tuple[object, ...]) -> None:
    with pytest.raises(InputError, match="it must be"):
        kind(*values)


def test_the_largest_limits_work(isolated: Sandbox) -> None:
    limits = Limits(cpu_seconds=1e6, wall_seconds=1e6, memory_mb=1 << 24, output_kb=1 << 20, restarts=1_000_000)
    assert judge(isolated, "def f(): return 1", [CallTest("f", (), 1)] * 5000, limits).passed
    assert judge(isolated, "print(1)", [StdinTest("", "1")], limits).passed


@pytest.mark.parametrize(
    "values",
    [
        *(
            {"cpu_seconds": 0},
            {"cpu_seconds": float("nan")},
            {"memory_mb": -1},
            {"wall_seconds": 1.0},
            {"output_kb": True},
        ),
        *(
            {"cpu_seconds": 1e12, "wall_seconds": 1e12},
            {"memory_mb": 1 << 60},
            {"output_kb": 1 << 50},
            {"restarts": -1},
            {"restarts": 2.5},
        ),
        {"cpu_seconds": "2"},
    ],
)
def test_limits_that_make_no_sense_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(InputError):
        Limits(**values)  # type: ignore[arg-type]


def test_the_truth_of_an_object_needs_no_object_to_travel(isolated: Sandbox, quick: Limits) -> None:
    program = "import re\ndef f(text): return re.match('a', text)\ndef g(kind): return isinstance(1, kind)"
    tests: list[Test] = [
        AssertTest(code, "f") for code in ("assert f('ab')", "assert not f('ab')", "assert not f('b')")
    ]
    verdict = judge(isolated, program, [*tests, AssertTest("assert g(int)\nassert not g(str)", "g")], quick)
    assert statuses(verdict) == ["passed", "wrong_answer", "passed", "passed"]
    assert [r.verified for r in verdict.results] == [True, True, True, True]


@pytest.mark.parametrize("memory", [128, 256, 512])
def test_threads_cost_their_stacks_alone(isolated: Sandbox, memory: int) -> None:
    program = """
import threading, time
threads = [threading.Thread(target=time.sleep, args=(0.01,)) for _ in range(9)]
for thread in threads: thread.start()
def f(): return len(threads)
"""
    assert judge(isolated, program, [CallTest("f", (), 9)], Limits(memory_mb=memory)).passed
