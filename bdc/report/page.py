"""Render a run as one HTML file that needs nothing else: styles, scripts and data are inside it."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from bdc.report.collect import collect
from bdc.runs import Run

STYLES = ("base.css", "charts.css", "trees.css")
SCRIPTS = (
    *("base.js", "header.js", "results.js", "map.js", "trees.js", "treeview.js", "weights.js", "costs.js"),
    "start.js",  # draws what the others declare
)


def render(run: Run, models: Sequence[str] = ()) -> str:
    """The report of ``run``, whose stages use these ``models``, as HTML.

    A section whose input is missing says which command makes it. Texts of problems, models and programs reach the
    page only inside one JSON block and from there only as text nodes; the content policy admits this page's own
    script and no network.

    Raises:
        InputError: an artefact of the run is there and cannot be read.
    """
    return page(collect(run, models))


def page(data: dict[str, Any]) -> str:
    """The HTML of what :func:`bdc.report.collect.collect` gathered."""
    style, script = _bundle(STYLES), _bundle(SCRIPTS)
    parts = {
        "title": html.escape(str(data["header"]["name"])),
        "policy": (
            "default-src 'none'; base-uri 'none'; form-action 'none'; img-src data:;"
            f" style-src '{_source_hash(style)}'; script-src '{_source_hash(script)}'"
        ),
        "style": style,
        "script": script,
        "data": embed_json(data),
    }
    # One pass over the template only, so that a text which looks like a placeholder stays what it is.
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], _static("template.html"))


def embed_json(data: Any) -> str:
    """ASCII JSON that cannot end its ``<script>`` element or open a comment in it."""
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _bundle(names: tuple[str, ...]) -> str:
    return "\n" + "\n".join(_static(name) for name in names)


def _static(name: str) -> str:
    return (files("bdc.report") / "static" / name).read_text(encoding="utf-8")


def _source_hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
