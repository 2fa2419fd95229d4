"""Colours of lines and points, shared by all pages."""

from __future__ import annotations

__all__ = ["COLOURS", "GREY"]

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#56b4e9", "#8a6fd1", "#e69f00")
"""Told apart by colour-blind eyes, and on white as on black (after Okabe and Ito, 2008)."""
GREY = "#888888"
