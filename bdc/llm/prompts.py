"""Every prompt that bdc writes, as chat messages. The solver is trained on the same words it is asked with.

Roles (arXiv 2502.12492; arXiv 2409.09584 for reflection): propose the next thoughts, write a program from thoughts,
reflect on failed tests, plan (all thoughts at once, for the fast solver).
"""

from __future__ import annotations

from collections.abc import Sequence

Messages = tuple[dict[str, str], ...]


def _ask(text: str) -> Messages:
    return ({"role": "user", "content": text},)


def numbered(thoughts: Sequence[str]) -> str:
    """Thoughts as a numbered list, one per line."""
    return "\n".join(f"{index}. {thought}" for index, thought in enumerate(thoughts, start=1))


def propose(statement: str, thoughts: Sequence[str], width: int) -> Messages:
    """Ask for ``width`` candidates for the next thought, each with a score from 0 to 10."""
    so_far = f"\n\nSteps so far:\n{numbered(thoughts)}" if thoughts else ""
    wanted = "next step" if thoughts else "first step"
    return _ask(
        f"Problem:\n{statement.strip()}{so_far}\n\n"
        f"Suggest {width} different ideas for the {wanted} of a solution, in words, without code. "
        "One sentence per line, numbered, each followed by a score from 0 to 10 in parentheses that says how "
        "reasonable it is, like: 1. Count the letters with a dictionary. (8)"
    )


def program(statement: str, thoughts: Sequence[str], *, stdin: bool = False) -> Messages:
    """Ask for a whole program that follows the thoughts (none: any way it likes)."""
    steps = f"\n\nFollow these steps:\n{numbered(thoughts)}" if thoughts else ""
    kind = "a Python program that reads standard input and prints the answer" if stdin else "this Python function"
    verb = "Write" if stdin else "Complete"
    return _ask(f"{verb} {kind}. Reply with only the code in one ```python block.\n\n{statement.strip()}{steps}")


def reflect(statement: str, thoughts: Sequence[str], failures: str) -> Messages:
    """Ask for a better last thought, given the tests that programs written from the thoughts failed."""
    return _ask(
        f"Problem:\n{statement.strip()}\n\nSteps:\n{numbered(thoughts)}\n\n"
        f"A program written from these steps failed:\n{failures.strip()}\n\n"
        f"Rewrite step {len(thoughts)} so that the program becomes right. "
        "Reply with one sentence in words, without code."
    )


def plan(statement: str) -> Messages:
    """Ask for all thoughts of a solution at once; what the fast solver does instead of searching."""
    return _ask(f"Problem:\n{statement.strip()}\n\nWrite the steps of a solution in words, numbered, without code.")


def program_response(code: str) -> str:
    """The response a solver is trained to give to :func:`program`."""
    return f"```python\n{code.strip()}\n```"
