"""The model as its own judge: candidates -> judge requests -> replies -> scores.

Additive five points with the reason before the score (Yuan et al., 2401.10020), or the score-first form, or the user's
template. Each candidate is judged `votes` times; its score is the mean of the votes that can be read (see
`whet.rewards.parse`), and none where none can. The judge's prompt goes through the checkpoint's chat template and is
never shortened: one that does not fit the model comes back as an error with its length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from whet.config.rollout import Judge
from whet.data.render import Renderer
from whet.rewards.parse import parse_score
from whet.rewards.template import fill, read_template
from whet.schema.records import Message, Prompt
from whet.schema.rollouts import Completion, Request, Sampling, Score


@dataclass(frozen=True, slots=True, kw_only=True)
class PointJudge:
    """Scores answers one at a time."""

    config: Judge
    template: str
    renderer: Renderer
    seed: int

    def requests(self, prompt: Prompt, candidate: Completion) -> list[Request]:
        """One request a vote; none for an answer that is empty or failed, which `score` then says."""
        if _unjudged(candidate):
            return []
        sampling = Sampling(
            max_new_tokens=self.config.max_new_tokens, temperature=self.config.temperature, top_p=self.config.top_p
        )
        values = {"instruction": transcript(prompt.messages), "response": candidate.text}
        asked = self.renderer.ask((Message("user", fill(self.template, values)),), origin=prompt.origin)
        return [
            asked.request(f"{candidate.key}/judge{vote}", sampling, self.seed)
            for vote in range(self.config.votes)
        ]

    def score(self, candidate: Completion, replies: Sequence[Completion]) -> Score:
        """Mean of the readable votes. `parts` has one entry for each of those, `votes` every reply as it was."""
        if problem := _unjudged(candidate):
            return Score(value=None, error=problem)
        order: Literal["first", "last"] = "first" if self.config.template == "score_first" else "last"
        parts: dict[str, float] = {}
        for vote, reply in enumerate(replies):
            value = parse_score(reply.text, self.config.low, self.config.high, take=order)
            if value is not None:
                parts[f"vote_{vote}"] = value
        votes = tuple(reply.text for reply in replies)
        if parts:
            return Score(value=sum(parts.values()) / len(parts), parts=parts, votes=votes)
        failed = next((reply.error for reply in replies if reply.error), None)
        error = f"the judge could not answer: {failed}" if failed else f"no score in {len(replies)} replies"
        return Score(value=None, votes=votes, error=error)


def build_judge(config: Judge, renderer: Renderer, *, seed: int) -> PointJudge:
    """Raises ConfigError where the template is missing or lacks a placeholder."""
    template = read_template(config.template, ("instruction", "response"))
    return PointJudge(config=config, template=template, renderer=renderer, seed=seed)


def transcript(messages: Sequence[Message]) -> str:
    """Messages as the judge reads them: a single question bare, several turns with their roles."""
    if len(messages) == 1:
        return messages[0].text
    return "\n\n".join(f"{message.role}: {message.text}" for message in messages)


def _unjudged(candidate: Completion) -> str | None:
    if candidate.finish_reason == "error":
        return f"no answer: {candidate.error}"
    return None if candidate.text.strip() else "empty answer"
