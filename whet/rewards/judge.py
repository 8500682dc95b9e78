"""Judges: groups of completions -> the same groups with scores.

A language model judges in one of three forms, each a file of its own: every answer alone (`pointwise`), two by two in
both orders (`pairwise`), all in one reply (`listwise`). The judge's prompt goes through the checkpoint's chat template
and is never shortened: one that does not fit the model comes back as an error with its length. An answer that is empty
or failed is not shown to anybody, and its score says so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, assert_never

from whet.config.judge import Asking, LanguageJudge, Listwise, Pairwise, PointwiseForm
from whet.data.render import Renderer
from whet.rewards.expectation import Expectation
from whet.rewards.listwise import ListForm
from whet.rewards.pairwise import PairForm
from whet.rewards.pointwise import PointForm
from whet.rewards.reward import Reward
from whet.rewards.template import SHIPPED, read_template
from whet.rewards.transcript import about
from whet.schema.records import Message, Prompt
from whet.schema.rollouts import Asked, Completion, Group, Judgement, Request, Sampling, Score

Answer = Callable[[Sequence[Request]], list[Completion]]
"""Whoever speaks for the judge: one completion a request, in their order."""


class Judge(Protocol):
    """Scores groups."""

    def judge(self, groups: Sequence[Group], answer: Answer) -> list[Group]:
        """The groups with scores, and with the judgements they were made of."""
        ...

    def num_requests(self, group_size: int) -> int:
        """The most that is asked about a group: what a progress bar counts on."""
        ...


class Form(Protocol):
    """What a language model is shown of a group, what is read out of its reply, and what the answers are worth then."""

    def shown(self, places: Sequence[int], key: str, votes: int) -> list[tuple[tuple[int, ...], int]]:
        """What is asked: completions by their places, in the order they are shown in, and the number of the vote."""
        ...

    def question(self, prompt: Prompt, texts: Sequence[str]) -> str:
        """What the judge is told."""
        ...

    def read(self, reply: str, num: int, *, cut: bool) -> tuple[float, ...] | None:
        """A number for each of the `num` completions shown (see `Judgement.reading`); `cut` where the reply was."""
        ...

    def scores(self, places: Sequence[int], judgements: Sequence[Judgement]) -> dict[int, Score]:
        """One score a place."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One thing a judge is asked."""

    shown: tuple[int, ...]
    messages: tuple[Message, ...]
    request: Request


@dataclass(frozen=True, slots=True, kw_only=True)
class AskedJudge:
    """A language model that judges in words."""

    config: Asking
    form: Form
    renderer: Renderer
    seed: int
    expectation: Expectation | None = None
    """Weighs the scores of a pointwise judge by their probability."""

    def judge(self, groups: Sequence[Group], answer: Answer) -> list[Group]:
        asked = [self.questions(group) for group in groups]
        replies = iter(answer([question.request for questions in asked for question in questions]))
        judged = [
            self.judged(group, questions, [next(replies) for _ in questions])
            for group, questions in zip(groups, asked, strict=True)
        ]
        if self.expectation is None:
            return judged
        places = [self.places(group, questions) for group, questions in zip(judged, asked, strict=True)]
        said = iter(answer([request for requests in places for request in requests]))
        return [
            self.weighed(group, [next(said) for _ in requests]) for group, requests in zip(judged, places, strict=True)
        ]

    def num_questions(self, group_size: int) -> int:
        """The most that is asked in words about a group."""
        return len(self.form.shown(range(group_size), "", self.config.votes))

    def num_requests(self, group_size: int) -> int:
        asked = self.num_questions(group_size)
        return asked if self.expectation is None else 2 * asked

    def questions(self, group: Group) -> list[Question]:
        """Everything the judge is asked about a group; the same things always have the same keys."""
        sampling = Sampling(
            max_new_tokens=self.config.max_new_tokens, temperature=self.config.temperature, top_p=self.config.top_p
        )
        rendered: dict[tuple[int, ...], tuple[tuple[Message, ...], Asked]] = {}
        found = []
        for shown, vote in self.form.shown(judgeable(group), group.completions[0].key, self.config.votes):
            if len(shown) > 1 and len({group.completions[place].text for place in shown}) == 1:
                continue  # there is nothing to compare
            if shown not in rendered:
                rendered[shown] = self._rendered(group, shown)
            messages, asked = rendered[shown]
            first, *others = shown
            with_others = f"[{'.'.join(map(str, others))}]" if others else ""
            key = f"{group.completions[first].key}/judge{with_others}{vote}"
            found.append(Question(shown=shown, messages=messages, request=asked.request(key, sampling, self.seed)))
        return found

    def judged(self, group: Group, questions: Sequence[Question], replies: Sequence[Completion]) -> Group:
        """The group with what was read in the replies."""
        judgements = [
            Judgement(
                shown=question.shown,
                reply=reply.text,
                reading=self._reading(reply, len(question.shown)),
                num_tokens=reply.num_tokens,
                error=reply.error,
            )
            for question, reply in zip(questions, replies, strict=True)
        ]
        return self._scored(group, judgements)

    def _reading(self, reply: Completion, num: int) -> tuple[float, ...] | None:
        if reply.finish_reason == "error":
            return None
        return self.form.read(reply.text, num, cut=reply.finish_reason == "length")

    def places(self, group: Group, questions: Sequence[Question]) -> list[Request]:
        """What is asked about the places of the scores in a judged group's readable replies, where they are weighed."""
        if self.expectation is None:
            return []
        return [
            self.expectation.request(question.request, question.messages, judgement.reply)
            for question, judgement in zip(questions, group.judgements, strict=True)
            if judgement.reading is not None
        ]

    def weighed(self, group: Group, said: Sequence[Completion]) -> Group:
        """A judged group with expected scores in place of those written; what could not be read stays unreadable."""
        if self.expectation is None:
            return group
        answers = iter(said)
        return self._scored(
            group,
            [
                one if one.reading is None else self.expectation.weighed(one, next(answers))
                for one in group.judgements
            ],
        )  # fmt: skip

    def _rendered(self, group: Group, shown: tuple[int, ...]) -> tuple[tuple[Message, ...], Asked]:
        texts = [group.completions[place].text for place in shown]
        messages = (about(group.prompt, self.form.question(group.prompt, texts)),)
        return messages, self.renderer.ask(messages, origin=group.prompt.origin)

    def _scored(self, group: Group, judgements: Sequence[Judgement]) -> Group:
        scores = self.form.scores(judgeable(group), judgements)
        return replace(
            group,
            judgements=tuple(judgements),
            scores=tuple(
                scores[place] if place in scores else Score(value=None, error=unjudged(completion))
                for place, completion in enumerate(group.completions)
            ),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardAsJudge:
    """A reward in the judge's place; nobody is asked for words."""

    reward: Reward

    def judge(self, groups: Sequence[Group], answer: Answer) -> list[Group]:
        places = [(number, place) for number, group in enumerate(groups) for place in judgeable(group)]
        given = self.reward.score(
            [groups[number].prompt for number, _ in places],
            [groups[number].completions[place] for number, place in places],
        )
        scores = dict(zip(places, given, strict=True))
        return [
            replace(
                group,
                scores=tuple(
                    scores.get((number, place)) or Score(value=None, error=unjudged(completion))
                    for place, completion in enumerate(group.completions)
                ),
            )
            for number, group in enumerate(groups)
        ]

    def num_requests(self, group_size: int) -> int:
        return 0


def build_judge(config: LanguageJudge | PointwiseForm, renderer: Renderer, *, seed: int) -> AskedJudge:
    """Raises ConfigError where the template is missing or lacks a placeholder."""
    expectation = None
    form: Form
    match config:
        case PointwiseForm():
            form = PointForm(config=config, template=_template(config.template, "additive"))
            expectation = Expectation(config=config, renderer=renderer) if config.scores == "expectation" else None
        case Pairwise():
            form = PairForm(config=config, template=_template(config.template, "pairwise"))
        case Listwise():
            form = ListForm(template=_template(config.template, "listwise"), seed=seed)
        case _:
            assert_never(config)
    return AskedJudge(config=config, form=form, renderer=renderer, seed=seed, expectation=expectation)


def judgeable(group: Group) -> list[int]:
    """Places of the completions that a judge can be shown."""
    return [place for place, completion in enumerate(group.completions) if unjudged(completion) is None]


def unjudged(completion: Completion) -> str | None:
    """Why a completion is shown to no judge; None for any other."""
    if completion.finish_reason == "error":
        return f"no answer: {completion.error}"
    return None if completion.text.strip() else "empty answer"


def _template(name: str, like: str) -> str:
    return read_template(name, SHIPPED[like])
