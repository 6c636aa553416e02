"""Reading what models write."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bdc.llm.parsing import extract_program, parse_plan, parse_proposals, parse_thought


@pytest.mark.parametrize(
    "text",
    [
        "1. Count the letters. (8)\n2. Sort the words. (6)",
        "- Count the letters. (score: 8)\n- Sort the words. [6/10]",
        '[{"thought": "Count the letters.", "score": 8}, {"thought": "Sort the words", "score": 6}]',
        "Here are two ideas:\n1) **Count the letters.** (8)\n2) **Sort the words.** (6)\n",
        "**1. Count the letters (8)**\n**2. Sort the words (6 out of 10)**",
        '{"thought": "Count the letters.", "score": "8"},\n{"thought": "Sort the words", "score": "6/10"}',
        "<think>\n1. Sum it all. (9)\n</think>\n### Idea 1: Count the letters. (0.8)\n### Idea 2: Sort the words. (0.6)",
    ],
)
def test_every_form_gives_the_same_proposals(text: str) -> None:
    assert parse_proposals(text, 3) == [("Count the letters.", 0.8), ("Sort the words.", 0.6)]


def test_nothing_is_invented() -> None:
    assert parse_proposals("", 3) == []
    assert parse_proposals("\n \n```python\nreturn x\n```", 3) == []
    assert parse_thought("Sure:") is None


@pytest.mark.parametrize(
    ("line", "text", "score"),
    [
        ("1. Use a dictionary. (1)", "Use a dictionary.", 0.1),
        ("1. Use a dictionary. (1/10)", "Use a dictionary.", 0.1),
        ("1. Compute dp[i][2]", "Compute dp[i][2].", 0.5),
        ("1. Return f(3)", "Return f(3).", 0.5),
        ("1. Stop at most at 100 (100)", "Stop at most at 100 (100).", 0.5),
        ("1. Take the sum modulo 10**9 + 7. (8)", "Take the sum modulo 10**9 + 7.", 0.8),
        ("- Loop while i**2 <= n and 2**k > i (9)", "Loop while i**2 <= n and 2**k > i.", 0.9),
        ("* Pass **kwargs on to g(**kwargs)", "Pass **kwargs on to g(**kwargs).", 0.5),
        ("-1 is returned where there is none", "-1 is returned where there is none.", 0.5),
        ("2. 0.5 is the first guess. (3)", "0.5 is the first guess.", 0.3),
    ],
)
def test_code_and_formulas_in_a_thought_stay_what_they_are(line: str, text: str, score: float) -> None:
    assert parse_proposals(line, 3) == [(text, score)]


def test_scores_of_one_reply_have_one_scale() -> None:
    for scores, expected in (("1.0 0.5", [1.0, 0.5]), ("1 5", [0.1, 0.5]), ("0.5 9", [0.05, 0.9]), ("1 0", [0.1, 0.0])):
        lines = [f"{i}. Sort by the column {i}. ({score})" for i, score in enumerate(scores.split(), 1)]
        assert [proposal.score for proposal in parse_proposals("\n".join(lines), 3)] == expected


def test_duplicates_and_limit() -> None:
    assert [
        p.text for p in parse_proposals("1. Sort it all.\n2. sort it  all.\n3. Count it all.\n4. Sum it all.", 2)
    ] == [
        "Sort it all.",
        "Count it all.",
    ]


def test_a_score_alone_is_no_thought() -> None:
    found = parse_proposals(
        "1. Count the letters with a dictionary. (8)\n2. Score: 10.\n3. Sort the letters. Score: 7/10", 5
    )
    assert next(proposal.text for proposal in found) == "Count the letters with a dictionary."
    assert not any("Score: 10" in proposal.text for proposal in found)


def test_plan_keeps_order() -> None:
    assert parse_plan("1. Split the text.\n2. Reverse the parts.") == ["Split the text.", "Reverse the parts."]


def test_program_from_fence_from_plain_code_and_under_a_signature() -> None:
    assert extract_program("Sure!\n```python\ndef f(x):\n    return x\n```\nDone") == "def f(x):\n    return x\n"
    assert extract_program("def f(x):\n    return x") == "def f(x):\n    return x\n"
    assert extract_program("```\n    return x\n```", "def f(x):") == "def f(x):\n    return x\n"
    assert extract_program("I cannot do that.") is None


def test_program_fenced_twice() -> None:
    expected = "def f(x):\n    return x\n"
    assert extract_program("```\n\n```python\ndef f(x):\n    return x\n```") == expected
    assert extract_program("```python\n```python\ndef f(x):\n    return x\n```\n```") == expected
    assert extract_program("```text\nx = 1\n```\nso\n```py\ndef f(x):\n    return x\n```") == expected


@pytest.mark.parametrize("fence", ["```python3.11", '```python title="f.py"', "```{.python}", "~~~ Python", "  ```py"])
def test_fences_with_more_than_a_language(fence: str) -> None:
    end = fence.split("p")[0].rstrip(" {.")
    assert extract_program(f"So:\n{fence}\ndef f(x):\n    return x\n{end}\nDone.") == "def f(x):\n    return x\n"


def test_a_fence_in_a_docstring_and_odd_line_ends_in_a_string_are_text() -> None:
    program = 'def f(x):\n    """\n    ```\n    f(1)\n    ```\n    """\n    return "\u2028\x0c"\n'
    assert extract_program(f"```python\n{program}```") == program
    assert extract_program(program.replace("    ```\n", "")) == program.replace("    ```\n", "")


def test_a_definition_comes_before_longer_examples() -> None:
    tests = "\n".join(f"assert f({i}) == {i}" for i in range(9))
    program = "def f(x):\n    return x\n"
    assert extract_program(f"```python\n{program}```\nIt passes:\n```python\n{tests}\n```") == program
    assert extract_program(f"<think>```python\n{program}# or\n```</think>\n```python\n{program}```") == program


def test_code_before_a_stray_fence_is_kept() -> None:
    assert extract_program("def f(x):\n    return x```") == "def f(x):\n    return x\n"


def test_bare_body_goes_under_the_signature() -> None:
    assert extract_program("```python\ny = x + 1\nreturn y\n```", "def f(x):\n") == (
        "def f(x):\n    y = x + 1\n    return y\n"
    )
    assert extract_program("```python\nf = lambda x: x\n```", "def f(x):\n") == "f = lambda x: x\n"


def test_unfinished_fence_is_read_to_the_end() -> None:
    assert extract_program("```python\ndef f(x):\n    return x") == "def f(x):\n    return x\n"


LONG = 100_000


@pytest.mark.parametrize(
    "text",
    [
        "a" + " " * LONG + "b",
        "1. " + "x" * 50 + " " * LONG + "y",
        "\n" * LONG + "x",
        "`" * LONG + "x!",
        "```" + "\t" * LONG + "x y",
        "[" * LONG + "]" * LONG,
        "x" + "." * LONG + "!",
        "(8" * LONG,
        '["' + "\\ud800" * LONG + '"]',
        "```python\n" + "x = 1\n" * LONG + "```",
    ],
    ids=lambda text: text[:12],
)
def test_a_model_that_repeats_itself_is_read_at_once(text: str) -> None:
    began = time.process_time()
    proposals, program = parse_proposals(text, 3), extract_program(text, "def f(x):")
    assert time.process_time() - began < 5  # it was hours
    assert all(len(proposal.text) <= 401 for proposal in proposals)
    assert program is None


def test_json_with_odd_values_is_read() -> None:
    scores = ["9" * 400, "NaN", "1e999", "-Infinity", "-3", "true", "7"]
    items = [f'{{"thought": "Sort the words {i}.\\ud800", "score": {score}}}' for i, score in enumerate(scores)]
    found = parse_proposals(f"[{', '.join(items)}]", 9)
    assert [proposal.score for proposal in found] == [1.0, 0.0, 1.0, 0.0, 0.0, 0.5, 0.7]
    assert found[0].text == "Sort the words 0.\ufffd."


def test_a_score_beyond_ten_is_ten() -> None:
    assert parse_proposals('[{"thought": "Sort the words.", "score": "85"}]', 1) == [("Sort the words.", 1.0)]


@given(st.text(max_size=400))
def test_any_text_is_read_without_error(text: str) -> None:
    for proposal in parse_proposals(text, 4):
        assert proposal.text and 0.0 <= proposal.score <= 1.0
    program = extract_program(text)
    assert program is None or program.strip()
