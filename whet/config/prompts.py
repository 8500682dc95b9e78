"""Where the prompts of a round come from, and which are left out."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from whet.config.base import Section
from whet.config.rollout import Rollout
from whet.config.values import Place

BEYOND_TEXT = (
    "image", "images", "graph", "graphs", "picture", "pictures", "file", "files", "map", "maps", "draw", "plot",
    "go to",
)  # fmt: skip
"""Words of tasks that a model of text cannot do (Self-Instruct's list)."""


class _Filters(Section):
    max_similarity: float | None = Field(None, gt=0.0, le=1.0)
    """ROUGE-L (0 to 1) from which a prompt is too like one taken, seen or held out that shows the same pictures; null
    leaves out the same prompts only."""
    min_words: int = Field(0, ge=0)
    """A prompt with fewer words is too short. A Chinese, Japanese or Korean character is a word."""
    max_words: int | None = Field(None, ge=1)
    """A prompt with more words is too long."""
    keywords: tuple[str, ...] = ()
    """Words and phrases that no prompt may have, in any case."""
    beginnings: tuple[str, ...] = ()
    """Words with which no prompt may begin, in any case."""
    punctuation_first: bool = True
    """Whether a prompt may begin with a sign that opens nothing, such as a comma or a dash."""


class GivenPrompts(_Filters):
    """The prompts of `data.files` themselves, in their order."""

    type: Literal["files"] = "files"


class SelfInstruct(_Filters):
    """New prompts by the model, which is shown some and asked for more (Self-Instruct, Wang et al., 2212.10560). The
    prompts of `data.files` are the tasks to begin with."""

    type: Literal["self_instruct"] = "self_instruct"
    shown_given: int = Field(6, ge=1)
    """Prompts of `data.files` that the model is shown at a time."""
    shown_made: int = Field(2, ge=0)
    """Prompts made before that it is shown with them; more of `data.files` where there are too few."""
    template: Place = "self_instruct"
    """`self_instruct`, or a text file with {tasks} (the prompts shown, numbered) and {number} (the next one)."""
    rollout: Rollout = Rollout(group_size=1, max_new_tokens=512, temperature=0.7, top_p=0.95)
    """How the model is asked; `group_size` replies to each list of prompts shown."""
    max_requests: int | None = Field(None, ge=1)
    """Lists that the model is shown at most; null is ten for each prompt wanted."""
    max_similarity: float | None = Field(0.7, gt=0.0, le=1.0)
    """ROUGE-L (0 to 1) from which a prompt is too like one taken, seen or held out that shows the same pictures; null
    leaves out the same prompts only."""
    min_words: int = Field(4, ge=0)
    """A prompt with fewer words is too short. A Chinese, Japanese or Korean character is a word."""
    max_words: int | None = Field(150, ge=1)
    """A prompt with more words is too long."""
    keywords: tuple[str, ...] = BEYOND_TEXT
    """Words and phrases that no prompt may have, in any case; by default what a model of text cannot do."""
    beginnings: tuple[str, ...] = ("Write a program",)
    """Words with which no prompt may begin, in any case."""
    punctuation_first: bool = False
    """Whether a prompt may begin with a sign that opens nothing, such as a comma or a dash."""


PromptSource = Annotated[GivenPrompts | SelfInstruct, Field(discriminator="type")]
