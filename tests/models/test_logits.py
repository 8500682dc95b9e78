"""What a family does to its logits, found by trying; and what is not known is one line."""

from __future__ import annotations

import copy
from types import MethodType

import pytest
import torch
from transformers import (
    BertConfig,
    BertLMHeadModel,
    FalconH1Config,
    FalconH1ForCausalLM,
    MiniCPM3Config,
    MiniCPM3ForCausalLM,
    MptConfig,
    MptForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedModel,
    RecurrentGemmaConfig,
    RecurrentGemmaForCausalLM,
)

from tests.models.packed import PLAIN, VOCABULARY, build, pack, plain_logprobs, with_adapter
from whet.errors import ModelError
from whet.models import logits
from whet.models.logits import Transform, logit_transform
from whet.models.scoring import TokenScorer, logits_function, next_logits

SHAPES = [(5, (3, 7)), (9, ()), (4, (1, 2, 6))]
MAMBA = {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_chunk_size": 8}
LATENT = {"kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 8}
MPT = {"vocab_size": VOCABULARY, "d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 128}
MADE = {
    "falcon_h1": lambda: FalconH1ForCausalLM(FalconH1Config(**PLAIN, **MAMBA, lm_head_multiplier=0.3)),
    "recurrent_gemma": lambda: RecurrentGemmaForCausalLM(
        RecurrentGemmaConfig(**PLAIN, lru_width=32, logits_soft_cap=0.5, attention_window_size=64)
    ),
    "mpt": lambda: MptForCausalLM(MptConfig(**MPT, logit_scale="inv_sqrt_d_model")),
    "mpt, a number": lambda: MptForCausalLM(MptConfig(**MPT, logit_scale=0.25)),
    "minicpm3": lambda: MiniCPM3ForCausalLM(
        MiniCPM3Config(**{**PLAIN, "num_key_value_heads": 4}, **LATENT, dim_model_base=8)
    ),
    "opt": lambda: OPTForCausalLM(
        OPTConfig(
            vocab_size=VOCABULARY, hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4,
            word_embed_proj_dim=32, max_position_embeddings=128,
        )
    ),
}  # fmt: skip
WANTED = {
    "falcon_h1": Transform(0.3), "recurrent_gemma": Transform(1.0, 0.5), "mpt": Transform(),
    "mpt, a number": Transform(), "minicpm3": Transform(0.25), "opt": Transform(),
}  # fmt: skip


def made(name: str) -> PreTrainedModel:
    torch.manual_seed(0)
    model: PreTrainedModel = MADE[name]()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(8.0)
    return model.eval()


@pytest.mark.filterwarnings("ignore:rows are padded")
@pytest.mark.parametrize("name", MADE)
def test_log_probs_of_families_that_do_other_things_to_their_logits(name: str) -> None:
    model, packed = made(name), pack(SHAPES)
    expected = plain_logprobs(copy.deepcopy(model), packed)
    torch.testing.assert_close(TokenScorer(model)(packed).logprobs, expected, rtol=0, atol=1e-4)
    assert logit_transform(model) == WANTED[name]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("qwen3", Transform()), ("gemma2", Transform(1.0, 0.3)), ("cohere", Transform(0.0625)),
        ("granite", Transform(0.25)), ("hyperclovax", Transform(0.125)),
    ],
)  # fmt: skip
def test_in_every_type_and_by_whoever_asks(name: str, wanted: Transform, dtype: torch.dtype) -> None:
    model = build(name).to(dtype).eval()
    assert logit_transform(model) == wanted
    with torch.no_grad():
        ids = torch.arange(1, 9)[None]
        hidden = model.model(input_ids=ids).last_hidden_state[0]
        expected = model(input_ids=ids).logits[0].float()
        for ours in (next_logits(model, hidden), logits_function(model)(hidden)):
            assert float((ours - expected).norm() / expected.norm()) < (1e-5 if dtype == torch.float32 else 1e-2)


def test_a_model_is_tried_once_and_left_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    model, rows = build("qwen3").train(), []
    state = torch.get_rng_state()
    model.register_forward_hook(lambda _, __, out: rows.append(out.logits.shape[1]))
    for _ in range(3):
        TokenScorer(model)
    assert rows == [logits.PROBE_TOKENS] and model.training and torch.equal(torch.get_rng_state(), state)
    assert len(model.model._forward_hooks) == 0
    assert all(parameter.grad is None for parameter in model.parameters())


def capped_at(model: PreTrainedModel, cap: float) -> PreTrainedModel:
    """Capped without a word of it in the configuration."""
    forward = type(model).forward

    def capping(self, *args, **options):
        out = forward(self, *args, **options)
        out.logits = cap * torch.tanh(out.logits / cap)
        return out

    model.forward = MethodType(capping, model)
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_not_known_is_one_line(dtype: torch.dtype) -> None:
    """A cap so high that no logit of a random model meets it is found as well."""
    for cap in (0.5, 30.0, 100.0):
        with pytest.raises(ModelError, match=r"^model\.path: Qwen3ForCausalLM makes its logits in a way") as caught:
            TokenScorer(capped_at(build("qwen3").to(dtype), cap))
        assert "\n" not in str(caught.value) and "take a model of another family" in str(caught.value)


@pytest.mark.filterwarnings("ignore:rows are padded")
def test_a_head_of_several_layers_is_one_line() -> None:
    config = BertConfig(
        vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
        is_decoder=True,
    )  # fmt: skip
    with pytest.raises(ModelError, match="BertLMHeadModel makes its logits"):
        TokenScorer(BertLMHeadModel(config))


def test_a_forward_pass_that_fails_is_one_line_and_memory_that_runs_out_is_not() -> None:
    full = torch.OutOfMemoryError
    for error, raised in ((ValueError("two\nlines"), ModelError), (full("full"), full)):
        model = build("qwen3")

        def failing(self, *_, error: Exception = error, **__):
            raise error

        model.forward = MethodType(failing, model)
        with pytest.raises(raised) as caught:
            TokenScorer(model)
        assert "\n" not in str(caught.value)


def test_adapters_on_and_beside_the_head_and_weights_of_two_types() -> None:
    for targets in (["q_proj"], ["q_proj", "lm_head"]):
        assert logit_transform(with_adapter(build("hyperclovax"), targets=targets).get_base_model()) == Transform(0.125)
    model = build("hyperclovax").to(torch.bfloat16)
    model.lm_head.float()  # a head that trains, beside layers that do not
    assert logit_transform(model) == Transform(0.125)
    assert TokenScorer(model).backbone.refusal is None
