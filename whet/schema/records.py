"""Records: what a row of the user's file becomes, whatever format it was written in.

    {"instruction": "Add 2 and 3.", "input": "", "output": "5"}
        -> Conversation(messages=(Message("user", "Add 2 and 3."), Message("assistant", "5")), origin=a.json:1)

Every record knows the row it came from (`origin`), so that a later complaint can name file and line, and keeps the
columns nobody claimed (`columns`), so that checkers and rewards can read them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Role = Literal["system", "user", "assistant", "tool"]
ROLES: tuple[Role, ...] = ("system", "user", "assistant", "tool")


@dataclass(frozen=True, slots=True)
class Part:
    """One piece of a message: text, or an image by its path or a `data:` URL."""

    type: Literal["text", "image"]
    value: str


@dataclass(frozen=True, slots=True)
class Message:
    """One turn. `content` is plain text, or parts where images stand between the words."""

    role: Role
    content: str | tuple[Part, ...]
    tool_calls: tuple[Mapping[str, Any], ...] = ()
    """Calls an assistant turn makes, each `{"name": str, "arguments": {...}}`."""
    weight: float = 1.0
    """Weight of this turn's tokens in the loss; only assistant turns are trained."""

    @property
    def text(self) -> str:
        """The words of the turn, images left out."""
        if isinstance(self.content, str):
            return self.content
        return "".join(part.value for part in self.content if part.type == "text")

    @property
    def shown(self) -> str:
        """The words of the turn, and `[image]` where a picture stands: for people to read."""
        if isinstance(self.content, str):
            return self.content
        return "".join(part.value if part.type == "text" else "[image]" for part in self.content)


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where a record came from: the file as the user named it, and the 1-based line (or row) in it."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


NOWHERE = Origin(file="<memory>", line=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """Turns to learn from (SFT): every assistant turn is a target."""

    messages: tuple[Message, ...]
    tools: tuple[Mapping[str, Any], ...] = ()
    columns: Mapping[str, Any] = field(default_factory=dict)
    origin: Origin = NOWHERE


@dataclass(frozen=True, slots=True, kw_only=True)
class Preference:
    """One prompt, a response that was preferred and one that was not."""

    prompt: tuple[Message, ...]
    chosen: tuple[Message, ...]
    rejected: tuple[Message, ...]
    chosen_score: float | None = None
    rejected_score: float | None = None
    margin: float | None = None
    """How much better chosen is, where the data says so (reward models)."""
    tools: tuple[Mapping[str, Any], ...] = ()
    columns: Mapping[str, Any] = field(default_factory=dict)
    origin: Origin = NOWHERE


@dataclass(frozen=True, slots=True, kw_only=True)
class Rating:
    """One response called good or bad on its own (KTO)."""

    prompt: tuple[Message, ...]
    response: tuple[Message, ...]
    label: bool
    tools: tuple[Mapping[str, Any], ...] = ()
    columns: Mapping[str, Any] = field(default_factory=dict)
    origin: Origin = NOWHERE


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranking:
    """Several responses to one prompt, ordered: `ranks[i]` is the rank of `responses[i]`, 1 the best, ties allowed."""

    prompt: tuple[Message, ...]
    responses: tuple[str, ...]
    ranks: tuple[float, ...]
    tools: tuple[Mapping[str, Any], ...] = ()
    columns: Mapping[str, Any] = field(default_factory=dict)
    origin: Origin = NOWHERE


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """Responses to one prompt, each with a stored number.

    `kind` says what the numbers are: `reward` (any scale; `grpo_training.jsonl`) or `weight` (non-negative, summing
    to one; `gspo_training.jsonl`).
    """

    prompt: tuple[Message, ...]
    responses: tuple[str, ...]
    values: tuple[float, ...]
    kind: Literal["reward", "weight"]
    tools: tuple[Mapping[str, Any], ...] = ()
    columns: Mapping[str, Any] = field(default_factory=dict)
    origin: Origin = NOWHERE


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """A question to answer. `reference` is the gold answer, for checkers and metrics only: never shown to a model."""

    messages: tuple[Message, ...]
    reference: str | None = None
    answer: str | None = None
    """The row's own answer as it is written there, working and all, where it has one; as little shown to a model."""
    tools: tuple[Mapping[str, Any], ...] = ()
    columns: Mapping[str, Any] = field(default_factory=dict)
    origin: Origin = NOWHERE


Record = Conversation | Preference | Rating | Ranking | Scored | Prompt
RecordKind = Literal["conversation", "preference", "rating", "ranking", "scored", "prompt"]


def kind_of(record: Record) -> RecordKind:
    """The word for a record's type, as plans and pages write it."""
    match record:
        case Conversation():
            return "conversation"
        case Preference():
            return "preference"
        case Rating():
            return "rating"
        case Ranking():
            return "ranking"
        case Scored():
            return "scored"
        case Prompt():
            return "prompt"
