"""Vision-language checkpoints: what trains, what is written beside the weights, heads, merging and copies."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoImageProcessor, AutoModelForImageTextToText

from tests.models.pictured import FAMILIES, Album, folder, pack, plain_logprobs
from whet.config.model import Lora, Model, Vision
from whet.config.reward import RewardHead
from whet.errors import ModelError
from whet.models.backbone import unwrapped
from whet.models.load import load_model, load_tokenizer, save_trained
from whet.models.merge import merge_adapter, merge_reward_adapter
from whet.models.reward import load_reward_model, save_reward_model
from whet.models.scoring import RowScorer, TokenScorer
from whet.models.snapshot import Snapshot
from whet.models.tiny_vlm import Family
from whet.models.value import PolicyScorer, ValueScorer, fresh_value_head, load_value_model
from whet.models.vision import vision_parts
from whet.schema.artifacts import ModelRef

FP32 = torch.float32
LORA = Lora(rank=4)
HEAD = RewardHead()


def config(path: Path | str, *, lora: Lora | None = LORA, train: bool = False) -> Model:
    return Model(path=str(path), lora=lora, vision=Vision(train=train), device="cpu")


def load(path: Path | str, *, adapter: Path | None = None, lora: Lora | None = LORA, train: bool = False) -> PeftModel:
    """A model to train."""
    ref = ModelRef(path=str(path), adapter=None if adapter is None else str(adapter))
    model = load_model(ref, config(path, lora=lora, train=train), dtype=FP32, trainable=True)
    return model  # type: ignore[return-value]


def moved(model: torch.nn.Module, by: float = 0.05) -> torch.nn.Module:
    """As after some steps: everything that trains has moved."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(by * torch.randn_like(parameter))
    return model.eval()


def trained_names(model: torch.nn.Module) -> set[str]:
    names = (name for name, parameter in model.named_parameters() if parameter.requires_grad)
    return {name.removeprefix("base_model.model.") for name in names}


def in_eyes(names: set[str], model: torch.nn.Module) -> set[str]:
    return {name for name in names if name.startswith(tuple(vision_parts(unwrapped(model))))}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("lora", [LORA, None, Lora(rank=4, targets=("q_proj", "v_proj"))])
def test_one_key_trains_the_tower_and_the_projector(family: Family, lora: Lora | None) -> None:
    path = folder(family).name
    left, trained = load(path, lora=lora), load(path, lora=lora, train=True)
    assert type(unwrapped(left)).__name__.endswith("ForConditionalGeneration")
    assert not in_eyes(trained_names(left), left)
    assert len(trained_names(left)) >= 3 * 2 * 2
    if lora is None or lora.targets == "all-linear":
        parts = vision_parts(unwrapped(trained))
        assert all(any(name.startswith(part) for name in trained_names(trained)) for part in parts)
    # LLaVA's tower has layers of the same names as its language model, which peft would take as well.
    elif family == "llava":
        assert in_eyes(trained_names(trained), trained)
    if lora is not None:
        assert all("lora_" in name for name in trained_names(trained))
        assert trained_names(left) < trained_names(trained) or family != "llava"
    assert not any("lm_head.lora" in name for name in trained_names(trained))


def test_targets_that_only_the_tower_has() -> None:
    with pytest.raises(ModelError, match="no such layers outside of the vision tower"):
        load(folder("qwen2_5_vl").name, lora=Lora(targets=("qkv",)))
    assert trained_names(load(folder("qwen2_5_vl").name, lora=Lora(targets=("qkv",)), train=True))


def scored(model: torch.nn.Module, album: Album) -> Tensor:
    shapes = [((2, album.picture("cat", 3, 2), 3), (4, 2)), ((5,), (3,))]
    with torch.no_grad():
        return TokenScorer(model).eval()(pack(unwrapped(model), album, shapes)).logprobs


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("lora", [LORA, None])
@pytest.mark.parametrize("train", [False, True])
def test_what_is_saved_loads_again_and_sees_the_same(
    family: Family, lora: Lora | None, train: bool, tmp_path: Path
) -> None:
    path, album = folder(family).name, Album(family)
    model = moved(load(path, lora=lora, train=train))
    before = scored(load(path, lora=lora, train=train).eval(), album)
    expected = scored(model, album)
    assert (expected - before).abs().max() > 1e-4
    save_trained(model, load_tokenizer(path), tmp_path)
    stored = {file.name for file in tmp_path.iterdir()}
    assert {"preprocessor_config.json", "chat_template.jinja"} <= stored
    assert ("processor_config.json" in stored) == (family == "llava")
    assert (tmp_path / "preprocessor_config.json").read_bytes() == (
        Path(path) / "preprocessor_config.json"
    ).read_bytes()
    if lora is None:
        again = AutoModelForImageTextToText.from_pretrained(tmp_path)
        AutoImageProcessor.from_pretrained(tmp_path)
    else:
        again = load(path, adapter=tmp_path, train=train).eval()
        assert trained_names(again) == trained_names(model)
    torch.testing.assert_close(scored(again, album), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_merged_is_the_same_model(family: Family, tmp_path: Path) -> None:
    path, album = folder(family).name, Album(family)
    model = moved(load(path, train=True))
    expected = scored(model, album)
    merged, difference = merge_adapter(model, [[20, 30, 40], [50, 60]], dtype=FP32, tolerance=1e-3)
    assert difference < 1e-3
    save_trained(merged, load_tokenizer(path), tmp_path)
    again = AutoModelForImageTextToText.from_pretrained(tmp_path)
    torch.testing.assert_close(scored(again, album), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("train", [False, True])
def test_a_copy_to_generate_from_follows_the_model_and_its_eyes(family: Family, train: bool) -> None:
    album, model = Album(family), load(folder(family).name, train=train)
    copy = Snapshot(model, FP32)
    before = scored(copy.model, album)
    moved(model)
    copy.refresh()
    after = scored(copy.model, album)
    torch.testing.assert_close(after, scored(model, album), rtol=0, atol=1e-5)
    assert (after - before).abs().max() > 1e-4


def test_a_copy_sees_with_the_eyes_as_they_are_now() -> None:
    """Its own scorer keeps features, and must forget them when the tower has moved."""
    album, model = Album("qwen3_vl"), load(folder("qwen3_vl").name, lora=None, train=True)
    copy = Snapshot(model, FP32)
    scorer = TokenScorer(copy.model).eval()
    packed = pack(copy.model, album, [((2, album.picture("cat", 3, 2), 3), (4,))])
    with torch.no_grad():
        scorer(packed)
        moved(model)
        copy.refresh()
        torch.testing.assert_close(scorer(packed).logprobs, TokenScorer(model)(packed).logprobs, rtol=0, atol=1e-5)


def rewards(model: torch.nn.Module, album: Album) -> Tensor:
    shapes = [((2, album.picture("cat", 3, 2), 3), (4, 2)), ((5,), (3,)), ((1, album.picture("dog"), 2), ())]
    with torch.no_grad():
        return RowScorer(model).eval()(pack(unwrapped(model), album, shapes))


def reward(
    path: Path | str, *, adapter: Path | None = None, lora: Lora | None = LORA, head: RewardHead = HEAD,
    trainable: bool = True, train: bool = False,
) -> torch.nn.Module:  # fmt: skip
    ref = ModelRef(path=str(path), adapter=None if adapter is None else str(adapter))
    return load_reward_model(ref, config(path, lora=lora, train=train), head, dtype=FP32, trainable=trainable, seed=1)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("lora", [LORA, None])
@pytest.mark.parametrize("layers", [1, 2])
def test_a_reward_model_that_sees(family: Family, lora: Lora | None, layers: int, tmp_path: Path) -> None:
    path, album = folder(family).name, Album(family)
    model = moved(reward(path, lora=lora, head=RewardHead(layers=layers)))
    expected = rewards(model, album)
    assert expected.std() > 1e-4
    tokenizer = load_tokenizer(path)
    save_reward_model(model, tokenizer, tmp_path)
    assert (tmp_path / "preprocessor_config.json").is_file()
    stored = reward(path if lora else tmp_path, adapter=tmp_path if lora else None, trainable=False)
    torch.testing.assert_close(rewards(stored, album), expected, rtol=0, atol=1e-5)
    # It is no language model, and its checkpoint is an ordinary one with a tensor more.
    ref = ModelRef(path=path, adapter=str(tmp_path)) if lora else ModelRef(path=str(tmp_path))
    with pytest.raises(ModelError, match="a reward model, not a language model"):
        load_model(ref, config(ref.path), dtype=FP32)
    if lora is None:
        _, report = AutoModelForImageTextToText.from_pretrained(tmp_path, output_loading_info=True)
        assert set(report["unexpected_keys"]) == {"score.weight"} and not report["missing_keys"]
    goes_on = reward(ref.path, adapter=tmp_path if lora else None, lora=lora, head=RewardHead(layers=layers))
    torch.testing.assert_close(rewards(goes_on, album), expected, rtol=0, atol=1e-5)


def test_a_language_model_is_no_reward_model() -> None:
    with pytest.raises(ModelError, match="a language model, not a reward model"):
        reward(folder("qwen3_vl").name, trainable=False)


def test_a_reward_adapter_merges(tmp_path: Path) -> None:
    path, album = folder("qwen2_5_vl").name, Album("qwen2_5_vl")
    model = moved(reward(path, head=RewardHead(layers=2)))
    expected = rewards(model, album)
    assert isinstance(model, PeftModel)
    merged, difference = merge_reward_adapter(model, [[20, 30, 40], [50, 60]], dtype=FP32, tolerance=1e-3)
    assert difference < 1e-4
    save_reward_model(merged, load_tokenizer(path), tmp_path)
    torch.testing.assert_close(rewards(reward(tmp_path, trainable=False), album), expected, rtol=0, atol=1e-4)


def test_the_head_of_a_reward_model_that_sees_trains_alone() -> None:
    model = reward(folder("qwen3_vl").name, head=RewardHead(freeze_backbone=True), train=True)
    assert trained_names(model) == {"score.weight"}


def test_a_reward_head_on_an_adapter_of_the_language_model(tmp_path: Path) -> None:
    path = folder("qwen3_vl").name
    language = moved(load(path))
    save_trained(language, load_tokenizer(path), tmp_path)
    model = reward(path, adapter=tmp_path)
    assert "score.modules_to_save.default.weight" in trained_names(model)
    album = Album("qwen3_vl")
    packed = pack(unwrapped(model), album, [((2, album.picture("cat"), 2), (3,))])
    with torch.no_grad():
        every = torch.arange(packed.num_tokens)
        ours, theirs = RowScorer(model).backbone.hidden(packed, every), TokenScorer(language).hidden(packed, every)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("own", [False, True])
def test_values_of_states_with_pictures(own: bool) -> None:
    path, album = folder("qwen3_vl").name, Album("qwen3_vl")
    policy = load(path).eval()
    packed = pack(unwrapped(policy), album, [((2, album.picture("cat"), 2), (3, 2)), ((4,), ())])
    if own:
        value = ValueScorer(load_value_model(ModelRef(path=path), config(path), dtype=FP32, seed=0))
    else:
        value = fresh_value_head(policy)
    scorer = PolicyScorer(TokenScorer(policy), value)
    scores = scorer(packed)
    assert not scores.values.tokens.any() and len(scores.values.tokens) == len(packed.targets)
    torch.testing.assert_close(scores.tokens.logprobs, plain_logprobs(unwrapped(policy), packed), rtol=0, atol=1e-4)
    moved(scorer)
    later = scorer.values(packed)
    assert later.tokens.std() > 1e-4
    torch.testing.assert_close(later.tokens, scorer(packed).values.tokens, rtol=0, atol=1e-6)


def test_an_adapter_names_its_layers_in_full_where_the_tower_has_the_same(tmp_path: Path) -> None:
    path = folder("llava").name
    save_trained(load(path), load_tokenizer(path), tmp_path)
    names = json.loads((tmp_path / "adapter_config.json").read_text())["target_modules"]
    assert names == sorted(names)
    assert all("vision" not in name for name in names)
