"""Rewards of answers to prompts with pictures: what a function, a server and a judge are given of them."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from tests.data.drawn import draw
from tests.rewards.made import completion
from whet.config.judge import Pointwise
from whet.config.rewards import Custom
from whet.data.pictures import picture_reader
from whet.data.render import Renderer
from whet.errors import DataError
from whet.rewards.custom import FunctionReward
from whet.rewards.http import payload
from whet.rewards.judge import build_judge
from whet.schema.records import Message, Part, Prompt
from whet.schema.rollouts import Completion, Group


@pytest.fixture
def prompt(tmp_path: Path) -> Prompt:
    path = str(draw(tmp_path / "cat.png", 90, 70))
    return Prompt(messages=(Message("user", (Part("text", "Here: "), Part("image", path), Part("text", "Which?"))),))


def test_a_function_is_told_the_paths(prompt: Prompt, tmp_path: Path) -> None:
    told = "prompt == 'Here: Which?' and open(images[0], 'rb').read(4)[1:] == b'PNG'"
    (tmp_path / "f.py").write_text(f"def f(prompt, completion, images): return float({told})")
    reward = FunctionReward(Custom(path=f"{tmp_path / 'f.py'}:f"))
    assert [score.value for score in reward.score([prompt], [completion("One")])] == [1.0]


def test_a_server_gets_the_bytes(prompt: Prompt, tmp_path: Path) -> None:
    sent = payload([(prompt, completion("One"))])
    words, picture, question = sent["messages"][0][0]["content"]
    assert (words["text"], question["text"]) == ("Here: ", "Which?")
    head, _, data = picture["image_url"]["url"].partition(",")
    assert head == "data:image/png;base64" and base64.b64decode(data) == (tmp_path / "cat.png").read_bytes()
    (tmp_path / "cat.png").unlink()
    with pytest.raises(DataError, match="the picture is missing"):
        payload([(prompt, completion("One"))])


def test_a_judge_sees_them_before_its_question(
    prompt: Prompt, tiny_vlm_checkpoint: Path, tiny_checkpoint: Path
) -> None:
    path = str(tiny_vlm_checkpoint)
    renderer = Renderer(AutoTokenizer.from_pretrained(path), reader=picture_reader(path))
    answered = Completion(key="k#0", ids=(7,), text="One", logprobs=(), finish_reason="stop")
    group = Group(prompt=prompt, completions=(answered,), scores=(), columns={"key": "k"})
    (question, *_) = build_judge(Pointwise(), renderer, seed=0).questions(group)
    request = question.request
    assert [Path(picture.source).name for picture in request.pictures] == ["cat.png"]
    text = renderer.template.tokenizer.decode(request.prompt_ids)
    assert text.index("<|image_pad|>") < text.index("Here: [image]Which?")
    blind = Renderer(AutoTokenizer.from_pretrained(tiny_checkpoint))
    with pytest.raises(DataError, match="this checkpoint takes none"):
        build_judge(Pointwise(), blind, seed=0).questions(group)
