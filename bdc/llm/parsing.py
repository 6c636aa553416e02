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
_FENCE = re.compile(r"([ \t]*+)(```|~~~)[`~]*+([^`]*+)")
_FENCE_END = re.compile(r"[ \t]*+([\w+-]*+)[ \t]*+")
_LANGUAGE = re.compile(r"[\w+.-]*")
_PYTHON = re.compile(r"(py(thon)?[\d.]*)?")
_CODE = re.compile(r"^[^\S\n]*+(def |import |from |print\(|return |for |while |class |if )", re.MULTILINE)
_DEFINITION = re.compile(r"^[^\S\n]*+(async )?def ", re.MULTILINE)
# These are tried on short lines only.
_BOLD = re.compile(r"(?<![\w*])\*\*(?=\S)(.+?)(?<=\S)\*\*(?![\w*])")  # not a power, not keyword arguments
_MARK = re.compile(
    r"^(?:#+ |> )*\s*(?:(?:step|idea|thought)\s*\d*\s*[:.)-]|\(?\d{1,2}[.):](?!\d)|[-•](?!\d)|\*(?=\s))\s*",
    re.IGNORECASE,
)
_NUMBER = r"(\d{1,2}(?:\.\d+)?)\s*(/\s*10|out\s+of\s+10)?"
_WORD = r"(?:score|reasonableness|rating)"
_SCORE = re.compile(
    rf"(?:^|(?<=[\s.!?:;,]))[(\[]\s*(?:{_WORD}\s*(?:of|:|=|is)?\s*)?{_NUMBER}\s*[)\]]\s*\.?\s*$"
    rf"|(?<=[.!?])\s+{_WORD}\s*[:=]\s*{_NUMBER}\s*\.?\s*$",
    re.IGNORECASE,
)
_DEFAULT_SCORE = 0.5
_FRILLS = 100  # characters that a mark and a score may take beside a thought


class _Read(NamedTuple):
    """A thought as it was read, before the scale of the scores beside it is known."""

    text: str
    score: float | None = None
    of_ten: bool = False  # said so itself


def parse_proposals(text: str, limit: int) -> list[Proposal]:
    """Read up to ``limit`` thoughts: a JSON list, a numbered or bulleted list, else plain lines.

    Returns:
        Distinct, non-empty proposals in the order written; empty when nothing readable is there. A thought without a
        readable score gets 0.5. Scores are of ten, as asked for, unless all are decimal fractions up to 1.
    """
    text = _answer(text)
    found = _scaled(_from_json(text) or _from_lines(text))
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


def _answer(text: str) -> str:
    """What comes after the thinking that some models show."""
    return text.rpartition("</think>")[2]


def _from_json(text: str) -> list[_Read]:
    """A list, or an object per line."""
    start, end = text.find("["), text.rfind("]")
    items = _loads(text[start : end + 1]) if 0 <= start < end else None
    if not isinstance(items, list):
        lines = (line.strip().rstrip(",") for line in text.split("\n"))
        items = [_loads(line) for line in lines if line.startswith("{") and line.endswith("}")]
    return [read for item in items if (read := _json_item(item))]


def _loads(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _json_item(item: Any) -> _Read | None:
    if isinstance(item, str):
        return _clean(_plain(storable(item)))
    if not isinstance(item, dict):
        return None
    words = next((item[key] for key in ("thought", "step", "idea", "text") if isinstance(item.get(key), str)), "")
    cleaned = _clean(_plain(storable(words)))
    score = next((item[key] for key in ("score", "reasonableness", "rating") if key in item), None)
    if isinstance(score, str) and (found := re.fullmatch(rf"\s*{_NUMBER}\s*", score[:_FRILLS])):
        return cleaned and _Read(cleaned.text, min(_number(found[1]), 10), bool(found[2]))
    if cleaned is None or isinstance(score, bool) or not isinstance(score, int | float):
        return cleaned
    return _Read(cleaned.text, min(max(score, 0), 10) if score == score else 0)


def _from_lines(text: str) -> list[_Read]:
    lines = [_plain(line) for line in _split_fences(text)[0] if line.strip()]
    marked = [line for line in lines if _MARK.match(line)]
    return [read for line in (marked or lines) if (read := _clean(line))]


def _plain(line: str) -> str:
    """A line with single spaces and without Markdown's bold; one that is too long for a thought stays as it is."""
    line = " ".join(line.split())
    if len(line) > MAX_THOUGHT + _FRILLS:
        return line
    line = _BOLD.sub(r"\1", line)
    return re.sub(r"^\*\*(?=[A-Z\d])|\*+$", "", line)  # of bold that goes on in another line


def _clean(line: str) -> _Read | None:
    if len(line) > MAX_THOUGHT + _FRILLS:
        return None
    line = _MARK.sub("", line, count=1)
    score, of_ten = None, False
    if found := _SCORE.search(line):
        number, ten = found[1] or found[3], found[2] or found[4]
        if float(number) <= 10:
            score, of_ten = _number(number), bool(ten)
            line = line[: found.start()].rstrip(" -\u2013\u2014:,")
    words = line.strip().strip("\"'").strip()
    # A line that only announces a list, only gives a score, or is code, is not a thought.
    if (
        not 8 <= len(words) <= MAX_THOUGHT
        or words.endswith(":")
        or re.match(r"(score|rating)\W*\d", words, re.IGNORECASE)
        or words.startswith(("def ", "import ", "return ", ">>>"))
    ):
        return None
    return _Read(words if words.endswith((".", "!", "?")) else words + ".", score, of_ten)


def _number(text: str) -> float:
    return float(text) if "." in text else int(text)


def _scaled(found: list[_Read]) -> list[Proposal]:
    """Proposals with scores in [0, 1]."""
    scores = [read.score for read in found if read.score is not None]
    fractions = any(isinstance(score, float) for score in scores) and not any(read.of_ten for read in found)
    whole = 1.0 if fractions and max(scores) <= 1 else 10.0
    return [Proposal(read.text, _DEFAULT_SCORE if read.score is None else read.score / whole) for read in found]


def _split_fences(text: str) -> tuple[list[str], list[tuple[str, str]]]:
    """The lines outside code fences, and each fenced block as (language, body).

    A fence that names a language opens a block even inside another (models fence twice); the last may stay open. What is
    indented four columns beyond the block's own fence is its text.
    """
    prose: list[str] = []
    blocks: list[tuple[str, list[str]]] = []
    opened: tuple[int, str] | None = None  # columns of the open block's fence, and its characters
    for line in text.replace("\r\n", "\n").split("\n"):
        target = blocks[-1][1] if opened else prose
        before, columns, fence, language = _cut_fence(line)
        if language is None or (opened and (fence != opened[1] or columns > opened[0] + 3)):
            target.append(line)
            continue
        if before.strip():
            target.append(before)
        if opened and not language:
            opened = None
        else:
            opened = columns, fence
            blocks.append((language, []))
    return prose, [(language, "\n".join(body)) for language, body in blocks]


def _cut_fence(line: str) -> tuple[str, int, str, str | None]:
    """What stands before a fence, its column, its characters, and its language; the last is None without a fence."""
    if found := _FENCE.fullmatch(line):
        language = _LANGUAGE.match(found[3].lstrip(" \t{."))
        return "", len(found[1].expandtabs(4)), found[2], language[0].lower() if language else ""
    at = line.rfind("```")
    end = _FENCE_END.fullmatch(line, at + 3) if at >= 0 else None
    return (line[:at].rstrip("`"), 0, "```", end[1].lower()) if end else (line, 0, "", None)


def extract_program(text: str, starter_code: str = "") -> str | None:
    """The program in a reply: the longest fenced block of Python, one that defines a function before all others; without a
    block, the reply itself if it looks like code.

    A block that only continues ``starter_code`` (a function's body, indented or not) is put under it.

    Returns:
        Source text, or None when the reply holds no code or more than `MAX_PROGRAM` characters of it.
    """
    text = _answer(text)
    blocks = [body for language, body in _split_fences(text)[1] if _PYTHON.fullmatch(language) and body.strip()]
    if blocks:
        code = max(blocks, key=lambda body: (bool(_DEFINITION.search(body)), len(body)))
    elif _CODE.search(text):
        code = "\n".join(_cut_fence(line)[0] for line in text.replace("\r\n", "\n").split("\n"))
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
