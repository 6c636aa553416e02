"""One self-contained HTML file per run, and the results table for the terminal."""

from __future__ import annotations

from bdc.report.page import render

__all__ = ["render"]
