"""The base checkpoint of the picture playground: small, ordinary, seeded, and what its papers say it is."""

from __future__ import annotations

import hashlib
import json
import math
from copy import deepcopy
from importlib.resources import files
from pathlib import Path
from random import Random

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoTokenizer
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from whet.demo import pages, pretrain_vision
from whet.demo.likeness import PREFERENCE, judgement, some_pair
from whet.demo.pretrain_vision import Reader, embed_as_product
from whet.demo.scenes import Scene, Thing, listed, some_scene

BASE = Path(str(files("whet.demo").joinpath("base_vision")))
SCENE = Scene(2, 3, {(0, 1): Thing("red", "circle"), (1, 2): Thing("blue", "star")})


@pytest.fixture(scope="module")
def reader() -> Reader:
    return Reader(AutoTokenizer.from_pretrained(BASE), Qwen2VLImageProcessorPil.from_pretrained(BASE))


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    return AutoModelForImageTextToText.from_pretrained(BASE, dtype=torch.float32).eval()


def test_is_small_and_ordinary() -> None:
    assert sum(file.stat().st_size for file in BASE.iterdir()) <= 12 * 2**20
    stored = AutoModelForImageTextToText.from_pretrained(BASE)
    assert stored.dtype == torch.bfloat16
    assert json.loads((BASE / "config.json").read_text())["model_type"] == "qwen2_5_vl"


def test_papers_match_the_weights() -> None:
    facts = json.loads((BASE / "pretrain.json").read_text())
    assert facts["sha256"] == hashlib.sha256((BASE / "model.safetensors").read_bytes()).hexdigest()
    log = [json.loads(line) for line in (BASE / "pretrain_log.jsonl").read_text().splitlines()]
    assert log[-1]["step"] == facts["steps"]
    assert log[-1]["loss"] < log[0]["loss"] / 5


def test_a_cell_is_a_token(reader: Reader) -> None:
    pixels = reader.pixels(SCENE)
    assert pixels["image_grid_thw"].tolist() == [[1, 4, 6]]
    ids, places = reader.tokens(["Picture: ", SCENE])
    assert len(ids) == len(places) and ids[-1] != ids[-2] == ids[-7]
    start = places[-8][0]
    inner = [(start + 1, start + 1 + row, start + 1 + column) for row in range(2) for column in range(3)]
    assert places[-8:] == [(start,) * 3, *inner, (start + 4,) * 3]


def test_positions_are_the_models_own(reader: Reader, model: torch.nn.Module) -> None:
    page = ["Image 1: ", SCENE, "\nImage 2: ", some_scene(Random(0), "train"), "\nImage 1 shows"]
    batch = reader.batch([page], len(reader.tokens(page)[0]))
    kinds = (batch["input_ids"] == model.config.image_token_id).long()
    own, _ = model.model.get_rope_index(batch["input_ids"], kinds, batch["image_grid_thw"])
    assert torch.equal(own, batch["position_ids"])


def test_a_convolution_of_one_place_is_a_product(reader: Reader, model: torch.nn.Module) -> None:
    model = deepcopy(model).double()  # the product's sums are ordered otherwise
    patches, embed = reader.pixels(SCENE)["pixel_values"].double(), model.model.visual.patch_embed
    with torch.no_grad():
        expected = embed(patches)
        embed_as_product(model)
        assert torch.allclose(embed(patches), expected, atol=1e-5)


def test_it_sees_but_does_not_judge(reader: Reader, model: torch.nn.Module) -> None:
    """What a held-out picture shows is far likelier than what another one shows; a judgement is news to it."""

    def loss(page: list[str | Scene], answer: str) -> float:
        batch = reader.batch([[*page, answer]], len(reader.tokens([*page, answer])[0]))
        asked = len(reader.tokens(page)[0])
        batch["labels"][:, :asked] = -100
        with torch.no_grad():
            return float(model(**batch).loss)

    rng = Random(1)
    scenes = [some_scene(rng, "heldout") for _ in range(8)]
    own = [loss(["Picture: ", scene, "\nIt shows"], f" {listed(scene)}.") for scene in scenes]
    other = [
        loss(["Picture: ", scene, "\nIt shows"], f" {listed(wrong)}.")
        for scene, wrong in zip(scenes, scenes[1:] + scenes[:1], strict=True)
    ]
    assert sum(own) / 8 < 1 < sum(other) / 8
    pair = some_pair(rng, "heldout")
    asked = PREFERENCE.format(question=pair.caption, first="\0", second="\0").split("\0")
    page: list[str | Scene] = [asked[0], pair.scenes[0], asked[1], pair.scenes[1], "\n"]
    assert loss(page, judgement(pair)) > 1


def test_pretraining_is_seeded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "NUM_TEXTS", 200)
    monkeypatch.setattr(pretrain_vision, "POOL", 20)
    flags = ["--steps", "1", "--rows", "2", "--length", "64", "--no-compile"]
    weights = []
    for name in ("first", "second"):
        monkeypatch.setattr("sys.argv", ["pretrain", "--out", str(tmp_path / name), *flags])
        pretrain_vision.main()
        weights.append((tmp_path / name / "model.safetensors").read_bytes())
    assert weights[0] == weights[1]
    more = ["--out", str(tmp_path / "on"), "--start", str(tmp_path / "first")]
    monkeypatch.setattr("sys.argv", ["pretrain", *more, *flags])
    pretrain_vision.main()
    facts = json.loads((tmp_path / "on" / "pretrain.json").read_text())
    assert facts["steps"] == 2 and math.isfinite(facts["seconds"])
    assert (tmp_path / "on" / "model.safetensors").read_bytes() != weights[0]
