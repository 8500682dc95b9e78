"""Texts of models and people as the page shows them: their beginning, where they are long."""

from __future__ import annotations

LONGEST = 4000
"""Characters of a text that are shown."""


def cut(text: str) -> str:
    """Long texts by their beginning, and said so: on a line of its own, which no letter of the text can turn round."""
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}\n[…{len(text) - LONGEST:,} more characters]"
