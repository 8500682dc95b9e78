"""Judgements judged: which are compared, what a favoured place is worth, and the pairs that come of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from tests.rewards.spoken import group_of, said
from whet.config.data import Data
from whet.config.judge import Meta, Pointwise
from whet.data.render import Renderer
from whet.data.sources import read_records
from whet.experience.meta import MetaJudge, MetaResult, battles, build_meta_judge, contests_of
from whet.rewards.judge import build_judge
from whet.runs.files import write_jsonl
from whet.schema.records import Preference
from whet.schema.rollouts import Group, Judgement, Request


@pytest.fixture(scope="module")
def renderer(tiny_checkpoint: Path) -> Renderer:
    return Renderer(AutoTokenizer.from_pretrained(tiny_checkpoint))


def judged(*votes: tuple[float | None, ...]) -> Group:
    """A group of one answer a tuple; a vote reads "reason of N" and its score."""
    group = group_of(*(f"answer {place}" for place in range(len(votes))))
    judgements = [
        Judgement(
            shown=(place,), reply=f"reason {place}{vote} Score: {value}", num_tokens=4 + vote,
            reading=None if value is None else (value,),
        )
        for place, mine in enumerate(votes)
        for vote, value in enumerate(mine)
    ]  # fmt: skip
    return replace(group, judgements=tuple(judgements))


def meta(renderer: Renderer, **config: object) -> MetaJudge:
    judge = build_judge(Pointwise(), renderer, seed=3)
    return build_meta_judge(Meta.model_validate(config), judge)


def test_the_answer_whose_votes_differ_most_is_taken() -> None:
    group = judged((3.0, 3.0, 3.0), (1.0, 5.0, None), (2.0, 3.0, 4.0))
    (contest,) = contests_of(group, 1)
    assert contest.place == 1 and [one.reading for one in contest.judgements] == [(1.0,), (5.0,)]
    assert [one.place for one in contests_of(group, 5)] == [1, 2, 0]
    assert not list(contests_of(judged((3.0, None), (None, None)), 1)), "two readable ones, or nothing"
    same = replace(group, judgements=tuple(replace(one, reply="Score: 3") for one in judged((3.0, 3.0)).judgements))
    assert not list(contests_of(same, 1)), "in the same words there is nothing to choose"


def test_battles_weigh_a_win_by_its_place() -> None:
    """0 beat 1 in both places, 1 beat 2 in second place only."""
    verdicts = {(0, 1): "first", (1, 0): "second", (2, 1): "second", (1, 2): "tie", (0, 2): None, (2, 0): "tie"}
    found = {(match.first, match.second): match.weight for match in battles(verdicts, (0.2, 0.8))}
    assert found == {(0, 1): pytest.approx(1.0), (1, 2): 0.8}


def prefer(better: str):
    """A meta-judge that prefers the grading with these words, in whichever place it stands."""

    def speak(renderer: Renderer, request: Request) -> str:
        prompt = renderer.template.tokenizer.decode(list(request.prompt_ids))
        first, second = (better in prompt.split(f"<{tag}>")[1].split(f"</{tag}>")[0] for tag in ("first", "second"))
        return f"Verdict: {'tie' if first == second else 'first' if first else 'second'}"

    return speak


def run(ready: MetaJudge, renderer: Renderer, groups: list[Group], speak) -> MetaResult:
    return ready.run(groups, said(lambda request: speak(renderer, request)))


def test_the_best_judgement_is_preferred_to_the_worst(renderer: Renderer, tmp_path: Path) -> None:
    ready = meta(renderer)
    result = run(ready, renderer, [judged((1.0, 5.0, 3.0))], prefer("reason 01"))
    (pair,) = result.pairs
    assert pair.chosen.reply == "reason 01 Score: 5.0" and pair.chosen_elo > pair.rejected_elo
    assert result.metrics() == {
        "num_judge_pairs": 1, "meta_parse_failure_rate": 0.0, "meta_swap_inconsistency_rate": 0.0,
        "meta_first_place_share": 0.5, "meta_score_shift": pytest.approx(4.0),
    }  # fmt: skip
    write_jsonl(tmp_path / "judge_training.jsonl", [ready.row(pair)])
    (record,), _ = read_records(Data(files=(str(tmp_path / "judge_training.jsonl"),)), ("preference",))
    assert isinstance(record, Preference)
    assert "answer 0" in record.prompt[0].text and "Score: <total points" in record.prompt[0].text
    assert record.chosen[0].text == pair.chosen.reply and record.chosen_score == pair.chosen_elo


def test_a_meta_judge_that_favours_a_place_prefers_nothing(renderer: Renderer) -> None:
    result = run(meta(renderer), renderer, [judged((1.0, 5.0))], lambda _, request: "Verdict: first")
    assert result.pairs == [] and result.dropped == {"ties": 1, "too_few": 0}
    assert result.metrics()["meta_swap_inconsistency_rate"] == 1.0 == result.metrics()["meta_first_place_share"]


def test_every_prompt_and_contest_is_counted(renderer: Renderer) -> None:
    groups = [judged((1.0, 5.0)), judged((2.0,)), judged((1.0, 5.0, 3.0))]
    unread = run(meta(renderer), renderer, groups, lambda _, request: "?")
    assert unread.to_json() == {"pairs": 0, "too_few": 1, "unread": 2, "ties": 0, "too_long": 0}
    assert unread.metrics()["meta_parse_failure_rate"] == 1.0
    long = run(meta(renderer, max_chosen_tokens=4), renderer, groups, prefer("reason 01"))
    assert long.to_json() == {"pairs": 0, "too_few": 1, "unread": 0, "ties": 0, "too_long": 2}
    none = run(meta(renderer), renderer, [], prefer(""))
    assert none.metrics() == {"num_judge_pairs": 0}
