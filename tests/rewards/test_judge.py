"""Templates, judge requests, and votes made into scores: a judge of single answers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from tests.rewards.spoken import completion, group_of, said
from whet.config.judge import Pointwise, RewardJudge
from whet.data.render import Renderer
from whet.errors import ConfigError
from whet.rewards.judge import AskedJudge, RewardAsJudge, build_judge
from whet.rewards.reward import RuleReward
from whet.rewards.template import SHIPPED, fill, read_template
from whet.rewards.transcript import transcript
from whet.schema.records import Message
from whet.schema.rollouts import Completion, Judgement, Score


@pytest.fixture(scope="module")
def renderer(tiny_checkpoint: Path) -> Renderer:
    return Renderer(AutoTokenizer.from_pretrained(tiny_checkpoint))


def judge(renderer: Renderer, **config: object) -> AskedJudge:
    return build_judge(Pointwise.model_validate(config), renderer, seed=3)


def score(ready: AskedJudge, replies: list[Completion], text: str = "Rome") -> Score:
    """Of one answer, from the replies to the questions about it."""
    group = group_of(text)
    return ready.judged(group, ready.questions(group), replies).scores[0]


def test_shipped_templates_have_their_places_and_form() -> None:
    for name, places in SHIPPED.items():
        text = read_template(name, places)
        filled = fill(text, dict.fromkeys(places, "X"))
        assert "{" not in filled and not text.endswith("\n")
    additive, score_first = (read_template(name, ()) for name in ("additive", "score_first"))
    assert additive.rstrip().splitlines()[-1].startswith("Score:"), "reason first, score last"
    assert score_first.index("Score:") < score_first.index("explain it")


def test_user_text_with_braces_arrives_unchanged() -> None:
    text = fill(
        "Q: {instruction}\nA: {response} {other}", {"instruction": "{response} {0}", "response": "{instruction}"}
    )
    assert text == "Q: {response} {0}\nA: {instruction} {other}"


def test_a_users_template_must_have_its_places(tmp_path: Path) -> None:
    file = tmp_path / "judge.txt"
    file.write_text("Rate this: {response}\n")
    assert read_template(str(file), ("response",)) == "Rate this: {response}"
    with pytest.raises(ConfigError, match=r"judge\.template: the template lacks \{instruction\}"):
        read_template(str(file), ("instruction", "response"))
    with pytest.raises(ConfigError, match="did you mean additive"):
        read_template("aditive", ())
    with pytest.raises(ConfigError, match="no such template"):
        read_template(str(tmp_path / "absent.txt"), ())


def test_a_users_template_that_is_no_utf_8_is_said_in_one_line(tmp_path: Path) -> None:
    file = tmp_path / "judge.txt"
    file.write_bytes("Fränzi {response}".encode("latin-1"))
    with pytest.raises(ConfigError, match=r"judge\.template: the template is not UTF-8 \(found .*, byte 2\)"):
        read_template(str(file), ())


def test_requests_are_one_per_vote_in_the_chat_template(renderer: Renderer, tmp_path: Path) -> None:
    file = tmp_path / "judge.txt"
    file.write_text("Q {instruction} A {response}")
    ready = judge(renderer, template=str(file), votes=2, temperature=0.5, top_p=0.8, max_new_tokens=9)
    first, second = (question.request for question in ready.questions(group_of("Rome")))
    assert (first.key, second.key) == ("k#0/judge0", "k#0/judge1")
    assert first.prompt_ids == renderer.prompt((Message("user", "Q Name {a} city. A Rome"),))
    assert (first.sampling.temperature, first.sampling.top_p, first.sampling.max_new_tokens) == (0.5, 0.8, 9)
    assert first.seed == 3


def test_the_score_is_the_mean_of_readable_votes(renderer: Renderer) -> None:
    replies = [completion("Good. Score: 4"), completion("no idea"), completion("Score: 3")]
    ready = judge(renderer, votes=3)
    group = group_of("Rome")
    judged = ready.judged(group, ready.questions(group), replies)
    assert judged.scores[0].value == 3.5
    assert dict(judged.scores[0].parts) == {"vote_0": 4.0, "vote_2": 3.0}
    assert judged.scores[0].votes == ("Good. Score: 4", "no idea", "Score: 3")
    assert [one.reading for one in judged.judgements] == [(4.0,), None, (3.0,)]
    assert judged.judgements[0] == Judgement(shown=(0,), reply="Good. Score: 4", reading=(4.0,), num_tokens=1)


def test_the_same_votes_in_another_order_are_the_same_score(renderer: Renderer) -> None:
    """Added up one after the other, they give 21.599999999999998 or 21.6, by where one begins."""
    votes = [completion(f"Score: {vote}") for vote in (7.1, 8.2, 6.3)]
    ready = judge(renderer, votes=3, low=0, high=10)
    assert score(ready, votes).value == score(ready, votes[::-1]).value == pytest.approx(7.2)


def test_score_first_reads_the_first(renderer: Renderer) -> None:
    reply = [completion("Score: 4\nA Score: 1 would be wrong.")]
    assert score(judge(renderer, template="score_first", votes=1), reply).value == 4.0
    assert score(judge(renderer, template="additive", votes=1), reply).value == 1.0


def test_a_reply_that_was_cut_inside_its_score_is_unreadable(renderer: Renderer) -> None:
    cut = replace(completion("Good. Score: 1"), finish_reason="length")
    assert score(judge(renderer, votes=1, high=10), [cut]).value is None


def test_no_score_says_why(renderer: Renderer) -> None:
    ready = judge(renderer, votes=2)
    assert score(ready, [completion("?"), completion("Score: 10")]).error == "no score in 2 replies"
    long = completion("", error="the prompt has 9 tokens and the model 8 positions")
    assert score(ready, [long, long]).error == (
        "the judge could not answer: the prompt has 9 tokens and the model 8 positions"
    )
    group = group_of(" \n", completion("", "k#1", error="too long"))
    assert ready.questions(group) == []
    judged = ready.judged(group, [], [])
    assert [(one.value, one.error) for one in judged.scores] == [(None, "empty answer"), (None, "no answer: too long")]


def test_a_group_is_judged_answer_by_answer_and_no_reply_goes_astray(renderer: Renderer) -> None:
    groups = [group_of("one", "", "three", key="a"), group_of("four", key="b")]
    judged = judge(renderer, votes=2).judge(groups, said(lambda request: f"Score: {len(request.key)}"))
    assert [[one.value for one in group.scores] for group in judged] == [[None, None, None], [None]], "10 is above 5"
    judged = judge(renderer, votes=2, high=20).judge(groups, said(lambda request: f"Score: {ord(request.key[0]) - 90}"))
    assert [[one.value for one in group.scores] for group in judged] == [[7.0, None, 7.0], [8.0]]
    assert judge(renderer, votes=2).num_requests(3) == 6


def test_a_reward_takes_the_judges_place() -> None:
    def length(prompt: object, answer: Completion) -> float:
        return float(len(answer.text))

    groups = [group_of("ab", " ", "c"), group_of("def", completion("", "k#1", error="gone"))]
    judged = RewardAsJudge(reward=RuleReward(rule=length)).judge(groups, said(lambda request: ""))
    assert [[one.value for one in group.scores] for group in judged] == [[2.0, None, 1.0], [3.0, None]]
    assert judged[0].scores[1].error == "empty answer" and judged[1].scores[1].error == "no answer: gone"
    assert RewardJudge(path="rm").type == "reward_model"


def test_the_judge_sees_the_whole_conversation() -> None:
    turns = (
        Message("system", "Rhyme."),
        Message("user", "Hi"),
        Message("assistant", "Hello"),
        Message("user", "Go on"),
    )
    assert transcript(turns) == "system: Rhyme.\n\nuser: Hi\n\nassistant: Hello\n\nuser: Go on"
    assert transcript(turns[1:2]) == "Hi"
