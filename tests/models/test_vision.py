"""Rows with pictures, packed and shared, against transformers' own padded forward pass."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.models.pictured import (
    FAMILIES,
    MERGE,
    PATCH,
    Album,
    Shape,
    build,
    pack,
    pictures_at,
    plain_logprobs,
    plain_padded_logprobs,
)
from tests.models.test_scoring import gradients, relative
from whet.errors import ModelError
from whet.models.inputs import inputs_of
from whet.models.positions import grid_positions, prompt_shifts
from whet.models.rows import row_places
from whet.models.scoring import TokenScorer
from whet.models.tiny_vlm import Family
from whet.models.vision import Vision, language_layers, vision_parts
from whet.schema.packed import Packed


def rows(album: Album) -> list[Shape]:
    """0 to 3 pictures a row, wide, high and square, one of them twice; rows of text between."""
    cat, dog, sky = album.picture("cat", 2, 3), album.picture("dog", 4, 2), album.picture("sky", 3, 3)
    return [
        ((3, cat, 2), (4, 6, 1)),
        ((5,), (3, 7)),
        ((2, dog, 1, cat, 4), (2, 5)),
        ((9,), ()),
        ((1, sky, 1, dog, 1, cat, 1), (3,)),
        ((2, sky, 6), ()),
    ]


@pytest.mark.parametrize("family", FAMILIES)
def test_float64_logprobs_and_gradients_are_those_of_the_padded_forward_pass(family: Family) -> None:
    model, album = build(family).double(), Album(family)
    packed = pack(model, album, rows(album))
    scorer = TokenScorer(model)
    assert scorer.backbone.refusal is None
    found, expected = scorer(packed).logprobs, plain_padded_logprobs(model, packed)
    assert expected.std() > 0.04, "the model is too flat to show a difference"
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(plain_logprobs(model, packed), expected, rtol=0, atol=1e-6)
    assert relative(gradients(found, model), gradients(expected, model)) < 1e-6


@pytest.mark.parametrize("family", FAMILIES)
def test_the_pictures_matter(family: Family) -> None:
    model, album = build(family), Album(family)
    seen = TokenScorer(model)(pack(model, album, [((3, album.picture("cat"), 2), (6,))])).logprobs
    other = TokenScorer(model)(pack(model, album, [((3, album.picture("dog"), 2), (6,))])).logprobs
    assert (seen - other).abs().max() > 1e-3


@pytest.mark.parametrize("family", FAMILIES)
def test_fp32_gradients_of_everything_and_of_the_tower(family: Family) -> None:
    model, album = build(family), Album(family)
    packed, exact = pack(model, album, rows(album)), copy.deepcopy(model).double()
    found, expected = TokenScorer(model)(packed).logprobs, plain_padded_logprobs(exact, packed)
    mine, theirs = gradients(found, model), gradients(expected, exact)
    assert relative(mine, theirs) < 1e-5
    tower = torch.cat([
        torch.full((p.numel(),), any(name.startswith(part) for part in vision_parts(model)))
        for name, p in model.named_parameters()
    ])  # fmt: skip
    assert theirs[tower].norm() > 1e-3
    assert relative(mine[tower], theirs[tower]) < 1e-5


grids = st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5)), max_size=3)
prompts = st.tuples(st.lists(st.integers(1, 4), min_size=4, max_size=4), grids, st.lists(st.integers(1, 4), max_size=3))


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
@settings(max_examples=25, deadline=None)
@given(trees=st.lists(prompts, min_size=1, max_size=3))
def test_positions_are_those_of_the_model_itself(
    family: Family, trees: list[tuple[list[int], list, list[int]]]
) -> None:
    model, album = built(family), Album(family)
    shapes: list[Shape] = []
    for words, sizes, branches in trees:
        prompt: list = [words[0]]
        for number, (height, width) in enumerate(sizes):
            prompt += [album.picture(f"{height}x{width}", height, width), words[number + 1]]
        shapes.append((prompt, tuple(branches)))
    packed = pack(model, album, shapes)
    media = packed.media
    ours = (
        packed.position_ids.repeat(3, 1) if media is None else grid_positions(packed.position_ids, packed.trees, media)
    )
    for places in row_places(packed.trees):
        row = places[places >= 0]
        expected, _ = rope_index(model, packed, row)
        assert torch.equal(ours[:, row], expected)
    for tree, shift in zip(packed.trees, prompt_shifts(packed.trees, media), strict=True):
        _, delta = rope_index(model, packed, torch.arange(tree.start, tree.start + tree.prompt))
        assert shift == delta


_built: dict[str, torch.nn.Module] = {}


def built(family: Family) -> torch.nn.Module:
    """One model for all examples."""
    if family not in _built:
        _built[family] = build(family)
    return _built[family]


def rope_index(model: torch.nn.Module, packed: Packed, row: torch.Tensor) -> tuple[torch.Tensor, int]:
    """[3, L] positions of one row by the model's own rule, and by how much what follows is shifted."""
    ids = packed.input_ids[row].unsqueeze(0)
    types = (ids == model.config.image_token_id).int()
    shown = [] if packed.media is None else pictures_at(packed, set(row.tolist()))
    merge = model.config.vision_config.spatial_merge_size
    grid = torch.tensor([(1, p.grid[0] * merge, p.grid[1] * merge) for p in shown if p.grid]) if shown else None
    positions, shift = model.model.get_rope_index(ids, types, image_grid_thw=grid)
    return positions[:, 0], int(shift)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[int]]:
    """Pictures a pass of the tower, and tokens a pass of the language model."""
    counts: dict[str, list[int]] = {"pictures": [], "tokens": []}
    look = Vision.look

    def counted(self: Vision, pictures: list, load: object) -> list:
        counts["pictures"].append(len(pictures))
        return look(self, pictures, load)  # type: ignore[arg-type]

    monkeypatch.setattr(Vision, "look", counted)
    return counts


def watch(model: torch.nn.Module, seen: dict[str, list[int]]) -> None:
    def count(module: torch.nn.Module, args: tuple, out: torch.Tensor) -> None:
        seen["tokens"].append(out[0].shape[-2] if isinstance(out, tuple) else out.shape[-2])

    language_layers(model).layers[0].register_forward_hook(count)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("trained", [False, True])
def test_a_group_costs_its_picture_once(family: Family, trained: bool, seen: dict[str, list[int]]) -> None:
    model, album = build(family), Album(family)
    for part in vision_parts(model).values():
        part.requires_grad_(trained)
    scorer = TokenScorer(model)
    scorer(pack(model, album, [((1, album.picture("tried"), 1), (2,))]))
    watch(model, seen)
    seen["pictures"].clear()
    cat = album.picture("cat", 4, 3)
    packed = pack(model, album, [((3, cat, 2), (6,) * 8)])
    assert scorer(packed).logprobs.requires_grad
    assert seen == {"pictures": [1], "tokens": [3 + cat.num_tokens + 2 + 8 * 6]}
    # The same picture in three rows and twice in one of them, and beside another.
    dog = album.picture("dog", 2, 5)
    scorer(pack(model, album, [((1, dog, 1), (2, 2)), ((1, dog, 1, dog, 1, cat, 2), (3,)), ((4, dog, 1), ())]))
    assert seen["pictures"] == ([1, 2] if trained else [1, 1])
    scorer(pack(model, album, [((1, dog, 1), (2, 2))]))
    assert seen["pictures"] == ([1, 2, 1] if trained else [1, 1])


def test_kept_features_stay_within_their_bytes_and_the_newest_stay() -> None:
    model, album = build("qwen3_vl"), Album("qwen3_vl")
    model.requires_grad_(False)
    one = 2 * 6 * 32 * 4
    vision = Vision(model, keep_bytes=2 * one)  # a picture's tokens, and once more for the deep features
    names = ["a", "b", "a", "c", "a", "b"]
    loaded = []
    for name in names:
        packed = pack(model, album, [((1, album.picture(name), 1), ())])
        assert packed.media is not None
        vision.features(packed.media)
        loaded.append(album.loaded)
    assert loaded == [1, 2, 2, 3, 3, 4]


def test_features_are_forgotten_when_the_tower_changes() -> None:
    model, album = build("qwen2_5_vl"), Album("qwen2_5_vl")
    model.requires_grad_(False)
    scorer, packed = TokenScorer(model), pack(model, album, [((1, album.picture("cat"), 1), (3,))])
    before = scorer(packed).logprobs
    with torch.no_grad():
        next(iter(vision_parts(model)["model.visual"].parameters())).mul_(1.5)
    after = scorer(packed).logprobs
    assert (after - before).abs().max() > 1e-4
    torch.testing.assert_close(after, plain_logprobs(model, packed), rtol=0, atol=1e-4)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_pass_without_gradient_keeps_no_activations_of_a_tower_that_trains(mode: type[torch.no_grad]) -> None:
    model, album = build("qwen2_5_vl").train(), Album("qwen2_5_vl")
    packed = pack(model, album, [((1, album.picture("cat"), 1), (3,))])
    assert packed.media is not None
    with mode():
        assert Vision(model).features(packed.media).tokens.grad_fn is None
    assert Vision(model).features(packed.media).tokens.grad_fn is not None


def test_an_adapter_on_the_tower_is_switched_off_for_the_reference() -> None:
    from peft import LoraConfig, get_peft_model

    model, album = build("qwen2_5_vl"), Album("qwen2_5_vl")
    packed = pack(model, album, [((1, album.picture("cat"), 1), (3,))])
    plain = plain_logprobs(model, packed)
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules=["qkv", "q_proj"], task_type="CAUSAL_LM"))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    scorer = TokenScorer(adapted)
    with torch.no_grad():
        trained = scorer(packed).logprobs
        with adapted.disable_adapter():
            torch.testing.assert_close(scorer(packed).logprobs, plain, rtol=0, atol=1e-4)
    assert (trained - plain).abs().max() > 1e-3
    found, expected = scorer(packed).logprobs, plain_logprobs(adapted.get_base_model(), packed)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    assert relative(gradients(found, adapted), gradients(expected, adapted)) < 1e-4


@pytest.mark.parametrize("family", FAMILIES)
def test_padded_rows_where_attention_cannot_take_trees(family: Family) -> None:
    model, album = build(family, attention="eager").double(), Album(family)
    packed = pack(model, album, rows(album))
    with pytest.warns(UserWarning, match="rows are padded"):
        scorer = TokenScorer(model)
    found, expected = scorer(packed).logprobs, plain_logprobs(model, packed)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert relative(gradients(found, model), gradients(expected, model)) < 1e-6


@pytest.mark.parametrize("family", FAMILIES)
def test_recomputed_activations_change_nothing(family: Family) -> None:
    model, album = build(family).train(), Album(family)
    packed = pack(model, album, rows(album))
    kept, again = TokenScorer(model)(packed).logprobs, TokenScorer(model, keep_tokens=8)(packed).logprobs
    torch.testing.assert_close(kept, again, rtol=0, atol=1e-5)
    assert relative(gradients(again, model), gradients(kept, model)) < 1e-5


def test_noise_is_on_words_and_not_on_pictures() -> None:
    model, album = build("qwen2_5_vl").train(), Album("qwen2_5_vl")
    packed = pack(model, album, [((2, album.picture("cat"), 2), (3,))])
    scorer = TokenScorer(model, noise=5.0)
    scorer.train()
    assert packed.media is not None
    inputs = inputs_of(packed, scorer._noisy(packed), scorer.backbone.embeddings, Vision.of(model))
    plain = inputs_of(packed, None, scorer.backbone.embeddings, Vision.of(model))
    assert inputs.embedded is not None and plain.embedded is not None
    moved = (inputs.embedded - plain.embedded).abs().amax(dim=-1) > 0
    expected = torch.ones(len(packed.input_ids), dtype=torch.bool)
    expected[packed.media.places] = False
    assert torch.equal(moved, expected)


def test_bf16_logprobs() -> None:
    model, album = build("qwen3_vl"), Album("qwen3_vl")
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.div_(3.0)
    packed = pack(model, album, rows(album))
    expected = plain_logprobs(copy.deepcopy(model).double(), packed)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = TokenScorer(model)(packed).logprobs
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=3e-2)


def test_a_picture_of_another_size_than_its_place_is_refused() -> None:
    model, album = build("qwen2_5_vl"), Album("qwen2_5_vl")
    packed = pack(model, album, [((1, album.picture("cat", 2, 3), 1), ())])
    assert packed.media is not None
    wrong = album.picture("cat", 2, 2)
    scorer = TokenScorer(model)
    object.__setattr__(packed.media, "load", lambda pictures: album.load([wrong] * len(pictures)))
    with pytest.raises(ModelError, match="sees 4 tokens in a picture and its row holds a place for 6"):
        scorer(packed)


def test_a_model_of_text_takes_no_pictures() -> None:
    from tests.models.packed import build as build_text

    model, album = build("qwen2_5_vl"), Album("qwen2_5_vl")
    packed = pack(model, album, [((1, album.picture("cat"), 1), ())])
    with pytest.raises(ModelError, match="the model takes no pictures"):
        TokenScorer(build_text("qwen2"))(packed)


def test_a_model_that_takes_pictures_in_another_way_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model, album = build("qwen2_5_vl"), Album("qwen2_5_vl")
    packed = pack(model, album, [((1, album.picture("cat"), 1), ())])
    monkeypatch.setattr("whet.models.inputs.grid_positions", lambda own, trees, media: own.repeat(3, 1))
    with pytest.raises(ModelError, match="takes pictures in a way that is not known"):
        TokenScorer(model)(packed)


def test_the_family_before() -> None:
    """Qwen2-VL: the same positions, another tower."""
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    newer, album = build("qwen2_5_vl"), Album("qwen2_5_vl")
    text = newer.config.text_config.to_dict() | {"model_type": "qwen2_vl_text"}
    vision = {
        "embed_dim": 16, "hidden_size": 32, "depth": 2, "num_heads": 2, "mlp_ratio": 2, "patch_size": PATCH,
        "spatial_merge_size": MERGE, "temporal_patch_size": 2,
    }  # fmt: skip
    marks = {name: getattr(newer.config, name) for name in ("image_token_id", "video_token_id")}
    torch.manual_seed(0)
    model = Qwen2VLForConditionalGeneration(Qwen2VLConfig(text_config=text, vision_config=vision, **marks)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.mul_(4.0)
    packed = pack(model, album, rows(album))
    expected = plain_padded_logprobs(model, packed)
    assert expected.std() > 0.04
    torch.testing.assert_close(TokenScorer(model)(packed).logprobs, expected, rtol=0, atol=1e-4)
