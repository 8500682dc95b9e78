"""A model whose attention is not the one that packed rows take: its own numbers, training and decoding, or a line."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    DiffLlamaConfig,
    DiffLlamaForCausalLM,
    GPTJConfig,
    GPTJForCausalLM,
    PreTrainedModel,
)

from tests.models.packed import OLDER, PLAIN, SINKS, VOCABULARY, build, pack, plain_logprobs
from tests.rollout.test_decode import Letters, ask
from whet.config.model import Model
from whet.models import attention
from whet.models.attention import NAME, Layout, UnknownTerm, attend
from whet.models.backbone import Backbone
from whet.models.load import load_model
from whet.models.own_attention import attention_of
from whet.models.scoring import TokenScorer
from whet.rollout.native import NativeEngine
from whet.schema.artifacts import ModelRef
from whet.schema.packed import Tree
from whet.schema.rollouts import Sampling

SHAPES = [(5, (3, 7)), (9, ()), (4, (1, 2, 6))]


def loud(model: PreTrainedModel) -> PreTrainedModel:
    """With weights that make its answers far from uniform."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(8.0)
    return model.eval()


@pytest.mark.parametrize("name", SINKS)
def test_attention_sinks_are_not_left_out_and_rows_are_padded_with_one_line(name: str) -> None:
    packed, model = pack(SHAPES), build(name).eval()
    expected = plain_logprobs(build(name, attention="eager").eval(), packed)
    with pytest.warns(UserWarning, match=r"padded, not packed: \w+: its attention takes s_aux, which is not") as said:
        scorers = [TokenScorer(model) for _ in range(2)]
    assert len(said) == 1, "of a model that has been tried nothing is said again"
    assert attention_of(model.model) == "eager" and scorers[1].backbone.refusal == scorers[0].backbone.refusal
    for scorer in scorers:
        torch.testing.assert_close(scorer(packed).logprobs, expected, rtol=0, atol=1e-4)
    with torch.no_grad():
        for weight, parameter in model.named_parameters():
            if weight.endswith("sinks"):
                parameter.fill_(-20.0)  # as if there were none
    assert (scorers[0](packed).logprobs - expected).abs().max() > 0.1


@pytest.mark.parametrize("copied", [False, True])
@pytest.mark.parametrize("name", SINKS)
def test_greedy_answers_of_a_model_with_sinks_equal_transformers(name: str, copied: bool) -> None:
    """By the model itself, and by a copy that follows it, whose line is said no second time."""
    model, asked = build(name).eval(), ask(12, 1, Sampling(max_new_tokens=10, temperature=0.0), longest=20)
    with pytest.warns(UserWarning, match="padded, not packed") as said:
        Backbone(model)
        dtype = torch.float32 if copied else None
        engine = NativeEngine(model, Letters(), batch_size=5, end_ids=(), dtype=dtype)  # type: ignore[arg-type]
        answers = list(engine.generate(asked))
    assert len(said) == 1
    assert greedy(build(name, attention="eager").eval(), asked) == [answer.ids for answer in answers]


def test_a_copy_that_is_tried_first_leaves_the_model_to_be_tried() -> None:
    model = build("gpt_oss").eval()
    with pytest.warns(UserWarning, match="takes s_aux"):
        NativeEngine(model, Letters(), batch_size=5, end_ids=(), dtype=torch.float32)  # type: ignore[arg-type]
    assert attention_of(model.model) == NAME
    with pytest.warns(UserWarning, match="takes s_aux"):
        Backbone(model)


def greedy(model: PreTrainedModel, asked) -> list[tuple[int, ...]]:
    """By transformers, ten tokens."""
    answers = []
    for request in asked:
        ids = torch.tensor([request.prompt_ids])
        out = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=10, do_sample=False, eos_token_id=None,
            pad_token_id=0,
        )  # fmt: skip
        answers.append(tuple(out[0, ids.shape[1] :].tolist()))
    return answers


def test_what_a_layer_says_is_known_or_refused() -> None:
    generator = torch.Generator().manual_seed(3)
    q, k, v = (torch.randn(1, heads, 9, 16, generator=generator) for heads in (4, 2, 2))
    layer = torch.nn.Module()
    layer.num_key_value_groups = 2  # type: ignore[assignment]
    trees = Layout((Tree(0, 9),))
    plain = attend(layer, q, k, v, None, trees=trees)[0]
    known = {"position_ids": torch.arange(9), "sliding_window": 64, "use_cache": False, "s_aux": None}
    assert torch.equal(attend(layer, q, k, v, None, trees=trees, is_causal=True, **known)[0], plain)
    torch.testing.assert_close(attend(layer, q, k, v, None, **known)[0], plain)
    for told in ({"s_aux": torch.ones(4)}, {"indices": torch.zeros(1)}, {"something": 1}):
        for where in ({}, {"trees": trees}):
            with pytest.raises(UnknownTerm, match=f"takes {next(iter(told))}, which is not known"):
                attend(layer, q, k, v, None, **where, **told)
    bias = torch.randn(1, 4, 9, 9, generator=generator)
    assert not torch.allclose(attend(layer, q, k, v, None, position_bias=bias)[0], plain)
    for told in ({"position_bias": bias}, {"is_causal": False}):
        with pytest.raises(UnknownTerm):
            attend(layer, q, k, v, None, trees=trees, **told)
    with pytest.raises(UnknownTerm):
        attend(layer, q, k, v, None, position_bias=bias, softcap=5.0)


def test_a_cap_on_scores_does_not_make_them_causal() -> None:
    q, k, v = torch.randn(3, 1, 2, 6, 8, generator=torch.Generator().manual_seed(3))
    layer = torch.nn.Module()
    both = attend(layer, q, k, v, None, softcap=1e6, is_causal=False)[0]
    torch.testing.assert_close(both, torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2))
    assert not torch.allclose(attend(layer, q, k, v, None, softcap=1e6)[0], both)


def test_what_packed_and_padded_rows_do_wrong_alike_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers that do something more under the attentions of transformers, whose names they know."""
    model, packed = build("llama").double(), pack(SHAPES)
    for layer in model.model.layers:
        def more(*args, _forward=layer.self_attn.forward, **options):
            mixed, weights = _forward(*args, **options)
            return (mixed * 1.5 if model.config._attn_implementation in ("sdpa", "eager") else mixed), weights

        monkeypatch.setattr(layer.self_attn, "forward", more)
    with pytest.warns(UserWarning, match="LlamaForCausalLM gives other numbers"):
        scorer = TokenScorer(model)
    assert attention_of(model.model) == "sdpa"
    torch.testing.assert_close(scorer(packed).logprobs, plain_logprobs(model, packed), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        (GPTJForCausalLM, GPTJConfig(vocab_size=VOCABULARY, **OLDER, rotary_dim=8)),
        (BloomForCausalLM, BloomConfig(vocab_size=VOCABULARY, hidden_size=32, n_layer=2, n_head=4)),
    ],
)
def test_a_class_that_knows_the_attentions_of_transformers_alone_is_loaded_with_one(
    kind: type[PreTrainedModel], config, tmp_path: Path
) -> None:
    """GPT-J looks its layers up by the name of the attention; BLOOM adds a mask that is not made for adding."""
    torch.manual_seed(0)
    model, packed = loud(kind(config)), pack(SHAPES)
    expected = plain_logprobs(model, packed)
    model.save_pretrained(tmp_path)
    loaded = load_model(ModelRef(path=str(tmp_path)), Model(path=str(tmp_path), device="cpu"), dtype=torch.float32)
    with pytest.warns(UserWarning, match="has an attention of its own"):
        scorer = TokenScorer(loaded)
    torch.testing.assert_close(scorer(packed).logprobs, expected, rtol=0, atol=1e-5)


def test_layers_that_attend_twice_are_packed_and_decoded_with_padding() -> None:
    """Each of the two has values of its own, and the memory of decoding has room for one."""
    torch.manual_seed(0)
    model = loud(DiffLlamaForCausalLM(DiffLlamaConfig(**PLAIN)))
    model.set_attn_implementation(NAME)
    asked = ask(8, 1, Sampling(max_new_tokens=10, temperature=0.0), longest=20)
    engine = NativeEngine(model, Letters(), batch_size=3, end_ids=())  # type: ignore[arg-type]
    with pytest.warns(UserWarning, match="decoded with padding: DiffLlamaForCausalLM gives other numbers") as said:
        answers = list(engine.generate(asked))
    assert len(said) == 1 and TokenScorer(model).backbone.refusal is None
    assert greedy(model, asked) == [answer.ids for answer in answers]


def test_values_of_another_width_than_queries_are_decoded() -> None:
    """Latent attention (DeepSeek's) has them."""
    torch.manual_seed(0)
    config = DeepseekV3Config(
        **{**PLAIN, "num_key_value_heads": 4}, kv_lora_rank=8, q_lora_rank=8, qk_rope_head_dim=4, qk_nope_head_dim=8,
        v_head_dim=8, n_routed_experts=4, n_group=1, topk_group=1, num_experts_per_tok=2, moe_intermediate_size=16,
        first_k_dense_replace=1,
    )  # fmt: skip
    model, asked = loud(DeepseekV3ForCausalLM(config)), ask(8, 2, Sampling(max_new_tokens=10, temperature=0.0))
    model.set_attn_implementation(NAME)
    engine = NativeEngine(model, Letters(), batch_size=6, end_ids=())  # type: ignore[arg-type]
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        answers = list(engine.generate(asked))
    assert greedy(model, asked) == [answer.ids for answer in answers]


def test_memory_that_runs_out_in_a_trial_is_no_reason_to_pad(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_, **__):
        raise torch.OutOfMemoryError("out of memory")

    model = build("qwen3")
    with monkeypatch.context() as patch:
        patch.setattr(attention, "sdpa_attention_forward", full)
        patch.setattr(Backbone, "_run", full)
        with pytest.raises(torch.OutOfMemoryError):
            Backbone(model)
    assert Backbone(model).refusal is None
