"""Answers that people have scored -> how far a judge agrees with them, and examples that teach it to judge.

The evaluation fine-tuning data of Self-Rewarding (Yuan et al., 2401.10020, section 2.2): the judge's own judgements of
the answers to a prompt become examples where its scores stand in the people's order; where one score is the commonest,
some of its examples are left out.

    people     A > B, A > C          (B and C were not told apart)
    scores     A 4, B 2, C 2         the same order: three examples
               A 4, B 4, C 2         another: none
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from whet.data.images import IMAGE
from whet.experience.told import HumanScored
from whet.rewards.pointwise import PointForm
from whet.rewards.transcript import images_of
from whet.schema.rollouts import Group

Dropped = Literal["no_order", "unreadable", "other_order", "no_score", "off_scale"]
DROPPED: dict[Dropped, str] = {
    "no_order": "people told no two of the answers apart",
    "unreadable": "no vote could be read for every answer",
    "other_order": "in no vote the scores stand in the people's order",
    "no_score": "people only compared the answers, and gave no score",
    "off_scale": "a score that people gave is not on the judge's scale",
}
"""Why a prompt gives no examples."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """A judgement to learn from."""

    question: str
    answer: str
    score: float
    images: Mapping[str, list[str]] = field(default_factory=dict)
    """The column of pictures that the question is about, where there are any."""

    def row(self) -> dict[str, Any]:
        marks = IMAGE * len(self.images.get("images", ()))
        turns = [{"role": "user", "content": marks + self.question}, {"role": "assistant", "content": self.answer}]
        return {"messages": turns, **self.images, "score": self.score}


@dataclass(slots=True)
class ExampleCounts:
    """What became of the prompts: total = kept + dropped by reason; `left_out` are examples of the commonest score."""

    total: int = 0
    kept: int = 0
    dropped: Counter[Dropped] = field(default_factory=Counter)
    left_out: int = 0

    def to_json(self) -> dict[str, int]:
        return {"total": self.total, "kept": self.kept} | {reason: self.dropped[reason] for reason in DROPPED}

    def describe(self) -> str:
        reasons = [f"{count}: {DROPPED[reason]}" for reason, count in self.dropped.most_common()]
        return f"examples from {self.kept} of {self.total} prompts" + (f" ({'; '.join(reasons)})" if reasons else "")


def agreement_with_people(told: Sequence[HumanScored], judged: Sequence[Group]) -> dict[str, float]:
    """How often judge and people agree; what has nothing to be measured on is left out.

    - `human_agreement`: of `human_agreement_num` pairs of answers to one prompt that people told apart, and that both
      have a score, the share in which the better one scores higher, ties half
    - `human_same_order`: of the prompts all of whose answers have a score, those in the people's order without a tie
    """
    points: list[float] = []
    orders: list[bool] = []
    for one, group in zip(told, judged, strict=True):
        scores = [score.value for score in group.scores]
        mine = [_points(scores[better], scores[worse]) for better, worse in one.ordered]
        points += [point for point in mine if point is not None]
        if mine and None not in mine:
            orders.append(all(point == 1.0 for point in mine))
    values = {
        "human_agreement": _mean(points),
        "human_agreement_num": float(len(points)),
        "human_same_order": _mean(list(map(float, orders))),
    }
    return {name: value for name, value in values.items() if not math.isnan(value)}


def agreeing_examples(
    told: Sequence[HumanScored], judged: Sequence[Group], form: PointForm, counts: ExampleCounts
) -> list[Example]:
    """Of each prompt the judgements of the first vote whose scores stand in the people's order."""
    examples: list[Example] = []
    for one, group in zip(told, judged, strict=True):
        outcome = _first_agreeing(one, group)
        counts.total += 1
        if isinstance(outcome, str):
            counts.dropped[outcome] += 1
            continue
        counts.kept += 1
        for place, (reply, score) in enumerate(outcome):
            asked, images = _question(form, group, place), images_of(group.prompt)
            examples.append(Example(question=asked, answer=reply, score=score, images=images))
    return examples


def human_examples(told: Sequence[HumanScored], form: PointForm, counts: ExampleCounts) -> list[Example]:
    """The people's own scores in the judge's form, behind their reason if there is one (for `score_first` before)."""
    config = form.config
    examples: list[Example] = []
    for one in told:
        counts.total += 1
        scored = [(place, value) for place, value in enumerate(one.values) if value is not None]
        if not scored or not all(config.low <= value <= config.high for _, value in scored):
            counts.dropped["off_scale" if scored else "no_score"] += 1
            continue
        counts.kept += 1
        for place, value in scored:
            reason = one.reasons[place]
            said = [reason.strip()] if reason and reason.strip() else []
            score = f"Score: {value:g}"
            words = [score, *said] if config.template == "score_first" else [*said, score]
            asked, images = _question(form, one.group, place), images_of(one.group.prompt)
            examples.append(Example(question=asked, answer="\n".join(words), score=value, images=images))
    return examples


def without_commonest(examples: Sequence[Example], seed: int, counts: ExampleCounts) -> list[Example]:
    """The examples with those of the commonest score thinned out, at random, to the number of the next."""
    (common, num), *rest = Counter(example.score for example in examples).most_common(2) or [(0.0, 0)]
    most = rest[0][1] if rest else num
    places = [place for place, example in enumerate(examples) if example.score == common]
    out = set(random.Random(f"examples {seed}").sample(places, num - most))
    counts.left_out = len(out)
    return [example for place, example in enumerate(examples) if place not in out]


def _first_agreeing(one: HumanScored, group: Group) -> list[tuple[str, float]] | Dropped:
    """Reply and written score of every answer in the first vote that agrees, or why there is none."""
    ordered = one.ordered
    if not ordered:
        return "no_order"
    votes = [[said for said in group.judgements if said.shown == (place,)] for place in range(len(one.values))]
    readable = False
    for said in zip(*votes, strict=True):
        if any(judgement.reading is None for judgement in said):
            continue
        readable = True
        scores = [judgement.reading[0] for judgement in said if judgement.reading]
        if all(scores[better] > scores[worse] for better, worse in ordered):
            return [(judgement.reply.strip(), score) for judgement, score in zip(said, scores, strict=True)]
    return "other_order" if readable else "unreadable"


def _question(form: PointForm, group: Group, place: int) -> str:
    return form.question(group.prompt, [group.completions[place].text])


def _points(better: float | None, worse: float | None) -> float | None:
    if better is None or worse is None:
        return None
    return 1.0 if better > worse else 0.5 if better == worse else 0.0


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan
