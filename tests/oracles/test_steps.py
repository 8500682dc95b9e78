"""The whole path against TRL 1.16: our packed rows and its padded ones, its own loss functions, twenty steps on.

Its trainers are not started: `DPOTrainer._compute_loss` and `SFTTrainer.compute_loss` are called with a stand-in for
`self`, and the model carries TRL's own fused LM head, so nothing of ours is on its side. The formulas one by one are in
`test_preference` and `test_objectives`. Skipped where TRL is not installed.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from tests.oracles.stand_ins import trainer as stand_in
from whet.data.batch import collate_groups, collate_tokens
from whet.data.render import Rendered, RenderedGroup
from whet.models.scoring import TokenScorer
from whet.objectives import pairwise
from whet.objectives.loss import Loss
from whet.objectives.supervised import nll
from whet.train.bind import PairObjective
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
def pairs() -> list[RenderedGroup]:
    g = torch.Generator().manual_seed(2)
    return [
        RenderedGroup(prompt_ids=ids(g, 1, 9), response_ids=(ids(g, 1, 14), ids(g, 1, 8))) for _ in range(NUM)
    ]


@pytest.fixture(scope="module")
def reference(model: torch.nn.Module, pairs: list[RenderedGroup]) -> torch.Tensor:
    """Log-probs some nats away from the policy's, so that no loss is flat. [NUM, 2]."""
    with torch.no_grad():
        own = response_logprobs(TokenScorer(model), batch_of(pairs)).view(NUM, 2)
    return own + torch.randn(NUM, 2, generator=torch.Generator().manual_seed(3))


def batch_of(pairs: Sequence[RenderedGroup]) -> Any:
    return collate_groups(pairs, range(len(pairs)), device=CPU)


def padded(rows: Sequence[tuple[Sequence[int], Sequence[bool]]]) -> dict[str, torch.Tensor]:
    """Ids with their trained tokens, right-padded: what TRL's collators make."""
    longest = max(len(ids) for ids, _ in rows)
    filled = [(list(i), list(m), longest - len(i)) for i, m in rows]
    return {
        "input_ids": torch.tensor([i + [0] * room for i, _, room in filled]),
        "attention_mask": torch.tensor([[1] * len(i) + [0] * room for i, _, room in filled]),
        "completion_mask": torch.tensor([[int(t) for t in m] + [0] * room for _, m, room in filled]),
    }


def trl_dpo(
    theirs: torch.nn.Module, pairs: Sequence[RenderedGroup], reference: torch.Tensor, loss_type: str, beta: float
) -> torch.Tensor:
    rows = [
        ([*p.prompt_ids, *p.response_ids[k]], [False] * len(p.prompt_ids) + [True] * len(p.response_ids[k]))
        for k in (0, 1)
        for p in pairs
    ]
    stub = stand_in(
        loss_types=[loss_type], beta=beta, ld_alpha=None, precompute_ref_logps=True, f_divergence_type="reverse_kl",
        loss_weights=[1.0], label_smoothing=0.0, use_weighting=False,
    )  # fmt: skip
    inputs = padded(rows) | {"ref_chosen_logps": reference[:, 0], "ref_rejected_logps": reference[:, 1]}
    loss: torch.Tensor = trl.DPOTrainer._compute_loss(stub, theirs, inputs, False)
    return loss


def trl_sft(theirs: torch.nn.Module, rows: Sequence[Rendered], count: float) -> torch.Tensor:
    from types import SimpleNamespace

    stub = stand_in(
        args=SimpleNamespace(loss_type="nll", average_tokens_across_devices=True, max_length=None),
        compute_loss_func=None, label_smoother=None, get_tp_size=lambda: 1,
    )  # fmt: skip
    inputs = padded([(row.ids, [w > 0 for w in row.weights]) for row in rows])
    labels = inputs["input_ids"].masked_fill(inputs.pop("completion_mask") == 0, -100)
    loss: torch.Tensor = trl.SFTTrainer.compute_loss(
        stub, theirs, inputs | {"labels": labels}, num_items_in_batch=torch.tensor(count)
    )
    return loss


def ours_of(
    model: torch.nn.Module, pairs: Sequence[RenderedGroup], reference: torch.Tensor, formula: Callable[..., Loss]
) -> Loss:
    objective = PairObjective(formula, coupled=False, needs_reference=True)
    learner = PairLearner(objective, lambda batch: reference.flatten())
    return learner.loss(TokenScorer(model), batch_of(pairs))


def gradient(loss: torch.Tensor, model: torch.nn.Module) -> list[torch.Tensor]:
    return list(torch.autograd.grad(loss, list(model.parameters())))


def assert_near(ours: list[torch.Tensor], other: list[torch.Tensor]) -> None:
    """Within 1e-5 of every tensor's own norm."""
    for one, two in zip(ours, other, strict=True):
        assert two.norm() > 0 and float((one - two).norm() / two.norm()) < 1e-5


FORMULAS = {
    "sigmoid": (0.3, partial(pairwise.sigmoid, beta=0.3)),
    "hinge": (0.05, partial(pairwise.hinge, beta=0.05)),
    "ipo": (0.7, partial(pairwise.ipo_length, tau=0.7)),
}


@pytest.mark.parametrize("loss_type", list(FORMULAS))
def test_a_step_of_pairs(loss_type: str, model, theirs, pairs, reference) -> None:
    beta, formula = FORMULAS[loss_type]
    expected = trl_dpo(theirs, pairs, reference, loss_type, beta)
    loss = ours_of(model, pairs, reference, formula).total / NUM
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert_near(gradient(loss, model), gradient(expected, theirs))


@pytest.fixture(scope="module")
def rows() -> list[Rendered]:
    """Micro-batches of two are of very different sizes."""
    g = torch.Generator().manual_seed(4)
    made = []
    for number in range(6):
        prompt, response = ids(g, 1, 9), ids(g, 1, 20 if number > 3 else 2)
        made.append(Rendered(ids=prompt + response, weights=(0.0,) * len(prompt) + (1.0,) * len(response)))
    return made


def test_sft_over_an_accumulation_window(model, theirs, rows) -> None:
    """Three micro-batches make one step: both sides divide by the tokens of all three."""
    learner, scorer = TokenLearner(nll), TokenScorer(model)
    parts = [rows[i : i + 2] for i in (0, 2, 4)]
    batches = [collate_tokens(part, device=CPU) for part in parts]
    count = sum(float(batch.weights.sum()) for batch in batches)
    found = sum(learner.loss(scorer, batch).total / count for batch in batches)
    expected = sum(trl_sft(theirs, part, count) for part in parts)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    assert_near(gradient(found, model), gradient(expected, theirs))


STEPS = 20


def trajectory(model: torch.nn.Module, loss_of: Callable[[int], torch.Tensor]) -> list[tuple[float, float]]:
    """Loss and gradient norm of every step of AdamW."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    seen = []
    for number in range(STEPS):
        loss = loss_of(number)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(list(model.parameters()), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        seen.append((loss.item(), norm.item()))
    return seen


def assert_same_way(ours: list[tuple[float, float]], other: list[tuple[float, float]]) -> None:
    """TRL's own tolerances between equivalent trainings: loss within 1e-3 of itself, and 1e-4 besides."""
    assert ours[-1][0] < 0.8 * ours[0][0], "nothing was learnt, so nothing was compared"
    for (loss, norm), (their_loss, their_norm) in zip(ours, other, strict=True):
        assert loss == pytest.approx(their_loss, rel=1e-3, abs=1e-4)
        assert norm == pytest.approx(their_norm, rel=1e-2, abs=1e-3)
    residual = sum(loss - their_loss for (loss, _), (their_loss, _) in zip(ours, other, strict=True)) / STEPS
    assert abs(residual) < 1e-4


@pytest.mark.parametrize("loss_type", list(FORMULAS))
def test_twenty_steps_of_pairs(loss_type: str, model, theirs, pairs, reference) -> None:
    beta, formula = FORMULAS[loss_type]
    mine, twin = copy.deepcopy(model), copied(theirs)

    def part(number: int) -> tuple[list[RenderedGroup], torch.Tensor]:
        chosen = [(3 * number + k) % NUM for k in range(3)]
        return [pairs[i] for i in chosen], reference[chosen]

    assert_same_way(
        trajectory(mine, lambda n: ours_of(mine, *part(n), formula).total / 3),
        trajectory(twin, lambda n: trl_dpo(twin, *part(n), loss_type, beta)),
    )


def test_twenty_steps_of_sft(model, theirs, rows) -> None:
    mine, twin = copy.deepcopy(model), copied(theirs)
    learner, scorer = TokenLearner(nll), TokenScorer(mine)

    def part(number: int) -> tuple[list[Rendered], float]:
        chosen = [rows[(3 * number + k) % 6] for k in range(3)]
        return chosen, sum(sum(row.weights) for row in chosen)

    def loss(number: int) -> torch.Tensor:
        chosen, count = part(number)
        return learner.loss(scorer, collate_tokens(chosen, device=CPU)).total / count

    assert_same_way(trajectory(mine, loss), trajectory(twin, lambda n: trl_sft(twin, *part(n))))


def copied(theirs: torch.nn.Module) -> torch.nn.Module:
    """TRL's head is a method bound to its model, which a deep copy would leave bound to the old one."""
    from trl.trainer.utils import add_fused_lm_head

    twin = copy.deepcopy(theirs)
    vars(twin).pop("forward", None)
    add_fused_lm_head(twin, outputs=OUTPUTS)
    return twin
