"""Packed, shared and tiled against the plain forward pass, row by row in float64."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.models.packed import ARCHITECTURES, PADDED, build, pack, plain_logprobs, with_adapter
from whet.models import attention
from whet.models.scoring import RowScorer, TokenScorer
from whet.schema.packed import Packed

SHAPES = [(5, (3, 7)), (9, ()), (4, (1, 2, 6)), (1, (1,)), (2, ())]
shapes = st.lists(
    st.tuples(st.integers(1, 12), st.lists(st.integers(1, 9), max_size=4).map(tuple)), min_size=1, max_size=5
).filter(lambda trees: any(branches or prompt > 1 for prompt, branches in trees))


def gradients(logprobs: torch.Tensor, model: torch.nn.Module) -> torch.Tensor:
    """Of a sum with a different weight on each token, over all trained parameters, flat."""
    weights = torch.linspace(-1.0, 2.0, len(logprobs), dtype=logprobs.dtype)
    parameters = [p for p in model.parameters() if p.requires_grad]
    found = torch.autograd.grad((weights * logprobs).sum(), parameters, allow_unused=True)
    return torch.cat([
        (torch.zeros_like(p) if g is None else g).flatten() for p, g in zip(parameters, found, strict=True)
    ])  # fmt: skip


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm())


@pytest.mark.parametrize("name", [*ARCHITECTURES, *PADDED])
def test_float64_logprobs_and_gradients_are_those_of_the_plain_forward_pass(name: str) -> None:
    model, packed = build(name).double(), pack(SHAPES)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scorer = TokenScorer(model)
    assert (scorer.backbone.refusal is None) == (name != "mamba")
    found, expected = scorer(packed).logprobs, plain_logprobs(model, packed)
    assert expected.std() > 0.04, "the model is too flat to show a difference"
    torch.testing.assert_close(found.double(), expected.double(), rtol=0, atol=1e-4 if name == "mamba" else 1e-10)
    # transformers takes its norms in fp32 even here, and a shared prompt adds its gradients in another order.
    assert relative(gradients(found, model), gradients(expected, model)) < (1e-4 if name == "mamba" else 1e-6)


@pytest.mark.parametrize("name", ["qwen3", "qwen2", "llama", "gemma3"])
def test_fp32_gradients_and_bf16_logprobs(name: str) -> None:
    model, packed = with_adapter(build(name)), pack(SHAPES)
    exact = copy.deepcopy(model).double()
    expected = plain_logprobs(exact, packed)
    found = TokenScorer(model)(packed).logprobs
    assert relative(gradients(found, model), gradients(expected, exact)) < 1e-5


@pytest.mark.parametrize("name", ["qwen3", "qwen2", "llama", "gemma3"])
def test_bf16_logprobs_of_a_model_as_sharp_as_trained_ones(name: str) -> None:
    model, packed = build(name), pack(SHAPES)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.div_(4.0)
    expected = plain_logprobs(copy.deepcopy(model).double(), packed)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = TokenScorer(model)(packed).logprobs
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=2e-2)


@settings(max_examples=40, deadline=None)
@given(trees=shapes, seed=st.integers(0, 99))
def test_any_trees(trees: list[tuple[int, tuple[int, ...]]], seed: int) -> None:
    model, packed = any_trees_model(), pack(trees, seed=seed)
    torch.testing.assert_close(TokenScorer(model)(packed).logprobs, plain_logprobs(model, packed), rtol=0, atol=1e-10)


_model: list[torch.nn.Module] = []


def any_trees_model() -> torch.nn.Module:
    """One model for all examples."""
    if not _model:
        _model.append(build("qwen3").double())
    return _model[0]


def test_short_segments_in_bf16_and_sdpa_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    model, packed = with_adapter(build("qwen3").bfloat16()), pack(SHAPES)
    scorer = TokenScorer(model)
    ours = scorer(packed).logprobs
    mine = gradients(ours, model)
    monkeypatch.setattr(attention, "SHORT_PAIRS", 0)
    theirs = scorer(packed).logprobs
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0.15)
    assert 0 < relative(mine, gradients(theirs, model)) < 0.03


def test_an_adapter_on_the_head_and_on_the_embeddings() -> None:
    model = build("llama").double()
    adapted = with_adapter(model, targets=["q_proj", "lm_head", "embed_tokens"]).double()
    packed = pack(SHAPES)
    scores = TokenScorer(adapted)(packed, statistics=True)
    expected = plain_logprobs(adapted, packed)
    torch.testing.assert_close(scores.logprobs, expected, rtol=0, atol=1e-10)
    assert relative(gradients(scores.logprobs, adapted), gradients(expected, adapted)) < 1e-6
    assert scores.entropy is not None and scores.entropy.min() > 0


def test_a_head_trained_beside_an_adapter() -> None:
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(
        build("llama").double(),
        LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["lm_head"], task_type="CAUSAL_LM"),
    ).double()
    packed = pack(SHAPES)
    found, expected = TokenScorer(model)(packed).logprobs, plain_logprobs(model, packed)
    assert relative(gradients(found, model), gradients(expected, model)) < 1e-6


def test_entropy_and_top1() -> None:
    model, packed = build("qwen3").double(), pack([(9, ()), (3, (4, 4))])
    scores = TokenScorer(model)(packed, statistics=True)
    logits = torch.cat([
        model(input_ids=packed.input_ids[None, :9]).logits[0, :8],
        model(input_ids=packed.input_ids[None, 9:16]).logits[0, 2:6],
        model(input_ids=torch.cat([packed.input_ids[9:12], packed.input_ids[16:]])[None]).logits[0, 2:6],
    ])  # fmt: skip
    logprobs = logits.log_softmax(dim=-1)
    assert scores.entropy is not None and not scores.entropy.requires_grad
    torch.testing.assert_close(scores.entropy, -(logprobs.exp() * logprobs).sum(dim=-1), rtol=1e-9, atol=1e-12)
    assert torch.equal(scores.top1, logits.argmax(dim=-1) == packed.targets)


def test_recomputed_activations_change_nothing() -> None:
    model, packed = with_adapter(build("qwen3")).train(), pack(SHAPES)
    kept = gradients(TokenScorer(model)(packed).logprobs, model)
    scorer = TokenScorer(model, keep_tokens=packed.num_tokens - 1)
    again = gradients(scorer(packed).logprobs, model)
    torch.testing.assert_close(kept, again, rtol=1e-6, atol=1e-7)
    assert not any(getattr(module, "gradient_checkpointing", False) for module in model.modules())


def test_activations_are_recomputed_only_beyond_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    model, packed = build("qwen3").train(), pack(SHAPES)
    enabled: list[int] = []
    monkeypatch.setattr(
        type(model), "activation_checkpointing_enable",
        lambda self, options, every_n_layers: enabled.append(packed.num_tokens),
    )
    TokenScorer(model, keep_tokens=packed.num_tokens)(packed)
    assert enabled == []
    TokenScorer(model, keep_tokens=packed.num_tokens - 1)(packed)
    assert enabled == [packed.num_tokens]


def test_attention_that_does_not_take_trees_falls_back_and_says_so_once() -> None:
    model, packed = build("qwen3", attention="eager").double(), pack(SHAPES)
    with pytest.warns(UserWarning, match="padded, not packed: model.attention is eager") as said:
        scorer = TokenScorer(model)
        found = [scorer(packed).logprobs for _ in range(2)]
    assert len(said) == 1
    # Rotary angles are fp32 in every model, and their cosines' last bit depends on where a row stands in a batch.
    torch.testing.assert_close(found[1], plain_logprobs(model, packed), rtol=0, atol=1e-6)


def padded_tokens(scorer: TokenScorer, packed: Packed) -> list[int]:
    """What goes through the layers, padding included, call by call."""
    seen: list[int] = []
    layer = scorer.model.model.layers[0]
    hook = layer.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[:2].numel()))
    scorer(packed)
    hook.remove()
    return seen


@pytest.mark.filterwarnings("ignore:rows are padded")
def test_padded_rows_take_no_more_room_than_the_packed_row_or_what_is_kept() -> None:
    model = build("qwen3", attention="eager").double()
    ragged, shared = pack([(90, ()), *[(4, ())] * 9]), pack([(20, (5, 5, 5, 4))])
    assert padded_tokens(TokenScorer(model), ragged) == [90, 36]
    scorer = TokenScorer(model)
    assert padded_tokens(scorer, shared) == [25, 25, 25, 24]
    assert padded_tokens(TokenScorer(model, keep_tokens=50), shared) == [50, 50]
    scorer.backbone.at_once = True
    assert padded_tokens(scorer, shared) == [100]
    for packed in (ragged, shared):
        found = TokenScorer(model)(packed).logprobs
        torch.testing.assert_close(found, plain_logprobs(model, packed), rtol=0, atol=1e-6)


@pytest.mark.filterwarnings("ignore:rows are padded")
def test_padding_counts_for_what_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    model, packed = build("qwen3", attention="eager").train(), pack([(20, (5, 5, 5, 4))])
    enabled: list[int] = []
    monkeypatch.setattr(
        type(model), "activation_checkpointing_enable", lambda self, options, every_n_layers: enabled.append(1)
    )
    TokenScorer(model, keep_tokens=100)(packed)
    assert enabled == []
    TokenScorer(model, keep_tokens=98)(packed)
    assert enabled == [1]


def test_a_model_whose_layers_drop_the_trees_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    model, packed = build("qwen3").double(), pack(SHAPES)
    for layer in model.model.layers:
        forward = layer.self_attn.forward
        deaf = lambda *args, _forward=forward, trees=None, **options: _forward(*args, **options)  # noqa: E731
        monkeypatch.setattr(layer.self_attn, "forward", deaf)
    with pytest.warns(UserWarning, match="gives other numbers"):
        scorer = TokenScorer(model)
    torch.testing.assert_close(scorer(packed).logprobs, plain_logprobs(model, packed), rtol=0, atol=1e-10)


def test_attention_dropout_is_applied_while_training() -> None:
    model, packed = build("qwen3").double(), pack(SHAPES)
    scorer = TokenScorer(model)
    exact = scorer(packed).logprobs
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.3
    torch.manual_seed(1)
    first = scorer.train()(packed).logprobs
    torch.manual_seed(1)
    assert torch.equal(first, scorer(packed).logprobs)
    assert (first - exact).abs().max() > 1e-3
    torch.testing.assert_close(scorer.eval()(packed).logprobs, exact)


def test_neftune_noise_is_uniform_of_the_published_size_and_only_while_training() -> None:
    model, packed = build("qwen3"), pack([(4, (12, 48)), (16, ())])
    scorer = TokenScorer(model, noise=5.0).train()
    embedded = model.get_input_embeddings()(packed.input_ids)
    noise = torch.stack([scorer._noisy(packed) - embedded for _ in range(200)]).detach()
    for part, tokens in ((slice(0, 64), 64), (slice(64, 80), 16)):
        size = 5.0 / (tokens * 32) ** 0.5
        assert noise[:, part].abs().max() <= size * (1 + 1e-3)
        assert float(noise[:, part].std()) == pytest.approx(size / 3**0.5, rel=0.02)
    assert not torch.equal(scorer(packed).logprobs, scorer(packed).logprobs)
    scorer.eval()
    assert torch.equal(scorer(packed).logprobs, TokenScorer(model)(packed).logprobs)


def test_scores_of_rows_are_read_at_their_last_token() -> None:
    from transformers import Qwen3ForSequenceClassification

    config = ARCHITECTURES["qwen3"][1].__class__(**{**ARCHITECTURES["qwen3"][1].to_dict(), "num_labels": 1})
    torch.manual_seed(0)
    model = Qwen3ForSequenceClassification(config)
    model.set_attn_implementation(attention.NAME)
    packed = pack(SHAPES)
    found = RowScorer(model.double())(packed)
    assert found.dtype == torch.float32
    expected = [model(input_ids=row_ids(packed, number)[None]).logits[0, 0] for number in range(packed.num_rows)]
    torch.testing.assert_close(found, torch.stack(expected).float())


def row_ids(packed: Packed, number: int) -> torch.Tensor:
    from whet.models.rows import row_places

    places = row_places(packed.trees)[number]
    return packed.input_ids[places[places >= 0]]


def test_no_target_gives_a_zero_gradient_and_no_error() -> None:
    model = build("qwen3")
    packed = pack([(1, ())])
    logprobs = TokenScorer(model)(packed).logprobs
    assert len(logprobs) == 0
    logprobs.sum().backward()
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())


def test_flex_attention_sees_what_sdpa_sees() -> None:
    """The mask of the CUDA path, by FlexAttention's own reference on the CPU."""
    packed = pack(SHAPES)
    layout = attention.Layout(packed.trees)
    generator = torch.Generator().manual_seed(3)
    q, k, v = (torch.randn(1, heads, packed.num_tokens, 16, generator=generator) for heads in (4, 2, 2))
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        for cap in (None, 0.5):
            flex = attention._flex(q, k, v, 0.25, cap, layout).transpose(1, 2)
            ours, _ = attention.attend(torch.nn.Module(), q, k, v, None, scaling=0.25, trees=layout, softcap=cap)
            torch.testing.assert_close(flex, ours, rtol=1e-5, atol=1e-5)
