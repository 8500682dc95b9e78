"""Rollouts: what an engine is asked, what it answers, how that is scored, and the group they form.

    Request -> Completion -> Judgement -> Score -> Group
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from whet.schema.pictures import Picture
from whet.schema.records import Message, Prompt

FinishReason = Literal["stop", "length", "error"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How tokens are drawn. `temperature=0` takes the most likely token."""

    max_new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    """Keep the k most likely tokens; 0 keeps all."""
    min_p: float = 0.0
    """Keep tokens at least this many times as likely as the likeliest; 0 keeps all."""
    stop: tuple[str, ...] = ()
    """Texts that end an answer; they are not part of its text, though their ids are among its ids."""
    min_new_tokens: int = 0
    """The ids that end a turn cannot be drawn before this many tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One sample to draw. The key names it for ever: results are stored, resumed and seeded by it."""

    key: str
    """Unique within a job, for example `train.jsonl:17#3` (prompt, sample index)."""
    prompt_ids: tuple[int, ...]
    sampling: Sampling
    seed: int
    """The sample's randomness is a function of (seed, key) alone, never of the batch it happens to run in."""
    messages: tuple[Message, ...] = ()
    """What `prompt_ids` says, for servers that take no ids and render for themselves."""
    tools: tuple[Mapping[str, Any], ...] = ()
    """Tools the messages may call, as in a prompt."""
    pictures: tuple[Picture, ...] = ()
    """Those whose placeholders stand in `prompt_ids`, in their order."""
    logprobs: bool = True
    """Whether the log-probs of the drawn ids are wanted: a server computes and sends them for that alone."""
    continuations: tuple[tuple[int, ...], ...] = ()
    """Where there are any, nothing is drawn: the log-prob of each after the prompt is asked for instead. An engine that
    cannot say answers with an error."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A prompt as engines take it: ids for those that have the model, messages for servers that render themselves."""

    prompt_ids: tuple[int, ...]
    messages: tuple[Message, ...]
    tools: tuple[Mapping[str, Any], ...] = ()
    pictures: tuple[Picture, ...] = ()

    def request(self, key: str, sampling: Sampling, seed: int) -> Request:
        return Request(
            key=key, prompt_ids=self.prompt_ids, messages=self.messages, tools=self.tools, pictures=self.pictures,
            sampling=sampling, seed=seed,
        )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """What came back for a request. A failed one is data: `finish_reason="error"` with the reason in `error`."""

    key: str
    ids: tuple[int, ...]
    """Generated token ids, the end-of-turn token included where it was drawn."""
    text: str
    """Decoded without special tokens."""
    logprobs: tuple[float, ...]
    """Log-probability of each id under the distribution it was drawn from (after temperature, top-k, top-p, min-p)."""
    policy_logprobs: tuple[float, ...] = ()
    """Log-probability of each id under the model itself: temperature 1, nothing cut."""
    finish_reason: FinishReason
    policy_version: int = 0
    counted_tokens: int | None = None
    """Generated tokens as a server counts them that does not name their ids; None where `ids` says it."""
    error: str | None = None
    continuation_logprobs: tuple[float, ...] = ()
    """Log-probability of each of the request's continuations under the model itself, summed over its tokens."""

    @property
    def num_tokens(self) -> int:
        return len(self.ids) if self.counted_tokens is None else self.counted_tokens

    @property
    def is_trainable(self) -> bool:
        """Whether there are tokens that a policy could learn from."""
        return bool(self.ids) and self.finish_reason != "error"


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """One reply of a judge about one completion of a group, or about several that it was shown together."""

    shown: tuple[int, ...]
    """Places of the completions in the group, in the order in which the judge saw them."""
    reply: str
    reading: tuple[float, ...] | None
    """A number for each completion shown: its score; of two 1 and 0, or a half each for a tie; of a list the ranks,
    1 the best and equals sharing the mean of theirs. None where the reply could not be read."""
    num_tokens: int = 0
    """Length of the reply."""
    mass: float | None = None
    """Probability that lay on the scale where the score was weighed by probability."""
    error: str | None = None
    """Why there was no reply."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """A judgement of one completion: `value` is None where none could be made, and then `error` says why."""

    value: float | None
    parts: Mapping[str, float] = field(default_factory=dict)
    votes: tuple[str, ...] = ()
    """The judge's raw words, one entry a vote."""
    error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """All completions of one prompt, with their scores in the same order."""

    prompt: Prompt
    completions: tuple[Completion, ...]
    scores: tuple[Score, ...]
    """Empty before they are judged."""
    judgements: tuple[Judgement, ...] = ()
    """What the scores were made of, where a language model judged."""
    columns: Mapping[str, Any] = field(default_factory=dict)
