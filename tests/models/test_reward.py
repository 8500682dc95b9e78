"""Reward models: what is trained and saved, and that a score is the same number wherever it is computed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, BertConfig, BertForMaskedLM

from tests.models.packed import ARCHITECTURES, build, pack
from whet.config.model import Lora, Model
from whet.config.reward import RewardHead
from whet.errors import ModelError
from whet.models.load import load_model, load_tokenizer, save_trained
from whet.models.merge import merge_reward_adapter
from whet.models.reward import load_reward_model, save_reward_model
from whet.models.rows import row_places
from whet.models.score_head import ScoreHead, fresh_head, num_layers
from whet.models.scoring import RowScorer
from whet.schema.artifacts import ModelRef

SHAPES = [(5, (3, 1, 7)), (9, ()), (2, (4,))]
LORA = Lora(rank=4)
ONE, TWO, FROZEN = RewardHead(), RewardHead(layers=2), RewardHead(freeze_backbone=True)


def make(
    path: Path | str, head: RewardHead = ONE, *, lora: Lora | None = LORA, adapter: Path | None = None, seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> torch.nn.Module:  # fmt: skip
    """A reward model to train."""
    ref = ModelRef(path=str(path), adapter=None if adapter is None else str(adapter))
    return load_reward_model(
        ref, Model(path=ref.path, lora=lora, device="cpu"), head, dtype=dtype, trainable=True, seed=seed
    )


def ready(path: Path | str, adapter: Path | None = None) -> torch.nn.Module:
    """A reward model to score with."""
    ref = ModelRef(path=str(path), adapter=None if adapter is None else str(adapter))
    return load_reward_model(ref, Model(path=ref.path, device="cpu"), ONE, dtype=torch.float32)


def trained(model: torch.nn.Module) -> torch.nn.Module:
    """As after some steps: everything that trains has moved."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval()


def scores(model: torch.nn.Module) -> Tensor:
    with torch.no_grad():
        return RowScorer(model).eval()(pack(SHAPES))


def padded_scores(model: torch.nn.Module) -> Tensor:
    """By the model's own forward pass over right-padded rows, each ended by its last token that is not padding."""
    packed = pack(SHAPES)
    places = row_places(packed.trees)
    real = places >= 0
    pad = model.config.pad_token_id
    assert pad is not None and pad not in packed.input_ids
    ids = torch.where(real, packed.input_ids[places.clamp_min(0)], pad)
    with torch.no_grad():
        logits: Tensor = model(input_ids=ids, attention_mask=real.long(), use_cache=False).logits
    return logits.squeeze(-1).float()


def test_a_head_of_two_layers_by_hand() -> None:
    """w tanh(V h) with V = [[1, 0], [0, 2]], w = [3, -1], h = [0.5, 0.25]: 3 tanh 0.5 - tanh 0.5 = 2 tanh 0.5."""
    weight = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, -1.0]], dtype=torch.float64)
    head = ScoreHead(weight)
    score = head(torch.tensor([[0.5, 0.25]], dtype=torch.float64))
    torch.testing.assert_close(score, torch.tensor([[0.9242343145200195]], dtype=torch.float64))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert head(torch.ones(1, 2, dtype=torch.bfloat16)).dtype == torch.float64
        assert head.bfloat16()(torch.ones(1, 2)).dtype == torch.float32, "a score is never bf16"
    assert num_layers(weight, "") == 2 and num_layers(weight[-1:], "") == 1


def test_a_fresh_head_is_small_and_repeatable() -> None:
    head = fresh_head(2, 64, std=0.02, seed=3)
    assert head.shape == (65, 64)
    assert torch.equal(head, fresh_head(2, 64, std=0.02, seed=3))
    assert not torch.equal(head, fresh_head(2, 64, std=0.02, seed=4))
    assert 0.015 < head[-1].std() < 0.025
    assert 0.11 < head[:-1].std() < 0.14, "1 / sqrt(64)"


@pytest.mark.parametrize("head", [ONE, TWO, RewardHead(layers=3)], ids=lambda head: f"{head.layers} layers")
@pytest.mark.parametrize("lora", [LORA, None], ids=["adapter", "whole"])
def test_scores_survive_saving(tiny_checkpoint: Path, tmp_path: Path, head: RewardHead, lora: Lora | None) -> None:
    model = trained(make(tiny_checkpoint, head, lora=lora))
    expected = scores(model)
    assert expected.std() > 0.01
    save_reward_model(model, load_tokenizer(str(tiny_checkpoint)), tmp_path / "saved")
    again = ready(tiny_checkpoint, tmp_path / "saved") if lora else ready(tmp_path / "saved")
    torch.testing.assert_close(scores(again), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(padded_scores(again), expected, rtol=0, atol=1e-5)
    assert not any(parameter.requires_grad for parameter in again.parameters())
    further = make(tiny_checkpoint, head, adapter=tmp_path / "saved") if lora else make(tmp_path / "saved", lora=None)
    torch.testing.assert_close(scores(further), expected, rtol=0, atol=1e-6), "training goes on from there"


def test_transformers_alone_gives_the_same_scores(tiny_checkpoint: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(tiny_checkpoint))
    whole = trained(make(tiny_checkpoint, lora=None))
    save_reward_model(whole, tokenizer, tmp_path / "whole")
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "whole")
    assert type(plain.score) is torch.nn.Linear
    torch.testing.assert_close(padded_scores(plain), scores(whole), rtol=0, atol=1e-4)

    adapted = trained(make(tiny_checkpoint))
    save_reward_model(adapted, tokenizer, tmp_path / "adapter")
    plain = AutoModelForSequenceClassification.from_pretrained(tiny_checkpoint, num_labels=1)
    plain = PeftModel.from_pretrained(plain, tmp_path / "adapter").eval()
    torch.testing.assert_close(padded_scores(plain), scores(adapted), rtol=0, atol=1e-4)


def test_a_deep_head_is_refused_by_who_expects_one_layer(tiny_checkpoint: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(tiny_checkpoint))
    save_reward_model(make(tiny_checkpoint, TWO, lora=None), tokenizer, tmp_path / "whole")
    with pytest.raises(RuntimeError, match="mismatch"):
        AutoModelForSequenceClassification.from_pretrained(tmp_path / "whole")
    save_reward_model(make(tiny_checkpoint, TWO), tokenizer, tmp_path / "adapter")
    plain = AutoModelForSequenceClassification.from_pretrained(tiny_checkpoint, num_labels=1)
    with pytest.raises(RuntimeError, match="size mismatch"):
        PeftModel.from_pretrained(plain, tmp_path / "adapter")


def test_what_trains(tiny_checkpoint: Path) -> None:
    def moving(model: torch.nn.Module) -> set[str]:
        assert all(p.dtype == torch.float32 for p in model.parameters() if p.requires_grad)
        return {name for name, parameter in model.named_parameters() if parameter.requires_grad}

    adapter = moving(make(tiny_checkpoint, dtype=torch.bfloat16))
    assert {name for name in adapter if "lora" not in name} == {
        "base_model.model.score.modules_to_save.default.weight"
    } and len(adapter) > 1
    whole = make(tiny_checkpoint, lora=None, dtype=torch.bfloat16)
    assert moving(whole) == {name for name, _ in whole.named_parameters()}
    frozen = make(tiny_checkpoint, FROZEN, dtype=torch.bfloat16)
    assert moving(frozen) == {"score.weight"}
    assert next(frozen.model.parameters()).dtype == torch.bfloat16


def test_the_seed_makes_the_head(tiny_checkpoint: Path) -> None:
    first, same, other = (scores(make(tiny_checkpoint, seed=seed)) for seed in (1, 1, 2))
    assert torch.equal(first, same) and not torch.equal(first, other)


def language_adapter(
    checkpoint: Path, folder: Path, *, target_modules: str | list[str] = "all-linear",
    modules_to_save: list[str] | None = None,
) -> Path:  # fmt: skip
    """An adapter as supervised fine-tuning leaves it."""
    config = LoraConfig(r=2, target_modules=target_modules, modules_to_save=modules_to_save, task_type="CAUSAL_LM")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(checkpoint), config)
    save_trained(trained(model), load_tokenizer(str(checkpoint)), folder)
    return folder


def test_an_adapter_of_a_language_model_goes_on(tiny_checkpoint: Path, tmp_path: Path) -> None:
    folder = language_adapter(tiny_checkpoint, tmp_path / "sft")
    ids = torch.arange(1, 9).unsqueeze(0)
    causal = load_model(
        ModelRef(path=str(tiny_checkpoint), adapter=str(folder)), Model(path=str(tiny_checkpoint), device="cpu"),
        dtype=torch.float32,
    )  # fmt: skip
    base = load_model(ModelRef(path=str(tiny_checkpoint)), Model(path=str(tiny_checkpoint)), dtype=torch.float32)
    with torch.no_grad():
        expected = causal.get_base_model().model(ids).last_hidden_state
        assert not torch.allclose(base.model(ids).last_hidden_state, expected, atol=1e-3), "the adapter does something"
        goes_on = make(tiny_checkpoint, adapter=folder)
        torch.testing.assert_close(goes_on.get_base_model().model(ids).last_hidden_state, expected)
        assert goes_on.peft_config["default"].r == 2, "its own rank, not the plan's"
        folded = make(tiny_checkpoint, FROZEN, adapter=folder)
        torch.testing.assert_close(folded.model(ids).last_hidden_state, expected, rtol=1e-4, atol=1e-5)
    save_reward_model(trained(goes_on), load_tokenizer(str(tiny_checkpoint)), tmp_path / "reward")
    again = ready(tiny_checkpoint, tmp_path / "reward")
    torch.testing.assert_close(scores(again), scores(goes_on), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "part"),
    [({"target_modules": ["q_proj", "lm_head"]}, "lm_head"), ({"modules_to_save": ["embed_tokens"]}, "embed_tokens")],
)
def test_an_adapter_on_more_than_layers_is_refused(
    tiny_checkpoint: Path, tmp_path: Path, options: dict[str, list[str]], part: str
) -> None:
    folder = language_adapter(tiny_checkpoint, tmp_path / "sft", **options)
    with pytest.raises(ModelError, match=rf"adapter trains .*{part}.*; put a merge stage before the reward stage"):
        make(tiny_checkpoint, adapter=folder)


def test_merged_it_scores_the_same(tiny_checkpoint: Path, tmp_path: Path) -> None:
    probes = [[5, 6, 7], [9], [11, 200, 30, 31]]
    tokenizer = load_tokenizer(str(tiny_checkpoint))
    for head in (ONE, TWO):
        model = trained(make(tiny_checkpoint, head))
        expected = scores(model)
        merged, difference = merge_reward_adapter(model, probes, dtype=torch.float32, tolerance=1e-4)
        assert difference < 1e-4 and not any("lora" in name for name, _ in merged.named_parameters())
        save_reward_model(merged, tokenizer, tmp_path / f"merged{head.layers}")
        torch.testing.assert_close(scores(ready(tmp_path / f"merged{head.layers}")), expected, rtol=0, atol=1e-4)
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged1")
    torch.testing.assert_close(padded_scores(plain), scores(ready(tmp_path / "merged1")), rtol=0, atol=1e-4)
    narrow, difference = merge_reward_adapter(trained(make(tiny_checkpoint)), probes, dtype=torch.bfloat16, tolerance=1)
    assert difference > 1e-5 and narrow.score.weight.dtype == torch.float32
    with pytest.raises(ModelError, match="merged model differs"):
        merge_reward_adapter(trained(make(tiny_checkpoint)), probes, dtype=torch.bfloat16, tolerance=1e-7)


@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name not in ("cohere", "granite", "hyperclovax")])
def test_packed_rows_score_as_padded_ones(name: str, tmp_path: Path) -> None:
    build(name).save_pretrained(tmp_path)
    for head in (ONE, TWO):
        model = trained(make(tmp_path, head))
        model.config.pad_token_id = model.get_base_model().config.pad_token_id = 0
        torch.testing.assert_close(scores(model), padded_scores(model), rtol=1e-4, atol=1e-4)


def test_a_head_in_one_of_several_files_is_found(tiny_checkpoint: Path, tmp_path: Path) -> None:
    model = trained(make(tiny_checkpoint, lora=None))
    model.save_pretrained(tmp_path, max_shard_size="50KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    torch.testing.assert_close(scores(ready(tmp_path)), scores(model), rtol=0, atol=1e-6)


def test_padding_is_never_the_token_that_ends_a_text(tiny_checkpoint: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(tiny_checkpoint))
    tokenizer.pad_token, tokenizer.bos_token = tokenizer.eos_token, "<|im_start|>"
    save_reward_model(make(tiny_checkpoint, lora=None), tokenizer, tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())["pad_token_id"]
    assert saved == tokenizer.bos_token_id == load_tokenizer(str(tmp_path)).pad_token_id
    assert tokenizer.pad_token == tokenizer.eos_token, "the tokenizer at hand stays as it is"


def test_what_is_no_reward_model_does_not_score(tiny_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"a language model, not a reward model .*train one of it first"):
        ready(tiny_checkpoint)
    with pytest.raises(ModelError, match="a language model, not a reward model"):
        ready(tiny_checkpoint, language_adapter(tiny_checkpoint, tmp_path / "sft"))


@pytest.mark.parametrize("lora", [LORA, None], ids=["adapter", "whole"])
def test_a_reward_model_does_not_speak(tiny_checkpoint: Path, tmp_path: Path, lora: Lora | None) -> None:
    save_reward_model(make(tiny_checkpoint, lora=lora), load_tokenizer(str(tiny_checkpoint)), tmp_path)
    ref = ModelRef(path=str(tiny_checkpoint), adapter=str(tmp_path)) if lora else ModelRef(path=str(tmp_path))
    with pytest.raises(ModelError, match="a reward model, not a language model"):
        load_model(ref, Model(path=ref.path, device="cpu"), dtype=torch.float32)


def test_a_stored_head_keeps_its_layers(tiny_checkpoint: Path, tmp_path: Path) -> None:
    save_reward_model(make(tiny_checkpoint, TWO, lora=None), load_tokenizer(str(tiny_checkpoint)), tmp_path)
    assert make(tmp_path, ONE).score.modules_to_save["default"].weight.shape == (33, 32)
    with pytest.raises(ModelError, match=r"head\.layers: the reward model has a head of 2 layers already \(found 3\)"):
        make(tmp_path, RewardHead(layers=3))


def test_other_classifiers_are_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    AutoModelForSequenceClassification.from_pretrained(tiny_checkpoint, num_labels=5).save_pretrained(tmp_path / "five")
    with pytest.raises(ModelError, match=r"classifier with 5 labels .*; a reward model has one"):
        ready(tmp_path / "five")
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertForMaskedLM(BertConfig(vocab_size=64, **small)).save_pretrained(tmp_path / "bert")
    with pytest.raises(ModelError, match="BertForSequenceClassification has another kind of head"):
        make(tmp_path / "bert")
