"""What a chat template writes of a conversation, tried out with a word to look for.

    template "{% for m in messages %}{{ m.content }}{% endfor %}"
        row with tools, or an assistant turn that calls one  ->  DataError: nothing would be left of them

A template says nothing about what it leaves out: a call would be learnt as an empty answer. Each ability is tried once,
when a row first needs it, in a few conversations that templates commonly take. Those that the template refuses prove
nothing: only where it writes some of them, none with the word, the ability is missing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from whet.errors import DataError
from whet.schema.records import Message, Origin

Write = Callable[[Sequence[Message], Sequence[Mapping[str, Any]]], str]
"""The template's text of turns and tools; raises DataError where it refuses them."""
WORD, FIRST = "whetprobe", "whetfirst"

_ASKED, _SAID, _NEXT = Message("user", "question"), Message("assistant", "answer"), Message("user", "next")
_TOOLS = (
    {
        "type": "function",
        "function": {
            "name": WORD,
            "description": WORD,
            "parameters": {
                "type": "object",
                "properties": {WORD: {"type": "string", "description": WORD}},
                "required": [WORD],
            },
        },
    },
)
_OTHER_TOOLS = (
    {
        "type": "function",
        "function": {"name": "f", "description": "f", "parameters": {"type": "object", "properties": {}}},
    },
)
_CALLS = Message("assistant", "", tool_calls=({"name": WORD, "arguments": {WORD: WORD}},))
_CALLED = Message("assistant", "", tool_calls=({"name": "f", "arguments": {}},))
_RESULT, _WORD_RESULT = Message("tool", "result"), Message("tool", WORD)
_SYSTEM, _WORD_SYSTEM = Message("system", FIRST), Message("system", WORD)

Trial = tuple[tuple[Message, ...], tuple[Mapping[str, Any], ...]]
TRIALS: Mapping[str, tuple[Trial, ...]] = {
    "which tools there are": (((_ASKED,), _TOOLS), ((_SYSTEM, _ASKED), _TOOLS)),
    "the calls of tools": tuple(
        (turns, tools)
        for tools in ((), _OTHER_TOOLS)
        for turns in ((_ASKED, _CALLS), (_ASKED, _CALLS, _RESULT), (_ASKED, _CALLS, _RESULT, _SAID))
    ),
    "the turns of tools": tuple(
        (turns, tools)
        for tools in ((), _OTHER_TOOLS)
        for turns in ((_ASKED, _CALLED, _WORD_RESULT), (_ASKED, _CALLED, _WORD_RESULT, _SAID), (_ASKED, _WORD_RESULT))
    ),
    "one of two system turns": (((_SYSTEM, _WORD_SYSTEM, _ASKED), ()),),
    "one of two system turns apart": (
        ((_SYSTEM, _ASKED, _SAID, _WORD_SYSTEM, _NEXT), ()),
        ((_SYSTEM, _ASKED, _WORD_SYSTEM), ()),
    ),
    "a system turn after the first question": (
        ((_ASKED, _SAID, _WORD_SYSTEM, _NEXT), ()),
        ((_ASKED, _WORD_SYSTEM), ()),
    ),
}
"""What a row may need -> conversations in which a template that can write it writes the word, and the first one."""


class Abilities:
    """Those of one template."""

    def __init__(self, write: Write) -> None:
        self._write = write
        self._known: dict[str, bool] = {}

    def check(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]], origin: Origin | None) -> None:
        """Raises DataError where the row holds what the template leaves out."""
        for need, field in _needs(messages, tools):
            if need not in self._known:
                self._known[need] = self._has(TRIALS[need])
            if not self._known[need]:
                raise DataError(
                    f"the chat template leaves out {need}",
                    file=origin.file if origin else None,
                    line=origin.line if origin else None,
                    field=field,
                    fix="give another by model.chat_template, or remove the row",
                )

    def _has(self, trials: Sequence[Trial]) -> bool:
        """False only where some are written, and none of them with the word."""
        written = 0
        for turns, tools in trials:
            try:
                text = self._write(turns, tools)
            except DataError:
                continue
            if WORD in text and (FIRST in text or _SYSTEM not in turns):
                return True
            written += 1
        return not written


def _needs(messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    """What a row asks of its template beyond questions, answers and a system turn before them; and where."""
    if tools:
        yield "which tools there are", "tools"
    for index, message in enumerate(messages):
        if message.tool_calls:
            yield "the calls of tools", f"messages[{index}].tool_calls"
        if message.role == "tool":
            yield "the turns of tools", f"messages[{index}]"
        if message.role == "system" and index:
            if messages[index - 1].role == "system":
                need = "one of two system turns"
            elif any(earlier.role == "system" for earlier in messages[:index]):
                need = "one of two system turns apart"
            else:
                need = "a system turn after the first question"
            yield need, f"messages[{index}]"
