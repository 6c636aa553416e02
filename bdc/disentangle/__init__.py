"""Disentangle: traces become K clusters of problems and one LoRA expert for each (DisenLoRA, arXiv 2502.12492)."""

from __future__ import annotations

from bdc.disentangle.settings import RELEASE, DisentangleSettings

__all__ = ["RELEASE", "DisentangleSettings"]
