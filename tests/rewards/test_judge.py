"""Templates, judge requests, and votes made into scores."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoTokenizer

from whet.config.rollout import Judge
from whet.data.render import Renderer
from whet.errors import ConfigError
from whet.rewards.judge import PointJudge, build_judge, transcript
from whet.rewards.template import SHIPPED, fill, read_template
from whet.schema.records import Message, Prompt
from whet.schema.rollouts import Completion

QUESTION = Prompt(messages=(Message("user", "Name {a} city."),))


def completion(text: str, key: str = "k#0", error: str | None = None) -> Completion:
    return Completion(
        key=key, ids=(1,), text=text, logprobs=(), finish_reason="error" if error else "stop", error=error
    )


@pytest.fixture(scope="module")
def renderer(tiny_checkpoint: Path) -> Renderer:
    return Renderer(AutoTokenizer.from_pretrained(tiny_checkpoint))


def judge(renderer: Renderer, **config: object) -> PointJudge:
    return build_judge(Judge.model_validate(config), renderer, seed=3)


def test_shipped_templates_have_their_places_and_form() -> None:
    for name in SHIPPED:
        places = ("instruction", "first", "second") if name == "pairwise" else ("instruction", "response")
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


def test_requests_are_one_per_vote_in_the_chat_template(renderer: Renderer, tmp_path: Path) -> None:
    file = tmp_path / "judge.txt"
    file.write_text("Q {instruction} A {response}")
    ready = judge(renderer, template=str(file), votes=2, temperature=0.5, top_p=0.8, max_new_tokens=9)
    first, second = ready.requests(QUESTION, completion("Rome"))
    assert (first.key, second.key) == ("k#0/judge0", "k#0/judge1")
    assert first.prompt_ids == renderer.prompt((Message("user", "Q Name {a} city. A Rome"),))
    assert (first.sampling.temperature, first.sampling.top_p, first.sampling.max_new_tokens) == (0.5, 0.8, 9)
    assert first.seed == 3


def test_the_score_is_the_mean_of_readable_votes(renderer: Renderer) -> None:
    ready = judge(renderer, votes=3)
    replies = [completion("Good. Score: 4"), completion("no idea"), completion("Score: 3")]
    score = ready.score(completion("Rome"), replies)
    assert score.value == 3.5
    assert dict(score.parts) == {"vote_0": 4.0, "vote_2": 3.0}
    assert score.votes == ("Good. Score: 4", "no idea", "Score: 3")


def test_score_first_reads_the_first(renderer: Renderer) -> None:
    reply = [completion("Score: 4\nA Score: 1 would be wrong.")]
    assert judge(renderer, template="score_first").score(completion("Rome"), reply).value == 4.0
    assert judge(renderer, template="additive").score(completion("Rome"), reply).value == 1.0


def test_no_score_says_why(renderer: Renderer) -> None:
    ready = judge(renderer, votes=2)
    assert ready.score(completion("Rome"), [completion("?"), completion("Score: 10")]).error == "no score in 2 replies"
    long = completion("", error="the prompt has 9 tokens and the model 8 positions")
    assert ready.score(completion("Rome"), [long, long]).error == (
        "the judge could not answer: the prompt has 9 tokens and the model 8 positions"
    )
    for candidate, error in (
        (completion(" \n"), "empty answer"),
        (completion("", error="too long"), "no answer: too long"),
    ):
        assert ready.requests(QUESTION, candidate) == []
        assert ready.score(candidate, []).error == error
        assert ready.score(candidate, []).value is None


def test_the_judge_sees_the_whole_conversation() -> None:
    turns = (
        Message("system", "Rhyme."),
        Message("user", "Hi"),
        Message("assistant", "Hello"),
        Message("user", "Go on"),
    )
    assert transcript(turns) == "system: Rhyme.\n\nuser: Hi\n\nassistant: Hello\n\nuser: Go on"
    assert transcript(turns[1:2]) == "Hi"
