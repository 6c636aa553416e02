"""Reading what models wrote: thoughts with scores, and programs. Lenient in form, strict in never inventing text."""

from __future__ import annotations

import json
import re
import textwrap
from typing import Any, NamedTuple

from bdc.llm.base import storable

MAX_THOUGHT = 400  # characters; what is longer is no single step
MAX_PROGRAM = 200_000  # characters; what is longer is a model that repeats itself


class Proposal(NamedTuple):
    """A thought and its self-reported score in [0, 1]."""

    text: str
    score: float


# Models repeat themselves: no pattern here may take more than linear time in the length of a text.
_FENCE_END = re.compile(r"[ \t]*+([\w+-]*+)[ \t]*+")
_CODE = re.compile(r"^[^\S\n]*+(def |import |from |print\(|return |for |while |class |if )", re.MULTILINE)
_DEFINITION = re.compile(r"^[^\S\n]*+(async )?def ", re.MULTILINE)
_PYTHON = ("", "python", "py", "python3")
_MARK = re.compile(r"^\s*(?:(?:step|idea|thought)\s*\d*\s*[:.)-]|\(?\d{1,2}[.):]|[-*•])\s*", re.IGNORECASE)
_SCORE = re.compile(
    r"[\s\-:,.]*[(\[]?\s*(?:(?:score|reasonableness|rating)\s*(?:of|:|=|is)?\s*)?(\d{1,2}(?:\.\d+)?)\s*(?:/\s*10)?\s*[)\]]\s*\.?\s*$",
    re.IGNORECASE,
)
_DEFAULT_SCORE = 0.5
_FRILLS = 100  # characters that a mark and a score may take beside a thought


def parse_proposals(text: str, limit: int) -> list[Proposal]:
    """Read up to ``limit`` thoughts: a JSON list, a numbered or bulleted list, else plain lines.

    Returns:
        Distinct, non-empty proposals in the order written; empty when nothing readable is there. A thought without a
        readable score gets 0.5.
    """
    found = _from_json(text) or _from_lines(text)
    seen: set[str] = set()
    kept = []
    for proposal in found:
        key = same_thought(proposal.text)
        if key and key not in seen:
            seen.add(key)
            kept.append(proposal)
    return kept[:limit]


def same_thought(text: str) -> str:
    """A key that is equal for thoughts which differ in letter case and white space only."""
    return " ".join(text.lower().split())


def parse_thought(text: str) -> str | None:
    """The first readable thought of a reply, or None."""
    proposals = parse_proposals(text, 1)
    return proposals[0].text if proposals else None


def parse_plan(text: str, limit: int = 8) -> list[str]:
    """All thoughts of a plan, in order."""
    return [proposal.text for proposal in parse_proposals(text, limit)]


def _from_json(text: str) -> list[Proposal]:
    start, end = text.find("["), text.rfind("]")
    if start < 0 or end <= start:
        return []
    try:
        items = json.loads(text[start : end + 1])
    except (ValueError, RecursionError):
        return []
    return [proposal for item in items if (proposal := _json_item(item))] if isinstance(items, list) else []


def _json_item(item: Any) -> Proposal | None:
    if isinstance(item, str):
        return _clean(storable(item))
    if not isinstance(item, dict):
        return None
    words = next((item[key] for key in ("thought", "step", "idea", "text") if isinstance(item.get(key), str)), "")
    score = next(
        (item[key] for key in ("score", "reasonableness", "rating") if isinstance(item.get(key), int | float)), None
    )
    cleaned = _clean(storable(words))
    if cleaned is None or score is None:
        return cleaned
    return Proposal(cleaned.text, _scaled(score))


def _from_lines(text: str) -> list[Proposal]:
    lines = [line for line in _split_fences(text)[0] if line.strip()]
    marked = [line for line in lines if _MARK.match(line)]
    return [proposal for line in (marked or lines) if (proposal := _clean(line))]


def _clean(line: str) -> Proposal | None:
    line = " ".join(line.split())
    if len(line) > MAX_THOUGHT + _FRILLS:
        return None
    line = _MARK.sub("", line, count=1)
    score = _DEFAULT_SCORE
    if found := _SCORE.search(line):
        score = _scaled(float(found.group(1)))
        line = line[: found.start()]
    words = line.replace("**", "").strip().strip("\"'").strip()
    # A line that only announces a list, only gives a score, or is code, is not a thought.
    if (
        not 8 <= len(words) <= MAX_THOUGHT
        or words.endswith(":")
        or re.match(r"(score|rating)\W*\d", words, re.IGNORECASE)
        or words.startswith(("def ", "import ", "return ", ">>>"))
    ):
        return None
    return Proposal(words if words.endswith((".", "!", "?")) else words + ".", score)


def _scaled(score: float) -> float:
    if not 0 <= score <= 10:  # NaN too
        return 1.0 if score > 10 else 0.0
    return score / 10.0 if score > 1.0 else float(score)


def _split_fences(text: str) -> tuple[list[str], list[tuple[str, str]]]:
    """The lines outside code fences, and each fenced block as (language, body).

    A fence that names a language opens a block even inside another (models fence twice); the last may stay open.
    """
    prose: list[str] = []
    blocks: list[tuple[str, list[str]]] = []
    inside = False
    for line in text.splitlines():
        target = blocks[-1][1] if inside else prose
        before, language = _cut_fence(line)
        if language is None:
            target.append(line)
            continue
        if before.strip():
            target.append(before)
        inside = not inside or bool(language)
        if inside:
            blocks.append((language.lower(), []))
    return prose, [(language, "\n".join(body)) for language, body in blocks]


def _cut_fence(line: str) -> tuple[str, str | None]:
    """What stands before a fence at the end of a line, and the fence's language; (the line, None) without a fence."""
    at = line.rfind("```")
    found = _FENCE_END.fullmatch(line, at + 3) if at >= 0 else None
    return (line[:at].rstrip("`"), found.group(1)) if found else (line, None)


def extract_program(text: str, starter_code: str = "") -> str | None:
    """The program in a reply: the longest fenced block of Python, else the reply itself if it looks like code.

    A block that only continues ``starter_code`` (a function's body, indented or not) is put under it.

    Returns:
        Source text, or None when the reply holds no code or more than `MAX_PROGRAM` characters of it.
    """
    blocks = [body for language, body in _split_fences(text)[1] if language in _PYTHON and body.strip()]
    if blocks:
        code = max(blocks, key=len)
    elif _CODE.search(text):
        code = "\n".join(_cut_fence(line)[0] for line in text.splitlines())
    else:
        return None
    code = code.strip("\n")
    if not code.strip() or len(code) > MAX_PROGRAM:
        return None
    if starter_code.strip() and not _DEFINITION.search(code):
        if re.search(r"^return\b", code, re.MULTILINE):
            code = textwrap.indent(code, "    ")
        if code[:1] in (" ", "\t"):
            code = f"{starter_code.rstrip()}\n{code}"
    return code + "\n"
