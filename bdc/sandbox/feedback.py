"""Text for a model or a terminal out of what a hostile program may have written."""

from __future__ import annotations

from collections.abc import Sequence

from bdc.sandbox.verdict import TestResult

_MAX_FIELD, _MAX_TOTAL = 400, 4000


def shorten(text: str, limit: int = _MAX_FIELD) -> str:
    """Keep both ends of a long text."""
    if len(text) <= limit:
        return text
    head, tail = limit * 2 // 3, limit // 3
    return f"{text[:head]} ... {len(text) - head - tail} characters left out ... {text[len(text) - tail :]}"


def escape(text: str) -> str:
    """Write control, format and other unprintable characters as escapes; newlines and tabs stay."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)


def clean(text: str, limit: int = _MAX_FIELD) -> str:
    """Shorten, then escape."""
    return escape(shorten(text, limit))


def feedback(results: Sequence[TestResult], max_failures: int = 5) -> str:
    """Describe the results: a count, then at most ``max_failures`` failures, at most about 4000 characters."""
    failures = [(index, result) for index, result in enumerate(results, 1) if not result.passed]
    parts = [f"{len(results) - len(failures)} of {len(results)} tests passed."]
    for index, result in failures[:max_failures]:
        place = f" (line {result.line})" if result.line else ""
        parts.append(f"Test {index}: {result.status.replace('_', ' ')}{place}: {clean(result.message)}")
        if result.expected:
            parts.append(f"  expected: {clean(result.expected)}")
        if result.actual:
            parts.append(f"  got: {clean(result.actual)}")
    if len(failures) > max_failures:
        parts.append(f"{len(failures) - max_failures} more tests failed.")
    return shorten("\n".join(parts), _MAX_TOTAL)
