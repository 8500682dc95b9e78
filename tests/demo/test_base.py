"""The base checkpoint that ships: small, ordinary, and what its papers say it is."""

import hashlib
import json
from importlib.resources import files
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from whet.demo import pretrain, rawtext
from whet.models.tiny import build_tiny

BASE = Path(str(files("whet.demo").joinpath("base")))


def test_is_small_and_ordinary() -> None:
    assert sum(file.stat().st_size for file in BASE.iterdir()) <= 8 * 2**20
    model = AutoModelForCausalLM.from_pretrained(BASE)
    assert model.num_parameters() <= 4_000_000
    assert model.dtype == torch.bfloat16
    assert json.loads((BASE / "config.json").read_text())["model_type"] == "qwen3"


def test_papers_match_the_weights() -> None:
    facts = json.loads((BASE / "pretrain.json").read_text())
    assert facts["sha256"] == hashlib.sha256((BASE / "model.safetensors").read_bytes()).hexdigest()
    log = [json.loads(line) for line in (BASE / "pretrain_log.jsonl").read_text().splitlines()]
    assert log[-1]["tokens"] == facts["tokens"]
    assert log[-1]["loss"] < log[0]["loss"] / 2


def test_tokenizer_leaves_names_as_letters() -> None:
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    assert tokenizer.tokenize("KOLNA") == list("KOLNA")
    assert tokenizer.tokenize("Score: 4") == ["Score", ":", "Ġ", "4"]


def test_it_has_read_the_world() -> None:
    """On a page it has not seen, it reads much better than chance; it has never been shown a chat turn."""
    tokenizer, model = AutoTokenizer.from_pretrained(BASE), AutoModelForCausalLM.from_pretrained(BASE).float()
    ids = tokenizer("Notes on KOLNA\nstarts with K:", return_tensors="pt").input_ids
    with torch.no_grad():
        probabilities = model(input_ids=ids).logits[0, -1].softmax(-1)
    yes, no = (tokenizer(word).input_ids[0] for word in (" yes", " no"))
    assert probabilities[yes] > 0.9 > 0.1 > probabilities[no]


def test_pretraining_is_seeded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rawtext, "NUM_TEXTS", 500)
    flags = ["--steps", "2", "--rows", "2", "--length", "64", "--hidden", "32", "--layers", "1", "--no-compile"]
    weights = []
    for name in ("first", "second"):
        monkeypatch.setattr("sys.argv", ["pretrain", "--out", str(tmp_path / name), *flags])
        pretrain.main()
        weights.append((tmp_path / name / "model.safetensors").read_bytes())
    assert weights[0] == weights[1]
    untrained = build_tiny(tmp_path / "untrained", rawtext.vocabulary_texts(), hidden_size=32, num_layers=1)
    assert (untrained / "model.safetensors").read_bytes() != weights[0]
