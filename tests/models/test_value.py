"""Value functions: on the policy's layers and on their own, against plain forward passes, saved and gone on with."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.models.packed import build, pack, plain_logprobs, with_adapter
from whet.config.model import Lora, Model
from whet.config.reward import RewardHead
from whet.config.value import ModelValue, PolicyValue, ValueFunction
from whet.errors import ModelError
from whet.models.backbone import unwrapped
from whet.models.load import load_model, load_tokenizer, save_trained
from whet.models.reward import load_reward_model, save_reward_model
from whet.models.rows import row_places
from whet.models.scoring import RowScorer, TokenScorer
from whet.models.value import (
    FILE,
    PolicyScorer,
    ValueHead,
    Values,
    ValueScorer,
    fresh_value_head,
    load_value_head,
    load_value_model,
    save_value_head,
)
from whet.schema.artifacts import ModelRef
from whet.schema.packed import Packed

SHAPES = [(5, (3, 7)), (9, ()), (1, (1, 4))]
LORA = Lora(rank=4)


def drawn_head(model: torch.nn.Module, *, layers: int = 1, seed: int = 1) -> ValueHead:
    """A head that says something."""
    head = fresh_value_head(model, layers=layers)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        weight = head.score.weight
        weight.copy_(torch.randn(weight.shape, generator=generator) * 0.2)
    return head


def plain_values(model: torch.nn.Module, head: torch.nn.Module, packed: Packed) -> Values:
    """By the model's own forward pass over one row after the other."""
    tokens, ends = [], []
    prompts = [tree.prompt if tree.branches else 1 for tree in packed.trees for _ in range(tree.num_rows)]
    for places, prompt in zip(row_places(packed.trees), prompts, strict=True):
        ids = packed.input_ids[places[places >= 0]]
        hidden = unwrapped(model).base_model(input_ids=ids.unsqueeze(0), use_cache=False).last_hidden_state[0]
        tokens.append(head(hidden[prompt - 1 : -1]).squeeze(-1))
        ends.append(head(hidden[-1:]).squeeze(-1))
    return Values(tokens=torch.cat(tokens), ends=torch.cat(ends))


def objective(logprobs: Tensor, values: Values) -> Tensor:
    weights = torch.linspace(-1.0, 2.0, len(logprobs), dtype=logprobs.dtype)
    return (weights * logprobs + weights.flip(0) * values.tokens.square()).sum() + (3.0 * values.ends).sum()


def trained(parameters: list[torch.nn.Parameter]) -> list[torch.nn.Parameter]:
    return [parameter for parameter in parameters if parameter.requires_grad]


@pytest.mark.parametrize("layers", [1, 2])
def test_values_start_at_0_and_leave_the_log_probs_alone(layers: int) -> None:
    model, packed = build("qwen3"), pack(SHAPES)
    policy = TokenScorer(model)
    scorer = PolicyScorer(policy, fresh_value_head(model, layers=layers))
    scores = scorer(packed, statistics=True)
    assert scores.values.tokens.shape == packed.targets.shape and scores.values.ends.shape == packed.ends.shape
    assert not scores.values.tokens.any() and not scores.values.ends.any()
    alone = policy(packed, statistics=True)
    assert torch.equal(scores.tokens.logprobs, alone.logprobs) and torch.equal(scores.tokens.entropy, alone.entropy)
    scores.values.tokens.sum().backward()
    weight = scorer.value.score.weight
    assert weight.dtype == torch.float32 and weight.shape == ((layers - 1) * 32 + 1, 32)
    assert weight.grad is not None and weight.grad[-1].any(), "0 is where it starts, not where it stays"


@pytest.mark.parametrize("name", ["qwen3", "llama", "gemma2", "gpt2", "gemma2, short window"])
@pytest.mark.parametrize("layers", [1, 2])
def test_values_and_gradients_are_those_of_the_plain_forward_pass(name: str, layers: int) -> None:
    model, packed = with_adapter(build(name)).double(), pack(SHAPES)
    head = drawn_head(model, layers=layers).double()
    scorer = PolicyScorer(TokenScorer(model), head)
    found = scorer(packed)
    expected = plain_values(model, head.score, packed)
    assert expected.tokens.std() > 0.05
    torch.testing.assert_close(found.values.tokens, expected.tokens, rtol=0, atol=1e-9)
    torch.testing.assert_close(found.values.ends, expected.ends, rtol=0, atol=1e-9)
    torch.testing.assert_close(scorer.values(packed).tokens, expected.tokens, rtol=0, atol=1e-9)
    parameters = trained(list(scorer.parameters()))
    assert len(parameters) == len(trained(list(model.parameters()))) + 1
    ours = torch.autograd.grad(objective(found.tokens.logprobs, found.values), parameters)
    theirs = torch.autograd.grad(objective(plain_logprobs(model, packed), expected), parameters)
    for one, other in zip(ours, theirs, strict=True):
        assert (one - other).norm() <= 1e-6 * other.norm() + 1e-9
    assert ours[-1].any(), "the head learns"
    through = torch.autograd.grad(scorer(packed).values.tokens.sum(), parameters[0])
    assert through[0].any(), "and so do the layers, from the values alone"


def test_values_are_fp32_under_autocast() -> None:
    model, packed = build("qwen3"), pack(SHAPES)
    scorer = PolicyScorer(TokenScorer(model), drawn_head(model))
    exact = scorer.values(packed).tokens
    with torch.autocast("cpu", dtype=torch.bfloat16):
        narrow = scorer(packed).values.tokens
    assert narrow.dtype == torch.float32
    assert 0 < (narrow - exact).norm() < 0.1 * exact.norm()


def test_one_pass_of_the_layers_gives_both() -> None:
    model, packed = build("qwen3"), pack(SHAPES)
    scorer = PolicyScorer(TokenScorer(model), drawn_head(model))
    passes: list[int] = []
    model.model.register_forward_hook(lambda *_: passes.append(1))
    scorer(packed, temperature=0.7, entropy_gradient=True)
    assert len(passes) == 1
    scorer.values(packed)
    assert len(passes) == 2


def test_temperature_and_entropy_reach_the_policy() -> None:
    model, packed = build("qwen3").double(), pack(SHAPES)
    policy = TokenScorer(model)
    scores = PolicyScorer(policy, fresh_value_head(model))(packed, temperature=0.5, entropy_gradient=True).tokens
    assert scores.entropy is not None and scores.entropy.requires_grad
    torch.testing.assert_close(scores.logprobs, policy(packed, temperature=0.5).logprobs)


def test_a_resumed_head_goes_on_bit_for_bit(tmp_path: Path) -> None:
    packed = pack(SHAPES)

    def step(head: ValueHead, scorer: PolicyScorer) -> None:
        (scorer.values(packed).tokens - 1.0).square().mean().backward()
        with torch.no_grad():
            head.score.weight -= 0.1 * head.score.weight.grad
        head.score.weight.grad = None

    model = build("qwen3").requires_grad_(False)
    policy = TokenScorer(model)
    head = fresh_value_head(model, layers=2, seed=3)
    for _ in range(2):
        step(head, PolicyScorer(policy, head))
    save_value_head(head, tmp_path)
    assert list(load_file(tmp_path / FILE)) == ["weight"]
    again = load_value_head(model, tmp_path)
    for other in (head, again):
        assert other.score.weight.requires_grad
        step(other, PolicyScorer(policy, other))
    assert torch.equal(head.score.weight, again.score.weight) and head.score.weight[-1].any()


def test_a_head_that_is_missing_damaged_or_of_another_model_is_refused(tmp_path: Path) -> None:
    model = build("qwen3")
    with pytest.raises(ModelError, match="cannot load the value head"):
        load_value_head(model, tmp_path)
    save_file({"weight": torch.zeros(1, 16)}, tmp_path / FILE)
    with pytest.raises(ModelError, match=r"value head of shape \[1, 16\] on a model of width 32 .*another model"):
        load_value_head(model, tmp_path)
    (tmp_path / FILE).write_bytes(b"cut")
    with pytest.raises(ModelError, match="cannot load the value head"):
        load_value_head(model, tmp_path)


def value_model(path: Path, *, adapter: Path | None = None, lora: Lora | None = LORA) -> torch.nn.Module:
    ref = ModelRef(path=str(path), adapter=None if adapter is None else str(adapter))
    return load_value_model(ref, Model(path=ref.path, lora=lora, device="cpu"), dtype=torch.float32, seed=0)


def moved(model: torch.nn.Module) -> torch.nn.Module:
    """As after some steps."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in trained(list(model.parameters())):
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.mark.parametrize("lora", [LORA, None], ids=["adapter", "whole"])
def test_a_model_of_its_own_starts_at_0_and_survives_saving(
    tiny_checkpoint: Path, tmp_path: Path, lora: Lora | None
) -> None:
    packed, model = pack(SHAPES), value_model(tiny_checkpoint, lora=lora)
    scorer = ValueScorer(model)
    assert not scorer(packed).tokens.any() and not scorer(packed).ends.any()
    moved(model)
    expected = scorer(packed)
    assert expected.tokens.std() > 0.01 and expected.tokens.dtype == torch.float32
    score = unwrapped(model).score
    torch.testing.assert_close(expected.tokens, plain_values(model, score, packed).tokens, rtol=0, atol=1e-5)
    folder = tmp_path / "value"
    save_reward_model(model, load_tokenizer(str(tiny_checkpoint)), folder)
    again = value_model(tiny_checkpoint, adapter=folder) if lora else value_model(folder, lora=None)
    assert torch.equal(ValueScorer(again)(packed).tokens, expected.tokens)


def test_a_language_models_adapter_goes_on_from_0(tiny_checkpoint: Path, tmp_path: Path) -> None:
    ref = ModelRef(path=str(tiny_checkpoint))
    policy = load_model(ref, Model(path=ref.path, lora=Lora(rank=2), device="cpu"), dtype=torch.float32, trainable=True)
    save_trained(moved(policy), load_tokenizer(ref.path), tmp_path / "sft")
    model = value_model(tiny_checkpoint, adapter=tmp_path / "sft")
    assert model.peft_config["default"].r == 2
    assert not ValueScorer(model)(pack(SHAPES)).tokens.any()


def test_a_reward_model_goes_on_with_its_score(tiny_checkpoint: Path, tmp_path: Path) -> None:
    ref, packed = ModelRef(path=str(tiny_checkpoint)), pack(SHAPES)
    reward = load_reward_model(
        ref, Model(path=ref.path, device="cpu"), RewardHead(layers=2), dtype=torch.float32, trainable=True
    )
    save_reward_model(moved(reward), load_tokenizer(ref.path), tmp_path / "reward")
    values = ValueScorer(value_model(tiny_checkpoint, adapter=tmp_path / "reward"))(packed)
    torch.testing.assert_close(values.ends, RowScorer(reward)(packed), rtol=0, atol=1e-6)


def test_a_model_of_its_own_shares_nothing_with_the_policy(tiny_checkpoint: Path) -> None:
    ref = ModelRef(path=str(tiny_checkpoint))
    policy = load_model(ref, Model(path=ref.path, device="cpu"), dtype=torch.float32, trainable=True)
    scorer, packed = PolicyScorer(TokenScorer(policy), ValueScorer(moved(value_model(tiny_checkpoint)))), pack(SHAPES)
    scores = scorer(packed)
    assert torch.equal(scores.values.tokens, scorer.values(packed).tokens)
    scores.values.tokens.square().sum().backward()
    assert all(p.grad is None for p in trained(list(policy.parameters())))
    learnt = [p.grad for p in trained(list(scorer.value.parameters()))]
    assert all(grad is not None for grad in learnt) and sum(bool(g.any()) for g in learnt if g is not None) > 5


def test_the_plan_says_which() -> None:
    parse = TypeAdapter(ValueFunction).validate_python
    assert parse({"type": "policy"}) == PolicyValue(layers=1)
    assert parse({"type": "model", "model": "reward"}) == ModelValue(model="reward")
    with pytest.raises(ValidationError):
        parse({"type": "model", "layers": 2})
