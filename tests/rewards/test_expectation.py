"""Scores weighed by their probability: exact against the model's own logits, and arithmetic by hand."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.rewards.spoken import completion, group_of, said
from whet.config.judge import Pointwise
from whet.data.render import Renderer
from whet.rewards.expectation import Expectation
from whet.rewards.judge import build_judge
from whet.rollout.native import NativeEngine
from whet.schema.records import Message
from whet.schema.rollouts import Completion, Judgement, Request, Sampling

MESSAGES = (Message("user", "How much is 12 plus 30? 42. Score?"),)
ASKED = Request(key="k#0/judge0", prompt_ids=(1, 2), sampling=Sampling(max_new_tokens=9), seed=3)


@pytest.fixture(scope="module")
def renderer(tiny_checkpoint: Path) -> Renderer:
    return Renderer(AutoTokenizer.from_pretrained(tiny_checkpoint))


def expectation(renderer: Renderer, **config: object) -> Expectation:
    return Expectation(config=Pointwise.model_validate({"scores": "expectation", **config}), renderer=renderer)


def measured(*logprobs: float, error: str | None = None) -> Completion:
    return Completion(
        key="k", ids=(), text="", logprobs=(), finish_reason="error" if error else "stop", error=error,
        continuation_logprobs=logprobs,
    )  # fmt: skip


def test_the_mean_of_the_scale_by_hand(renderer: Renderer) -> None:
    read = Judgement(shown=(0,), reply="Score: 2", reading=(2.0,))
    weighed = expectation(renderer, high=2).weighed(read, measured(math.log(0.1), math.log(0.2), math.log(0.1)))
    assert weighed.reading == pytest.approx((1.0,)) and weighed.mass == pytest.approx(0.4)
    skewed = expectation(renderer, low=1, high=2).weighed(read, measured(-800.0, -800.0 + math.log(3)))
    assert skewed.reading == pytest.approx((1.75,)), "far below what a float can hold, still exact"
    failed = expectation(renderer).weighed(read, measured(error="cannot say"))
    assert (failed.reading, failed.error) == (None, "cannot say")


def test_what_is_asked_stands_where_the_score_stood(renderer: Renderer) -> None:
    request = expectation(renderer).request(ASKED, MESSAGES, "Fine.\n**Score:** 4 of all")
    assert request.key == "k#0/judge0/scores" and len(request.continuations) == 6
    decode = renderer.template.tokenizer.decode
    for score, ids in enumerate(request.continuations):
        whole = (*request.prompt_ids, *ids)
        assert [whole] == renderer.begun(MESSAGES, [f"Fine.\n**Score:** {score}"])
        assert decode(list(whole)).endswith(f"Fine.\n**Score:** {score}")
    with pytest.raises(ValueError, match="no score"):
        expectation(renderer).request(ASKED, MESSAGES, "Fine.")


@pytest.mark.parametrize(("template", "end"), [("additive", "<|im_end|>"), ("score_first", "\n")])
def test_where_ten_begins_with_one_both_are_told_to_their_end(renderer: Renderer, template: str, end: str) -> None:
    request = expectation(renderer, low=1, high=10, template=template).request(ASKED, MESSAGES, "Score: 7")
    texts = [renderer.template.tokenizer.decode(list(ids)) for ids in request.continuations]
    assert [text.strip(" ") for text in texts] == [f"{score}{end}" for score in range(1, 11)]


def test_the_native_engine_measures_exactly(tiny_checkpoint: Path, renderer: Renderer) -> None:
    tokenizer = renderer.template.tokenizer
    model = AutoModelForCausalLM.from_pretrained(tiny_checkpoint).eval()
    engine = NativeEngine(model, tokenizer, batch_size=4, end_ids=(renderer.end_id,))
    asks = expectation(renderer, high=10).request
    requests = [asks(ASKED, (Message("user", "Rate " * n),), "So. Score: 3") for n in (1, 7, 3)]
    # among requests that draw: every one is answered in its place
    drawn = Request(key="d", prompt_ids=(5, 6), sampling=Sampling(max_new_tokens=2), seed=0)
    said_by = list(engine.generate([requests[0], drawn, *requests[1:]]))
    assert [one.key for one in said_by] == [requests[0].key, "d", requests[1].key, requests[2].key]
    assert len(said_by[1].ids) == 2 and not said_by[1].continuation_logprobs
    for request, one in zip(requests, [said_by[0], *said_by[2:]], strict=True):
        expected = [_logprob(model, request.prompt_ids, ids) for ids in request.continuations]
        assert one.continuation_logprobs == pytest.approx(expected, abs=1e-4)


def _logprob(model: torch.nn.Module, prompt: tuple[int, ...], ids: tuple[int, ...]) -> float:
    with torch.no_grad():
        logprobs = model(torch.tensor([[*prompt, *ids]])).logits[0].log_softmax(-1)
    return sum(float(logprobs[len(prompt) - 1 + n, token]) for n, token in enumerate(ids))


def test_a_prompt_that_does_not_fit_is_an_error(tiny_checkpoint: Path, renderer: Renderer) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_checkpoint).eval()
    engine = NativeEngine(model, renderer.template.tokenizer, batch_size=4, end_ids=(renderer.end_id,))
    limit = model.config.max_position_embeddings
    long = Request(
        key="long", prompt_ids=(5,) * (limit - 1), sampling=Sampling(max_new_tokens=1), seed=0, continuations=((1, 2),)
    )
    (one,) = engine.generate([long])
    assert one.finish_reason == "error" and "positions" in (one.error or "")


def test_a_judge_asks_twice_and_what_cannot_be_read_is_not_guessed(renderer: Renderer) -> None:
    ready = build_judge(Pointwise(votes=2, scores="expectation", high=2), renderer, seed=1)
    asked: list[str] = []

    def speak(request: Request) -> str | Completion:
        asked.append(request.key)
        if request.continuations:
            return measured(math.log(0.5), math.log(0.25), math.log(0.25))
        return "Score: 2" if request.key == "k#0/judge0" else "?"

    (judged,) = ready.judge([group_of("a", "b")], said(speak))
    assert asked == ["k#0/judge0", "k#0/judge1", "k#1/judge0", "k#1/judge1", "k#0/judge0/scores"]
    assert judged.scores[0].value == pytest.approx(0.75) and judged.scores[1].value is None
    assert judged.scores[0].votes == ("Score: 2", "?") and ready.num_requests(2) == 8
    assert completion("x").continuation_logprobs == ()
