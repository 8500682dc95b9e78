"""The whole path against TRL 1.16: our packed rows and its padded ones, its own loss functions, twenty steps on.

Its trainers are not started: `compute_loss` of `SFTTrainer` and `RewardTrainer` and `_compute_loss` of `DPOTrainer` and
`KTOTrainer` are called with a stand-in for `self`. The language model carries TRL's own fused LM head, the reward model
is transformers' classifier, and KTO's rows go through TRL's collator, so nothing of ours is on its side. The formulas
one by one are in `test_preference` and `test_objectives`. Skipped where TRL is not installed.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM, Qwen3ForSequenceClassification

from tests.oracles.stand_ins import trainer as stand_in
from whet.config.objective import BradleyTerry, Kto
from whet.config.pairwise import Aot
from whet.data.batch import collate_groups, collate_rankings, collate_ratings, collate_tokens
from whet.data.render import Rendered, RenderedGroup
from whet.models.scoring import RowScorer, TokenScorer
from whet.objectives import pairwise
from whet.objectives.loss import Loss
from whet.objectives.supervised import nll
from whet.train.bind import PairObjective, pairwise_objective, ranking_objective, unpaired_objective
from whet.train.learners import (
    Learner,
    PairLearner,
    RankingLearner,
    RatingLearner,
    TokenLearner,
    response_logprobs,
)
from whet.train.parallel import Parallel

trl = pytest.importorskip("trl", minversion="1.16.0")

NUM, CPU = 6, torch.device("cpu")
OUTPUTS = ("log_probs", "entropy", "mean_logits", "is_top1")


SHAPE = Qwen3Config(
    vocab_size=300, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
    num_key_value_heads=1, head_dim=16, max_position_embeddings=64, tie_word_embeddings=True, num_labels=1,
    pad_token_id=0,
)  # fmt: skip


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    return strong(Qwen3ForCausalLM)


def strong(kind: type[torch.nn.Module]) -> torch.nn.Module:
    """With weights that are large enough for a step to show."""
    torch.manual_seed(0)
    made = kind(copy.deepcopy(SHAPE))
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


def copied(theirs: torch.nn.Module) -> torch.nn.Module:
    """TRL's head is a method bound to its model, which a deep copy would leave bound to the old one."""
    from trl.trainer.utils import add_fused_lm_head

    twin = copy.deepcopy(theirs)
    vars(twin).pop("forward", None)
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


def in_parts(learner: Learner[Any], scorer: torch.nn.Module, batches: Sequence[Any]) -> torch.Tensor:
    """The loss of a step as the loop divides it: surveyed first, over several micro-batches."""
    units = sum(learner.units(batch) for batch in batches)
    surveyed = learner.survey(scorer, batches, Parallel(CPU, torch.float32))
    return sum((learner.loss(scorer, batch, surveyed).total / units for batch in batches), torch.zeros(()))


def step_of(number: int) -> list[int]:
    """Places of a step's three records: one batch for TRL."""
    return [(3 * number + k) % NUM for k in range(3)]


def parts_of(number: int) -> list[list[int]]:
    """The same in two micro-batches, for us."""
    first, *others = step_of(number)
    return [[first], others]


@pytest.mark.parametrize(("form", "loss_type"), [("paired", "aot"), ("unpaired", "aot_unpaired")])
def test_twenty_steps_of_a_coupled_loss(form: Any, loss_type: str, model, theirs, pairs, reference) -> None:
    """AOT sorts what it compares over the whole step, and not over each micro-batch."""
    mine, twin = copy.deepcopy(model), copied(theirs)
    # Far enough from the policy's that the two are not in one order already.
    reference = reference + 6.0 * torch.randn(NUM, 2, generator=torch.Generator().manual_seed(7))
    learner = PairLearner(
        pairwise_objective(Aot(beta=0.1, form=form)), lambda batch: reference[list(batch.indices)].flatten()
    )

    def loss(number: int) -> torch.Tensor:
        parts = [collate_groups([pairs[i] for i in part], part, device=CPU) for part in parts_of(number)]
        return in_parts(learner, TokenScorer(mine), parts)

    def their_loss(number: int) -> torch.Tensor:
        chosen = step_of(number)
        return trl_dpo(twin, [pairs[i] for i in chosen], reference[chosen], loss_type, 0.1)

    assert_same_way(trajectory(mine, loss), trajectory(twin, their_loss))


def trl_kto(
    theirs: torch.nn.Module, rows: Sequence[RenderedGroup], others: Sequence[RenderedGroup], reference: torch.Tensor,
    max_length: int,
) -> torch.Tensor:  # fmt: skip
    """`reference` [rows, 2]: of each row's own response and of the mismatched one."""
    from trl.trainer.kto_trainer import DataCollatorForUnpairedPreference

    batch = DataCollatorForUnpairedPreference(pad_token_id=0, max_length=max_length)([
        {
            "prompt_ids": list(row.prompt_ids), "completion_ids": list(row.response_ids[0]),
            "KL_completion_ids": list(other.response_ids[0]), "label": row.values == (1.0,),
            "ref_logps": own.item(), "ref_KL_logps": mismatched.item(),
        }
        for row, other, (own, mismatched) in zip(rows, others, reference, strict=True)
    ])  # fmt: skip
    stub = stand_in(
        loss_type="kto", beta=0.3, desirable_weight=1.4, undesirable_weight=0.6, precompute_ref_logps=True,
        calculate_KL=True,
    )  # fmt: skip
    stub._compute_kl_logps = lambda *given: trl.KTOTrainer._compute_kl_logps(stub, *given)
    loss: torch.Tensor = trl.KTOTrainer._compute_loss(stub, theirs, batch, False)
    return loss


def test_twenty_steps_of_kto(model, theirs) -> None:
    """Long prompts with short responses and the other way round: half of the mismatched rows are cut."""
    g, longest = torch.Generator().manual_seed(6), 16
    sizes = [((9, 9), (1, 6)) if number % 2 else ((1, 4), (8, 12)) for number in range(NUM)]
    rows = [
        RenderedGroup(prompt_ids=ids(g, *prompt), response_ids=(ids(g, *response),), values=(float(number % 3 == 0),))
        for number, (prompt, response) in enumerate(sizes)
    ]
    others = rows[1:] + rows[:1]
    assert sum(len(a.prompt_ids) + len(b.response_ids[0]) > longest for a, b in zip(rows, others, strict=True)) == 3
    mine, twin = copy.deepcopy(model), copied(theirs)

    def batch(places: Sequence[int]) -> Any:
        mine, borrowed = [rows[i] for i in places], [others[i] for i in places]
        return collate_ratings(mine, borrowed, places, max_length=longest, device=CPU)

    with torch.no_grad():
        whole = batch(range(NUM))
        own = [response_logprobs(TokenScorer(model), half) for half in (whole.rated, whole.mismatched)]
    # The mismatched ones are drawn down, so that z stays above its floor of zero.
    reference = torch.stack(own, dim=1) + torch.randn(NUM, 2, generator=g) - torch.tensor([0.0, 2.0])
    objective = unpaired_objective(Kto(beta=0.3, desirable_weight=1.4, undesirable_weight=0.6))
    learner = RatingLearner(
        objective, lambda half: reference[list(half.indices), 0], lambda half: reference[list(half.indices), 1]
    )

    def their_loss(number: int) -> torch.Tensor:
        chosen = step_of(number)
        return trl_kto(twin, [rows[i] for i in chosen], [others[i] for i in chosen], reference[chosen], longest)

    assert_same_way(
        trajectory(mine, lambda n: in_parts(learner, TokenScorer(mine), [batch(part) for part in parts_of(n)])),
        trajectory(twin, their_loss),
    )


@pytest.mark.parametrize(("center", "margin"), [(0.0, False), (0.01, True)], ids=["plain", "margins, centred"])
def test_twenty_steps_of_a_reward_model(pairs, center: float, margin: bool) -> None:
    """Packed rows read at their last token, against transformers' padded rows read where padding begins."""
    mine = strong(Qwen3ForSequenceClassification)
    twin = copy.deepcopy(mine)
    leads = [0.0, 0.5, 1.0, 2.0, 0.1, 0.3]
    rows = [replace(p, values=(lead, 0.0) if margin else ()) for p, lead in zip(pairs, leads, strict=True)]
    learner = RankingLearner(ranking_objective(BradleyTerry(center=center)))
    stub = stand_in(args=SimpleNamespace(center_rewards_coefficient=center or None))

    def loss(number: int) -> torch.Tensor:
        parts = [collate_rankings([rows[i] for i in part], device=CPU) for part in parts_of(number)]
        return in_parts(learner, RowScorer(mine), parts)

    def their_loss(number: int) -> torch.Tensor:
        chosen = step_of(number)
        whole = [(*rows[i].prompt_ids, *rows[i].response_ids[k]) for k in (0, 1) for i in chosen]
        inputs = padded([(row, [True] * len(row)) for row in whole])
        del inputs["completion_mask"]
        if margin:
            inputs["margin"] = torch.tensor([leads[i] for i in chosen])
        found: torch.Tensor = trl.RewardTrainer.compute_loss(stub, twin, inputs)
        return found

    assert_same_way(trajectory(mine, loss), trajectory(twin, their_loss))
