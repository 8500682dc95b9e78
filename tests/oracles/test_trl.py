"""TRL 1.16's own loss functions on the same tokens and the same tiny model; skipped where TRL is not installed.

Its trainers are not started: `DPOTrainer._compute_loss` and `SFTTrainer.compute_loss` are called with a stand-in for
`self`, and the model carries TRL's own fused LM head, so nothing of ours is on its side. Conventions that differ:

- IPO divides each log-ratio by its response's length; our `normalise: length`. TRL has no form as printed (`sum`).
  TRL calls the paper's tau `beta`.
- Label smoothing: ours is conservative DPO (Mitchell 2023), (1-e) l(z) + e l(-z). TRL 1.16 dropped that form; its
  `robust` (Chowdhury et al., 2403.00409) is ((1-e) l(z) - e l(-z)) / (1-2e). The two are linear in l(z) and l(-z), so
  TRL's loss with the pairs swapped gives l(-z), and with it our form.
- SFT divides by the trained tokens of the whole accumulation window (`num_items_in_batch`), as we do.
- TRL counts a tie of rewards as lost, we count it half; it logs the mean over micro-batches, we the mean over pairs.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from whet.data.batch import collate_pairs, collate_tokens
from whet.data.render import Rendered, RenderedPair
from whet.objectives import pairwise
from whet.objectives.loss import Loss
from whet.objectives.supervised import nll
from whet.train.learners import PairLearner, TokenLearner, response_logprobs

trl = pytest.importorskip("trl", minversion="1.16.0")

NUM, CPU = 6, torch.device("cpu")
OUTPUTS = ("log_probs", "entropy", "mean_logits", "is_top1")


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    torch.manual_seed(0)
    made = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=300, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=1, head_dim=16, max_position_embeddings=64, tie_word_embeddings=True,
        )
    )  # fmt: skip
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.ndim == 2:
                parameter.mul_(4.0)
    return made.train()


@pytest.fixture(scope="module")
def theirs(model: torch.nn.Module) -> torch.nn.Module:
    """The same weights under TRL's LM head."""
    from trl.trainer.utils import add_fused_lm_head

    twin = copy.deepcopy(model)
    add_fused_lm_head(twin, outputs=OUTPUTS)
    return twin


def ids(generator: torch.Generator, low: int, high: int) -> tuple[int, ...]:
    length = int(torch.randint(low, high + 1, (), generator=generator))
    return tuple(torch.randint(1, 300, (length,), generator=generator).tolist())


@pytest.fixture(scope="module")
def pairs() -> list[RenderedPair]:
    g = torch.Generator().manual_seed(2)
    return [
        RenderedPair(prompt_ids=ids(g, 1, 9), chosen_ids=ids(g, 1, 14), rejected_ids=ids(g, 1, 8)) for _ in range(NUM)
    ]


@pytest.fixture(scope="module")
def reference(model: torch.nn.Module, pairs: list[RenderedPair]) -> torch.Tensor:
    """Log-probs some nats away from the policy's, so that no loss is flat."""
    with torch.no_grad():
        own = response_logprobs(model, batch_of(pairs)).view(2, NUM).T
    return own + torch.randn(NUM, 2, generator=torch.Generator().manual_seed(3))


def batch_of(pairs: list[RenderedPair]) -> Any:
    return collate_pairs(pairs, range(len(pairs)), pad_id=0, device=CPU)


def trainer(**settings: Any) -> SimpleNamespace:
    """What the two functions ask of `self`."""
    accelerator = SimpleNamespace(
        device=CPU, gather=lambda x: x, gather_for_metrics=lambda x: x, num_processes=1, parallelism_config=None
    )
    return SimpleNamespace(
        model=SimpleNamespace(training=True), accelerator=accelerator, aux_loss_enabled=False, ld_alpha=None,
        precompute_ref_logps=True, f_divergence_type="reverse_kl", loss_weights=[1.0], label_smoothing=0.0,
        use_weighting=False, _metrics={"train": defaultdict(list)}, _total_train_tokens=0, _tp_size=1,
        compute_loss_func=None, label_smoother=None, get_tp_size=lambda: 1, **settings,
    )  # fmt: skip


def trl_dpo(
    theirs: torch.nn.Module,
    pairs: list[RenderedPair],
    reference: torch.Tensor,
    loss_type: str,
    beta: float,
    **more: Any,
) -> tuple[torch.Tensor, dict[str, list[float]]]:
    batch, stub = batch_of(pairs), trainer(loss_types=[loss_type], beta=beta)
    vars(stub).update(more)
    inputs = {
        "input_ids": batch.input_ids, "attention_mask": batch.attention_mask,
        "completion_mask": batch.target_mask.long(),
        "ref_chosen_logps": reference[:, 0], "ref_rejected_logps": reference[:, 1],
    }  # fmt: skip
    return trl.DPOTrainer._compute_loss(stub, theirs, inputs, False), stub._metrics["train"]


def gradient(loss: torch.Tensor, model: torch.nn.Module) -> list[torch.Tensor]:
    return list(torch.autograd.grad(loss, list(model.parameters())))


def assert_near(ours: list[torch.Tensor], other: list[torch.Tensor]) -> None:
    """Within 1e-5 of every tensor's own norm."""
    for one, two in zip(ours, other, strict=True):
        assert two.norm() > 0 and float((one - two).norm() / two.norm()) < 1e-5


def ours_of(
    model: torch.nn.Module, pairs: list[RenderedPair], reference: torch.Tensor, formula: Callable[..., Loss]
) -> Loss:
    return PairLearner(formula, reference).loss(model, batch_of(pairs))


@pytest.mark.parametrize(
    ("loss_type", "beta", "formula"),
    [
        ("sigmoid", 0.3, partial(pairwise.sigmoid, beta=0.3)),
        ("sigmoid", 0.01, partial(pairwise.sigmoid, beta=0.01)),
        ("ipo", 0.7, partial(pairwise.ipo_length, tau=0.7)),
    ],
)
def test_dpo(loss_type: str, beta: float, formula: Callable[..., Loss], model, theirs, pairs, reference) -> None:
    expected, logged = trl_dpo(theirs, pairs, reference, loss_type, beta)
    found = ours_of(model, pairs, reference, formula)
    loss = found.total / NUM
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert_near(gradient(loss, model), gradient(expected, theirs))
    for name, metric in found.metrics.items():
        assert metric.total.item() / metric.count == pytest.approx(logged[name][0], rel=1e-5, abs=1e-5), name


def test_label_smoothing(model, theirs, pairs, reference) -> None:
    e, beta = 0.1, 0.3
    straight, _ = trl_dpo(theirs, pairs, reference, "sigmoid", beta)
    swapped = [replace(p, chosen_ids=p.rejected_ids, rejected_ids=p.chosen_ids) for p in pairs]
    turned, _ = trl_dpo(theirs, swapped, reference.flip(1), "sigmoid", beta)
    expected = (1 - e) * straight + e * turned
    loss = ours_of(model, pairs, reference, partial(pairwise.sigmoid, beta=beta, label_smoothing=e)).total / NUM
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert_near(gradient(loss, model), gradient(expected, theirs))
    # And their robust form, as the docstring says it, so that the convention is a fact and not a memory.
    robust, _ = trl_dpo(theirs, pairs, reference, "robust", beta, label_smoothing=e)
    assert robust.item() == pytest.approx((((1 - e) * straight - e * turned) / (1 - 2 * e)).item(), rel=1e-5)


def test_sft_over_an_accumulation_window(model, theirs) -> None:
    """Three micro-batches of very different sizes make one step: both sides divide by the tokens of all three."""
    g = torch.Generator().manual_seed(4)
    rows = []
    for number in range(6):
        prompt, response = ids(g, 1, 9), ids(g, 1, 20 if number > 3 else 2)
        rows.append(Rendered(ids=prompt + response, weights=(0.0,) * len(prompt) + (1.0,) * len(response)))
    batches = [collate_tokens(rows[i : i + 2], pad_id=0, device=CPU) for i in (0, 2, 4)]
    learner, count = TokenLearner(nll), sum(float(batch.weights.sum()) for batch in batches)
    found = sum(learner.loss(model, batch).total / count for batch in batches)
    stub = trainer(args=SimpleNamespace(loss_type="nll", average_tokens_across_devices=True, max_length=None))
    expected = torch.zeros(())
    for batch in batches:
        labels = batch.input_ids.masked_fill(~batch.target_mask, -100)
        inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask, "labels": labels}
        expected = expected + trl.SFTTrainer.compute_loss(stub, theirs, inputs, num_items_in_batch=torch.tensor(count))
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    assert_near(gradient(found, model), gradient(expected, theirs))
