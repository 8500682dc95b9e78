"""A vision-language model built on the spot must be, to whoever opens it, a downloaded checkpoint."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoTokenizer

from whet.models.tiny_vlm import Family, Tower, build_tiny_vlm

TEXTS = ["The cat sat on the mat.", "Two red circles and a blue square."] * 10
FAMILIES: tuple[Family, ...] = ("qwen2_5_vl", "qwen3_vl", "llava")


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("family", FAMILIES)
def test_opens_with_the_auto_classes_and_sees(family: Family, tmp_path: Path) -> None:
    build_tiny_vlm(tmp_path, TEXTS, family=family)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    model = AutoModelForImageTextToText.from_pretrained(tmp_path)
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    assert model.config.model_type == family
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    inputs = processor(images=[picture(90, 70)], return_tensors="pt")
    features = torch.cat(list(model.get_image_features(**inputs).pooler_output))
    if family == "llava":
        assert len(features) == 16
    else:
        _, height, width = inputs["image_grid_thw"][0].tolist()
        assert len(features) == height * width // 4
        assert height != width
    assert features.shape[1] == 64
    turn = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Two"}]}]
    text = tokenizer.apply_chat_template(turn, tokenize=False)
    mark = "<image>" if family == "llava" else "<|vision_start|><|image_pad|><|vision_end|>"
    assert text == f"<|im_start|>user\n{mark}Two<|im_end|>\n"
    ids = tokenizer(text).input_ids
    assert ids.count(model.config.image_token_id) == 1


@pytest.mark.parametrize("family", FAMILIES)
def test_same_arguments_same_bytes(family: Family, tmp_path: Path) -> None:
    state = torch.random.get_rng_state()
    first, again = (build_tiny_vlm(tmp_path / name, iter(TEXTS), family=family, vocab_size=300) for name in "ab")
    assert torch.equal(state, torch.random.get_rng_state())
    names = sorted(file.name for file in first.iterdir())
    assert "preprocessor_config.json" in names
    assert names == sorted(file.name for file in again.iterdir())
    for name in names:
        assert (first / name).read_bytes() == (again / name).read_bytes(), name


def test_every_size_is_an_argument(tmp_path: Path) -> None:
    tower = Tower(depth=3, hidden_size=16, num_heads=1, patch_size=8, merge_size=1, max_tokens=16, num_positions=16)
    build_tiny_vlm(tmp_path, TEXTS, family="qwen3_vl", hidden_size=32, num_layers=3, num_heads=2, tower=tower, seed=3)
    model = AutoModelForImageTextToText.from_pretrained(tmp_path)
    inputs = AutoImageProcessor.from_pretrained(tmp_path)(images=[picture(64, 32)], return_tensors="pt")
    grid = inputs["image_grid_thw"][0].tolist()
    assert grid[1] * grid[2] <= 16
    assert grid[2] > grid[1]
    (features,) = model.get_image_features(**inputs).pooler_output
    assert features.shape == (grid[1] * grid[2], 32)
    assert len(model.model.visual.blocks) == 3
