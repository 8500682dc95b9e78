"""Families whose activations transformers cannot recompute: a line before training, or all of them kept."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from transformers import CTRLConfig, CTRLLMHeadModel, JetMoeConfig, JetMoeForCausalLM, PreTrainedModel

from tests.models.packed import PLAIN, VOCABULARY, build, pack
from whet.config.train import Train
from whet.errors import ModelError
from whet.models.activations import Activations, can_recompute
from whet.models.scoring import RowScorer, TokenScorer

SHAPES = [(5, (3, 7)), (9, ())]
pytestmark = pytest.mark.filterwarnings("ignore:rows are padded")


def ctrl() -> PreTrainedModel:
    torch.manual_seed(0)
    return CTRLLMHeadModel(CTRLConfig(vocab_size=VOCABULARY, n_embd=32, dff=48, n_layer=2, n_head=4, n_positions=128))


def jetmoe() -> PreTrainedModel:
    torch.manual_seed(0)
    shape = {name: value for name, value in PLAIN.items() if name != "num_attention_heads"}
    return JetMoeForCausalLM(JetMoeConfig(**shape, kv_channels=8, num_local_experts=4))


@pytest.mark.parametrize("make", [ctrl, jetmoe])
@pytest.mark.parametrize("asked", [True, 2, "selective"])
def test_asked_for_it_is_one_line(asked: bool | int | str, make: Callable[[], PreTrainedModel]) -> None:
    activations = Activations.of(Train(gradient_checkpointing=asked))
    for scorer in (TokenScorer, RowScorer):
        with pytest.raises(ModelError, match=r"^train\.gradient_checkpointing: transformers cannot") as caught:
            scorer(make(), activations=activations)
        assert "\n" not in str(caught.value)
    assert can_recompute(build("qwen3"))
    TokenScorer(build("qwen3"), activations=activations)


@pytest.mark.parametrize("make", [ctrl, jetmoe])
def test_beyond_what_fits_everything_is_kept_and_that_is_said_once(make: Callable[[], PreTrainedModel]) -> None:
    packed, found = pack(SHAPES), []
    model = make().eval()
    for scorer in (TokenScorer(copy.deepcopy(model)), TokenScorer(model, keep_tokens=packed.num_tokens - 1)):
        scorer.train()
        with torch.no_grad():
            scorer(packed)  # keeps nothing in any case
        torch.manual_seed(3)
        if not found:
            scorer(packed).logprobs.sum().backward()
        else:
            with pytest.warns(UserWarning, match="cannot recompute the activations of .*: rows of more than") as said:
                scorer(packed).logprobs.sum().backward()
                scorer(packed)
            assert len(said) == 1
        found.append([p.grad for p in scorer.parameters() if p.grad is not None])
    assert len(found[0]) > 5
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)
