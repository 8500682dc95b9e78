"""Answers to prompts with pictures: by transformers' own generate, the scoring core, and in other batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from tests.models.pictured import FAMILIES, Album, build, pack
from tests.rollout.test_decode import Letters
from whet.data.pack import pack_groups
from whet.data.rendered import RenderedGroup
from whet.models.scoring import TokenScorer
from whet.models.tiny_vlm import Family
from whet.models.vision import Vision
from whet.rollout.native import NativeEngine
from whet.schema.packed import Packed
from whet.schema.pictures import Picture
from whet.schema.rollouts import Completion, Request, Sampling

GREEDY = Sampling(max_new_tokens=12, temperature=0.0)


class Reader(Album):
    """An album as far as an engine needs a picture reader."""

    def __init__(self, family: Family, place_id: int) -> None:
        super().__init__(family)
        self.place_id = place_id


def prompts(model: PreTrainedModel, album: Album) -> list[tuple[tuple[int, ...], tuple[Picture, ...]]]:
    """0 to 3 pictures of different sizes each; two prompts with the same ids and other pictures."""
    cat, dog, sky, sea = (
        album.picture(*shape) for shape in [("cat", 2, 3), ("dog", 4, 2), ("sky", 3, 3), ("sea", 2, 3)]
    )
    shapes = [[3, cat, 2], [3, sea, 2], [6], [1, dog, 1, cat, 3], [2, sky, 1, dog, 2, cat, 1], [1, sky, 9]]
    made = []
    for shape in shapes:
        packed = pack(model, album, [(shape, ())])
        pictures = packed.media.pictures if packed.media is not None else ()
        made.append((tuple(packed.input_ids.tolist()), pictures))
    assert made[0][0] == made[1][0]
    return made


def ask(model: PreTrainedModel, reader: Reader, sampling: Sampling = GREEDY, per_prompt: int = 1) -> list[Request]:
    return [
        Request(key=f"{number}#{index}", prompt_ids=ids, pictures=pictures, sampling=sampling, seed=3)
        for number, (ids, pictures) in enumerate(prompts(model, reader))
        for index in range(per_prompt)
    ]


def engine(model: torch.nn.Module, reader: Reader | None, *, size: int = 8, **more: Any) -> NativeEngine:
    return NativeEngine(model, Letters(), batch_size=size, end_ids=(), reader=reader, **more)  # type: ignore[arg-type]


def made(family: Family, **how: Any) -> tuple[PreTrainedModel, Reader]:
    model = build(family, **how)
    return model, Reader(family, model.config.image_token_id)


def generated(model: PreTrainedModel, request: Request, reader: Reader) -> tuple[int, ...]:
    """By transformers' own generate."""
    ids = torch.tensor([request.prompt_ids])
    inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if request.pictures:
        inputs |= reader.load(request.pictures)
        if hasattr(model.model, "get_rope_index"):
            inputs["mm_token_type_ids"] = (ids == reader.place_id).int()
    out = model.generate(**inputs, max_new_tokens=12, do_sample=False, eos_token_id=None, pad_token_id=0)
    return tuple(out[0, ids.shape[1] :].tolist())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("attention", ["whet_trees", "eager"])
@pytest.mark.filterwarnings("ignore:rows are padded")
def test_greedy_answers_equal_transformers(family: Family, attention: str) -> None:
    """Decoded with shared prompts, and by the padded way where attention cannot take trees."""
    model, reader = made(family, attention=attention)
    asked = ask(model, reader)
    answers = list(engine(model, reader, size=4).generate(asked))
    for request, answer in zip(asked, answers, strict=True):
        assert answer.ids == generated(model, request, reader), request.key
    assert answers[0].ids != answers[1].ids, "another picture, another answer"


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_the_lean_step_fits_their_language_models(family: Family) -> None:
    model, reader = made(family)
    assert engine(model, reader)._backbone._is_lean


@pytest.mark.parametrize("family", FAMILIES)
def test_logprobs_are_those_of_the_scoring_core(family: Family) -> None:
    model, reader = made(family)
    asked = ask(model, reader, Sampling(max_new_tokens=10, temperature=1.0), per_prompt=2)
    answers = list(engine(model, reader).generate(asked))
    scorer = TokenScorer(model)
    for first in range(0, len(asked), 2):
        request, pair = asked[first], answers[first : first + 2]
        packed = behind(request, [answer.ids for answer in pair], reader)
        with torch.no_grad():
            expected = scorer(packed).logprobs
        found = torch.tensor([value for answer in pair for value in answer.policy_logprobs])
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def behind(request: Request, answers: Sequence[tuple[int, ...]], reader: Reader) -> Packed:
    """A prompt and what might follow it, packed."""
    group = RenderedGroup(prompt_ids=request.prompt_ids, response_ids=tuple(answers), pictures=request.pictures)
    return pack_groups([group], reader)  # type: ignore[arg-type]


@pytest.mark.parametrize("family", FAMILIES)
def test_samples_do_not_depend_on_the_batch(family: Family) -> None:
    model, reader = made(family)
    asked = ask(model, reader, Sampling(max_new_tokens=8, temperature=1.0), per_prompt=3)
    expected = {c.key: (c.ids, c.logprobs) for c in engine(model, reader, size=1).generate(asked)}
    assert len(set(expected.values())) > 12
    for size, order in ((3, asked), (8, asked[::-1]), (64, asked)):
        answers = engine(model, reader, size=size).generate(order)
        assert {c.key: c.ids for c in answers} == {key: ids for key, (ids, _) in expected.items()}


def test_a_picture_goes_through_the_tower_once_a_group(monkeypatch: pytest.MonkeyPatch) -> None:
    model, reader = made("qwen3_vl")
    looked: list[str] = []
    look = Vision.look

    def counted(self: Vision, pictures: Sequence[Picture], load: Any) -> Any:
        looked.extend(picture.digest for picture in pictures)
        return look(self, pictures, load)

    monkeypatch.setattr(Vision, "look", counted)
    model.requires_grad_(False)
    asked = ask(model, reader, Sampling(max_new_tokens=4, temperature=1.0), per_prompt=8)
    list(engine(model, reader, size=64).generate(asked))
    assert sorted(looked) == ["cat", "dog", "sea", "sky"]


def test_an_engine_that_follows_looks_with_the_eyes_of_its_model(monkeypatch: pytest.MonkeyPatch) -> None:
    from peft import LoraConfig, get_peft_model

    model, reader = made("qwen2_5_vl")
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    following = engine(adapted, reader, dtype=torch.float32)
    assert following._model is not model
    asked = ask(model, reader, Sampling(max_new_tokens=4, temperature=1.0), per_prompt=2)
    answers = list(following.generate(asked))
    loaded = reader.loaded
    packed = behind(asked[0], [answer.ids for answer in answers[:2]], reader)
    TokenScorer(adapted)(packed).logprobs.sum().backward()
    assert reader.loaded == loaded, "the training that follows knows the features"


@pytest.mark.parametrize("family", FAMILIES)
def test_continuations_behind_pictures(family: Family) -> None:
    model, reader = made(family)
    asked = [
        Request(
            key=str(number), prompt_ids=ids, pictures=pictures, sampling=GREEDY, seed=0,
            continuations=((30, 40), (50,), (60, 70, 80)),
        )
        for number, (ids, pictures) in enumerate(prompts(model, reader))
    ]  # fmt: skip
    answers: list[Completion] = list(engine(model, reader).generate(asked))
    scorer = TokenScorer(model)
    for request, answer in zip(asked, answers, strict=True):
        packed = behind(request, list(request.continuations), reader)
        with torch.no_grad():
            sums = torch.zeros(3).index_add_(0, packed.target_rows, scorer(packed).logprobs)
        torch.testing.assert_close(torch.tensor(answer.continuation_logprobs), sums, rtol=0, atol=1e-4)
    assert answers[0].continuation_logprobs != answers[1].continuation_logprobs


def test_an_engine_without_a_reader_says_so() -> None:
    model, reader = made("qwen3_vl")
    answers = list(engine(model, None).generate(ask(model, reader)))
    assert [answer.finish_reason for answer in answers].count("error") == 5
    assert answers[0].error == "the prompt has pictures, and the model takes none"
    assert answers[2].finish_reason == "length"


def test_a_stream_of_an_answer_to_a_picture() -> None:
    model, reader = made("qwen2_5_vl")
    (request, *_) = ask(model, reader)
    (answer,) = engine(model, reader).generate([request])
    assert "".join(engine(model, reader).stream(request)) == answer.text
