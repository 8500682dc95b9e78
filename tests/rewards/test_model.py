"""A reward model's scores: those of transformers for each completion alone, however they are batched."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from tests.rewards.made import completion
from whet.config.model import Lora, Model
from whet.config.reward import RewardHead
from whet.config.rewards import RewardModel
from whet.errors import ModelError
from whet.models.load import load_tokenizer
from whet.models.reward import load_reward_model, save_reward_model
from whet.rewards.build import RewardSetting, build_reward
from whet.rewards.model import ModelReward
from whet.schema.artifacts import ModelRef
from whet.schema.packed import Packed
from whet.schema.records import Message, Part, Prompt

QUESTIONS = ["How much is 12 plus 30?", "Name a fruit.", "Name a fruit."]
TEXTS = ["42", "It is 1230, I think.", "pear", "", "apple, pear and plum", "答案是十二。", "42"]


def save(checkpoint: Path, folder: Path, lora: Lora | None) -> Path:
    ref, config = ModelRef(path=str(checkpoint)), Model(path=str(checkpoint), lora=lora, device="cpu")
    model = load_reward_model(ref, config, RewardHead(), dtype=torch.float32, trainable=True, seed=1)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    save_reward_model(model, load_tokenizer(str(checkpoint)), folder)
    return folder


@pytest.fixture(scope="module")
def whole(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tiny_checkpoint, tmp_path_factory.mktemp("reward") / "whole", None)


def prompts() -> list[Prompt]:
    return [Prompt(messages=(Message("user", question),)) for question in QUESTIONS for _ in TEXTS]


def values(reward: ModelReward) -> list[float]:
    scores = reward.score(prompts(), [completion(text) for _ in QUESTIONS for text in TEXTS])
    assert all(score.error is None for score in scores)
    return [score.value for score in scores if score.value is not None]


def reward(path: Path, **config: object) -> ModelReward:
    section = RewardModel.model_validate({"path": str(path), "device": "cpu"} | config)
    return ModelReward(section, ModelRef(path=section.path, adapter=section.adapter))


def alone(path: Path) -> list[float]:
    """transformers' own forward pass over one conversation at a time."""
    tokenizer, model = AutoTokenizer.from_pretrained(path), AutoModelForSequenceClassification.from_pretrained(path)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    found = []
    for prompt in prompts()[:: len(TEXTS)]:
        for text in TEXTS:
            turns = [{"role": "user", "content": prompt.messages[0].text}, {"role": "assistant", "content": text}]
            ids = tokenizer.apply_chat_template(turns, return_dict=False)
            ids = ids[: len(ids) - ids[::-1].index(end)]
            with torch.no_grad():
                found.append(model(torch.tensor([ids])).logits.item())
    return found


@pytest.mark.parametrize("batch_tokens", [None, 1, 60, 4000])
def test_as_transformers_scores_each_alone(whole: Path, batch_tokens: int | None) -> None:
    expected = alone(whole)
    assert max(expected) - min(expected) > 0.01
    assert values(reward(whole, batch_tokens=batch_tokens)) == pytest.approx(expected, abs=1e-4)


def test_an_earlier_stages_adapter_by_its_name(tiny_checkpoint: Path, tmp_path: Path) -> None:
    folder = save(tiny_checkpoint, tmp_path / "adapter", Lora(rank=4))
    expected = values(reward(tiny_checkpoint, adapter=str(folder)))
    setting = RewardSetting(models={"judge": ModelRef(path=str(tiny_checkpoint), adapter=str(folder))})
    named = build_reward(RewardModel(path="judge", device="cpu"), setting=setting)
    assert isinstance(named, ModelReward)
    assert values(named) == pytest.approx(expected)
    assert max(expected) - min(expected) > 0.001


def test_what_cannot_be_scored_is_said(whole: Path) -> None:
    picture = Prompt(messages=(Message("user", (Part("image", "a.png"),)),))
    plain = Prompt(messages=(Message("user", "Name a fruit."),))
    long = completion("pear " * 20_000)
    scores = reward(whole).score(
        [picture, plain, plain, plain], [completion("pear"), long, completion("", error="too long"), completion("pear")]
    )
    assert [score.value is None for score in scores] == [True, True, True, False]
    assert "holds pictures" in str(scores[0].error)
    assert "the reward model takes" in str(scores[1].error)
    assert scores[2].error == "no answer: too long"


def test_a_language_model_is_no_reward_model(tiny_checkpoint: Path) -> None:
    with pytest.raises(ModelError, match="a language model, not a reward model"):
        reward(tiny_checkpoint)


def test_a_broken_model_gives_no_number(whole: Path) -> None:
    broken = reward(whole)
    with torch.no_grad():
        broken._placed.here().scorer.model.score.weight.fill_(float("nan"))
    (score,) = broken.score(prompts()[:1], [completion("pear")])
    assert (score.value, score.error) == (None, "the reward model gives nan")


def test_without_room_on_the_device_it_goes_on_on_the_cpu(
    whole: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Full at loading, or at the first batch: scored from its beginning on the CPU."""
    expected = values(reward(whole))
    load = load_reward_model

    def full(ref: ModelRef, config: Model, head: RewardHead, **options: object) -> torch.nn.Module:
        if config.device == "mps":
            if at == "loading":
                raise torch.OutOfMemoryError("out of memory")
            config = config.model_copy(update={"device": "cpu"})
        return load(ref, config, head, **options)  # type: ignore[arg-type]

    monkeypatch.setattr("whet.rewards.model.load_reward_model", full)
    monkeypatch.setattr(
        "whet.rewards.model.pick_device", lambda name, field: torch.device("mps" if name != "cpu" else name)
    )

    def to(packed: object, device: torch.device) -> object:
        if device.type == "mps":
            raise torch.OutOfMemoryError("out of memory")
        return moved_packed(packed, device)

    moved_packed = Packed.to
    monkeypatch.setattr(Packed, "to", to)
    for at in ("loading", "a batch"):
        assert values(reward(whole, device="auto")) == expected
        said = capsys.readouterr().err
        assert said.count("no room for the reward model on mps: it goes on on the CPU") == 1, at
    at = "loading"
    with pytest.raises(torch.OutOfMemoryError):
        reward(whole, device="mps")
