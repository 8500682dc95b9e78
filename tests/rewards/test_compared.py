"""Judges that compare answers: two by two in both orders, and all of a prompt at once."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoTokenizer

from tests.rewards.spoken import completion, group_of, said
from whet.config.judge import Listwise, Pairwise
from whet.data.render import Renderer
from whet.rewards.judge import AskedJudge, build_judge
from whet.rewards.pairwise import Comparison, compared, majority, swapped
from whet.schema.rollouts import Group, Request


@pytest.fixture(scope="module")
def renderer(tiny_checkpoint: Path) -> Renderer:
    return Renderer(AutoTokenizer.from_pretrained(tiny_checkpoint))


def pairs(renderer: Renderer, **config: object) -> AskedJudge:
    return build_judge(Pairwise.model_validate(config), renderer, seed=3)


def lists(renderer: Renderer, **config: object) -> AskedJudge:
    return build_judge(Listwise.model_validate(config), renderer, seed=3)


class Voice:
    """Reads its own prompt; `decide` is given the answers in the order in which they are shown."""

    def __init__(self, renderer: Renderer, decide) -> None:
        self._tokenizer, self._decide = renderer.template.tokenizer, decide
        self.asked: list[str] = []

    def __call__(self, request: Request) -> str:
        self.asked.append(request.key)
        prompt = self._tokenizer.decode(list(request.prompt_ids))
        if "<first>" in prompt:
            return f"So. Verdict: {self._decide(*(_between(prompt, tag) for tag in ('first', 'second')))}"
        num = prompt.count("</answer")
        return f"Ranking: {self._decide(*(_between(prompt, f'answer {n}') for n in range(1, num + 1)))}"


def _between(prompt: str, tag: str) -> str:
    return prompt.split(f"<{tag}>\n")[1].split(f"\n</{tag}>")[0]


def longer(first: str, second: str) -> str:
    return "tie" if len(first) == len(second) else "first" if len(first) > len(second) else "second"


def values(group: Group) -> list[float | None]:
    return [score.value for score in group.scores]


def test_every_pair_is_asked_in_both_orders(renderer: Renderer) -> None:
    voice, ready = Voice(renderer, longer), pairs(renderer)
    (judged,) = ready.judge([group_of("aaa", "b", "cc", "d")], said(voice))
    assert len(voice.asked) == len(set(voice.asked)) == 12 == ready.num_requests(4)
    assert voice.asked[:2] == ["k#0/judge[1]0", "k#1/judge[0]0"]
    # aaa wins 3 of 3; cc wins 2; b and d draw with each other and lose the rest
    assert values(judged) == [1.0, pytest.approx(0.5 / 3), pytest.approx(2 / 3), pytest.approx(0.5 / 3)]
    assert dict(judged.scores[1].parts) == {"won": 0, "tied": 1, "lost": 2}


def test_a_judge_that_favours_a_place_makes_ties(renderer: Renderer) -> None:
    (judged,) = pairs(renderer).judge([group_of("a", "bb", "ccc")], said(lambda request: "Verdict: first"))
    assert values(judged) == [0.5, 0.5, 0.5]
    assert not any(one.consistent for one in compared(judged.judgements).values())


def test_votes_decide_by_majority_in_each_order(renderer: Renderer) -> None:
    said_by_key = {"k#0/judge[1]": ["first", "first", "tie"], "k#1/judge[0]": ["second", "hm", "second"]}

    def speak(request: Request) -> str:
        return f"Verdict: {said_by_key[request.key[:-1]][int(request.key[-1])]}"

    (judged,) = pairs(renderer, votes=3).judge([group_of("a", "b")], said(speak))
    assert values(judged) == [1.0, 0.0]


@pytest.mark.parametrize("aggregate", ["win_share", "bradley_terry"])
def test_an_unreadable_comparison_says_nothing(renderer: Renderer, aggregate: str) -> None:
    """Of three answers, the first pair cannot be read in one order: it is left out, and no tie."""
    voice = Voice(renderer, longer)

    def speak(request: Request) -> str:
        return "?" if request.key == "k#1/judge[0]0" else voice(request)

    (judged,) = pairs(renderer, aggregate=aggregate).judge([group_of("ccc", "bb", "a")], said(speak))
    first, second, third = values(judged)
    assert first is not None and second is not None and third is not None
    assert first == pytest.approx(second) and second > third, "each beat the third, no more is known"
    (unread,) = pairs(renderer, aggregate=aggregate).judge([group_of("a", "b")], said(lambda request: "?"))
    assert values(unread) == [None, None]
    assert unread.scores[0].error == "no verdict in both orders in 2 replies"


def test_equal_and_empty_answers_are_not_compared(renderer: Renderer) -> None:
    voice = Voice(renderer, longer)
    (judged,) = pairs(renderer).judge([group_of("aa", "aa", "", "b")], said(voice))
    assert len(voice.asked) == 4 and values(judged) == [1.0, 1.0, None, 0.0]
    (alone,) = pairs(renderer).judge([group_of("aa", "")], said(voice))
    assert values(alone) == [None, None] and alone.scores[0].error == "nothing to compare"


def test_verdict_arithmetic() -> None:
    assert [Comparison("first", "first").points, Comparison("second", "second").points] == [1.0, 0.0]
    assert {Comparison(*both).points for both in (("tie", "tie"), ("first", "second"), ("first", None))} == {0.5}
    assert majority(["first", "second", "first", None]) == "first"
    assert majority(["first", "second"]) == "tie" and majority([None, None]) is None
    assert [swapped(verdict) for verdict in ("first", "second", "tie", None)] == ["second", "first", "tie", None]


def by_length(*shown: str) -> str:
    order = sorted(range(len(shown)), key=lambda place: -len(shown[place]))
    return " > ".join(str(place + 1) for place in order)


def test_a_list_is_ranked_in_one_reply_whatever_the_order_shown(renderer: Renderer) -> None:
    voice, ready = Voice(renderer, by_length), lists(renderer, votes=4)
    (judged,) = ready.judge([group_of("bb", "", "dddd", "a", "ccc")], said(voice))
    assert len(voice.asked) == 4 == ready.num_requests(5)
    assert values(judged) == [pytest.approx(1 / 3), None, 1.0, 0.0, pytest.approx(2 / 3)]
    assert len({one.shown for one in judged.judgements}) > 1, "every vote sees an order of its own"
    again = ready.questions(group_of("bb", "", "dddd", "a", "ccc"))
    assert [question.shown for question in again] == [one.shown for one in judged.judgements]


def test_votes_that_cannot_be_read_are_left_out_of_a_ranking(renderer: Renderer) -> None:
    voice = Voice(renderer, by_length)
    ready = lists(renderer, votes=2)

    def speak(request: Request) -> str:
        return "Ranking: 1 > 1" if request.key.endswith("]0") else voice(request)

    (judged,) = ready.judge([group_of("bb", "a")], said(speak))
    assert values(judged) == [1.0, 0.0] and dict(judged.scores[0].parts) == {"rank_1": 1.0}
    (unread,) = ready.judge([group_of("bb", "a")], said(lambda request: completion("", request.key, error="busy")))
    assert unread.scores[0].error == "the judge could not answer: busy"
    (alone,) = ready.judge([group_of("bb", "")], said(speak))
    assert [score.error for score in alone.scores] == ["nothing to compare", "empty answer"]
