"""Where in a completion the answer stands: everywhere, behind a mark, or inside a tag.

    answer_in("<think>7?</think><answer>8</answer>", Exact(tag="answer"))      "8"

The last one counts: what a model weighs while it reasons is not its answer.
"""

from __future__ import annotations

from whet.config.rules import Answer


def answer_in(text: str, where: Answer) -> str | None:
    """The answer, or None for a completion without one."""
    if where.after is not None:
        _, mark, text = text.rpartition(where.after)
        if not mark:
            return None
    if where.tag is None:
        return text
    end = text.rfind(f"</{where.tag}>")
    start = text.rfind(opening := f"<{where.tag}>", 0, max(end, 0))
    return None if end < 0 or start < 0 else text[start + len(opening) : end]


def as_answer(text: str, where: Answer) -> str:
    """A completion whose answer is `text`."""
    tagged = text if where.tag is None else f"<{where.tag}>{text}</{where.tag}>"
    return tagged if where.after is None else f"{where.after}\n{tagged}"
