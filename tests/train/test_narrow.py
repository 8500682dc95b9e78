"""bf16 weights: gradients added in fp32, steps in fp32, nothing lost between steps."""

from __future__ import annotations

import copy
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.train import narrow_rank
from whet.config.train import Train
from whet.runs.files import read_jsonl
from whet.train import narrow
from whet.train.loop import Loop
from whet.train.narrow import NarrowWeights
from whet.train.optim import build_optimizer
from whet.train.parallel import Parallel
from whet.train.rounding import join

CPU = torch.device("cpu")
MODES = ("bf16_master", "bf16_stochastic")


def narrowed(model: torch.nn.Module, **settings: Any) -> NarrowWeights:
    optimizer = build_optimizer(model, Train(**settings))
    assert isinstance(optimizer, NarrowWeights)
    return optimizer


def masters(model: torch.nn.Module, optimizer: NarrowWeights) -> list[torch.Tensor]:
    """The fp32 weights of which the model has the upper halves, flattened."""
    tensors, trained = optimizer.tensors(), [p for p in model.parameters() if p.requires_grad]
    found = []
    for number, parameter in enumerate(trained):
        remainders = [value for name, value in tensors.items() if name.startswith(f"{number}.") and "remain" in name]
        found.append(torch.empty(parameter.numel()))
        join(parameter.detach().view(-1), torch.cat(remainders), found[-1])
    return found


@pytest.fixture
def sft(make_model, make_rows, collate, make_loop) -> Callable[..., Loop[Any]]:
    """SFT on 10 rows with every weight training, in bf16 arithmetic."""

    def make(folder: str, *, model: torch.nn.Module | None = None, lora: bool = False, **train: Any) -> Loop[Any]:
        rows = make_rows(10)
        settings = {"batch_size": 4, "precision": "bf16", "schedule": "constant", "warmup_steps": 0} | train
        loop: Loop[Any] = make_loop(
            model or make_model(lora=lora), rows, collate(rows), Train(**settings), folder=folder, dtype=torch.bfloat16
        )
        loop.parallel = Parallel(CPU, torch.bfloat16)
        return loop

    return make


def losses(loop: Loop[Any]) -> list[float]:
    return [row["loss"] for row in read_jsonl(loop.metrics.path) if "loss" in row]


def flat(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().double().view(-1) for p in model.parameters()])


# --- holding ----------------------------------------------------------------------------------------------------------


def test_a_master_begins_as_the_very_weights(make_model) -> None:
    model = make_model()
    before = [p.detach().clone().view(-1) for p in model.parameters()]
    optimizer = narrowed(model, weights="bf16_master")
    assert all(p.dtype == torch.bfloat16 for p in model.parameters())
    assert all(torch.equal(one, other) for one, other in zip(masters(model, optimizer), before, strict=True))


@pytest.mark.parametrize("mode", MODES)
def test_only_what_trains_is_bf16(mode: str, make_model) -> None:
    model = make_model(lora=True)
    frozen = {name: p.clone() for name, p in model.named_parameters() if not p.requires_grad}
    narrowed(model, weights=mode)
    for name, p in model.named_parameters():
        assert p.dtype == (torch.bfloat16 if p.requires_grad else torch.float32)
        assert p.requires_grad or torch.equal(p, frozen[name])


# --- gradients --------------------------------------------------------------------------------------------------------


def test_micro_batches_add_up_in_fp32() -> None:
    """200 bf16 gradients: their exact sum to fp32's rounding, where `.grad` itself would be off by percents."""
    torch.manual_seed(0)
    plain, held = torch.nn.Linear(16, 8, bias=False).bfloat16(), torch.nn.Linear(16, 8, bias=False)
    optimizer = narrowed(held, weights="bf16_stochastic")
    exact = torch.zeros(8, 16, dtype=torch.float64)
    for count in range(200):
        inputs = torch.randn(4, 16).bfloat16() + 1.0
        one = torch.autograd.grad(plain(inputs).float().square().sum() / 50, plain.weight)[0]
        exact += one.double()
        plain.weight.grad = one if plain.weight.grad is None else plain.weight.grad + one
        held.weight.backward(one)
        assert held.weight.grad is None
        (gradient,) = optimizer.gradients
        assert gradient is not None and gradient.dtype == (torch.bfloat16 if count == 0 else torch.float32)
    assert ((gradient.double() - exact).norm() / exact.norm()).item() < 1e-6
    assert plain.weight.grad is not None
    assert ((plain.weight.grad.double() - exact).norm() / exact.norm()).item() > 1e-2


@pytest.mark.parametrize("mode", MODES)
def test_gradient_is_that_of_autocast(mode: str, make_model, make_rows, collate) -> None:
    """The bf16 model's gradient against fp32 weights under bf16 autocast, both against fp32 arithmetic."""
    from whet.models.scoring import TokenScorer
    from whet.objectives.supervised import nll
    from whet.train.learners import TokenLearner

    learner, batch = TokenLearner(nll), collate(make_rows(10))(range(10))

    def gradient(weights: str, dtype: torch.dtype) -> torch.Tensor:
        model = make_model(scale=1.0)
        optimizer, parallel = build_optimizer(model, Train(weights=weights)), Parallel(CPU, dtype)
        with parallel.forward():
            loss = learner.loss(TokenScorer(model), batch)
        parallel.backward(loss.total)
        found = optimizer.gradients if isinstance(optimizer, NarrowWeights) else [p.grad for p in model.parameters()]
        return torch.cat([g.double().view(-1) for g in found if g is not None])

    exact = gradient("fp32", torch.float32)
    autocast, held = gradient("fp32", torch.bfloat16), gradient(mode, torch.bfloat16)
    assert ((autocast - exact).norm() / exact.norm()).item() < 0.02
    assert ((held - exact).norm() / exact.norm()).item() < 0.02


@pytest.mark.parametrize("part", [1 << 22, 256])
def test_clipping_takes_the_norm_over_all_weights(part: int, make_model, monkeypatch) -> None:
    monkeypatch.setattr(narrow, "PART", part)
    model = make_model()
    optimizer = narrowed(model, weights="bf16_master", learning_rate=1e-3)
    for p in model.parameters():
        p.backward(torch.randn_like(p))
    exact = math.sqrt(sum(float(g.double().square().sum()) for g in optimizer.gradients if g is not None))
    assert float(optimizer.clip(0.5)) == pytest.approx(exact, rel=1e-5)


@pytest.mark.parametrize("part", [1 << 22, 256])
@pytest.mark.parametrize("limit", [0.3, None])
def test_two_steps_of_adamw_by_hand(part: int, limit: float | None, make_model, monkeypatch) -> None:
    """Two micro-batches a step, clipped, matrices decayed and vectors not, the rate set through the groups; float64."""
    monkeypatch.setattr(narrow, "PART", part)
    torch.manual_seed(4)
    model = make_model()
    optimizer = narrowed(
        model, weights="bf16_master", learning_rate=1.0, weight_decay=0.1, betas=(0.8, 0.95), epsilon=1e-6
    )
    parameters = list(model.parameters())
    theta = [p.double() for p in masters(model, optimizer)]
    m, v = [torch.zeros_like(t) for t in theta], [torch.zeros_like(t) for t in theta]
    parallel = Parallel(CPU, torch.bfloat16)
    for t, rate in ((1, 3e-3), (2, 2e-3)):
        for group in optimizer.param_groups:
            group["lr"] = rate
        grads = [torch.zeros_like(x) for x in theta]
        for _ in range(2):
            for place, p in enumerate(parameters):
                new = torch.randn_like(p) * 1e-2
                p.backward(new)
                grads[place] += new.double().view(-1)
        norm = math.sqrt(sum(float(g.square().sum()) for g in grads))
        assert parallel.step(optimizer, parameters, limit) == pytest.approx(norm, rel=1e-5)
        scale = 1.0 if limit is None else min(1.0, limit / (norm + 1e-6))
        assert limit is None or scale < 1.0, "clipping has to do something here"
        for place, p in enumerate(parameters):
            g = grads[place] * scale
            m[place] = 0.8 * m[place] + 0.2 * g
            v[place] = 0.95 * v[place] + 0.05 * g.square()
            theta[place] = theta[place] * (1 - rate * (0.1 if p.ndim >= 2 else 0.0))
            theta[place] -= rate * (m[place] / (1 - 0.8**t)) / ((v[place] / (1 - 0.95**t)).sqrt() + 1e-6)
    for p, found, expected in zip(parameters, masters(model, optimizer), theta, strict=True):
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-7)
        assert ((p.double().view(-1) - found.double()).abs() <= (found.bfloat16().double() - found).abs() + 1e-12).all()


def test_a_weight_without_gradient_stays(make_model) -> None:
    model = make_model()
    optimizer = narrowed(model, weights="bf16_master", weight_decay=0.5)
    before = masters(model, optimizer)
    first = next(iter(model.parameters()))
    first.backward(torch.ones_like(first))
    optimizer.clip(1.0)
    optimizer.step()
    after = masters(model, optimizer)
    assert not torch.equal(before[0], after[0])
    assert all(torch.equal(one, other) for one, other in zip(before[1:], after[1:], strict=True))


def test_two_ranks_are_one_with_their_gradients_added(tmp_path: Path) -> None:
    """Bit for bit, random rounding included: one process with both ranks' micro-batches, and two gloo ranks."""
    mode = "bf16_stochastic"
    repository = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m"]
    done = subprocess.run(
        [*command, "tests.train.narrow_rank", mode, str(tmp_path)], cwd=repository, capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": str(repository), "ACCELERATE_USE_CPU": "true"}, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    layer, optimizer = narrow_rank.start(mode)
    parallel = Parallel(CPU, torch.bfloat16)
    norms = []
    for step in range(3):
        for rank in (0, 1):
            layer.weight.backward(narrow_rank.gradient(step, rank))
        norms.append(parallel.step(optimizer, list(layer.parameters()), 0.5))
    for rank in (0, 1):
        found = load_file(tmp_path / f"{rank}.safetensors")
        assert torch.equal(found["weight"], layer.weight)
        assert found["norms"].tolist() == norms


# --- training ---------------------------------------------------------------------------------------------------------


def trained(sft: Callable[..., Loop[Any]], make_model, mode: str, rate: float) -> tuple[list[float], torch.Tensor]:
    """Losses of 20 steps, and how far every weight went. `plain` is a bf16 model under torch's own optimiser."""
    model = make_model()
    for p in model.parameters():
        p.data = p.data.bfloat16().float()
    start = flat(model)
    if mode == "plain":
        model = model.bfloat16()
    weights = {"weights": mode} if mode in MODES else {}
    loop = sft(mode, model=model, max_steps=20, learning_rate=rate, **weights)
    loop.fit()
    end = flat(model)
    if mode == "bf16_master":
        end = torch.cat(masters(model, loop._optimizer)).double()
    return losses(loop), end - start


def test_small_updates_arrive(sft, make_model) -> None:
    """Updates a twentieth of a bf16 step: a master follows fp32, random rounding does on average, plain bf16 stays."""
    runs = {mode: trained(sft, make_model, mode, 2e-5) for mode in ("fp32", *MODES, "plain")}
    way = runs["fp32"][1]

    def along(mode: str) -> float:
        """How much of fp32's way was made."""
        return float(runs[mode][1] @ way / (way @ way))


    assert along("bf16_master") == pytest.approx(1.0, abs=0.01)
    assert along("bf16_stochastic") == pytest.approx(1.0, abs=0.1)
    assert along("plain") < 0.2
    assert float((runs["bf16_master"][1] - way).norm() / way.norm()) < 0.05
    falls = {mode: losses[0] - losses[-1] for mode, (losses, _) in runs.items()}
    assert all(falls[mode] > 1.5 * falls["plain"] for mode in MODES)


@pytest.mark.parametrize("mode", MODES)
def test_loss_follows_fp32(mode: str, sft, make_model) -> None:
    exact, _ = trained(sft, make_model, "fp32", 1e-3)
    found, _ = trained(sft, make_model, mode, 1e-3)
    assert exact[-1] < 0.9 * exact[0]
    assert found == pytest.approx(exact, rel=0.03)


@pytest.mark.parametrize("mode", MODES)
def test_split_of_a_step_changes_little(mode: str, sft, make_model) -> None:
    """Micro-batches of one row or all: bf16 gradients are rounded differently, no more."""
    whole, single = make_model(), make_model()
    one = sft("whole", model=whole, weights=mode, max_steps=5)
    other = sft("single", model=single, weights=mode, max_steps=5, micro_batch_tokens=1)
    one.fit(), other.fit()
    assert losses(other) == pytest.approx(losses(one), rel=0.01)


@pytest.mark.parametrize("mode", MODES)
def test_an_adapter_trains_in_bf16_too(mode: str, sft) -> None:
    loop = sft("stage", lora=True, weights=mode, max_steps=12, learning_rate=3e-3)
    before = copy.deepcopy([p for p in loop.model.parameters() if p.requires_grad])
    loop.fit()
    after = [p for p in loop.model.parameters() if p.requires_grad]
    assert all(p.dtype == torch.bfloat16 and not torch.equal(p, q) for p, q in zip(after, before, strict=True))
    assert losses(loop)[-1] < losses(loop)[0]


def test_rounding_is_a_function_of_seed_and_step(sft, make_model) -> None:
    runs = {}
    for folder, seed in (("a", 1), ("b", 1), ("c", 2)):
        model = make_model()
        optimizer = narrowed(model, weights="bf16_stochastic", seed=seed, learning_rate=1e-4)
        for step in range(3):
            torch.manual_seed(step)
            for p in model.parameters():
                p.backward(torch.randn_like(p))
            torch.manual_seed(hash(folder) % 1000)  # the generator is the optimiser's own
            optimizer.clip(1.0)
            optimizer.step()
        runs[folder] = flat(model)
    assert torch.equal(runs["a"], runs["b"])
    assert not torch.equal(runs["a"], runs["c"])


@pytest.mark.parametrize(("mode", "one", "several"), [("bf16_master", 14, 16), ("bf16_stochastic", 12, 14)])
def test_bytes_a_weight(mode: str, one: int, several: int) -> None:
    """Weight, gradient and what a checkpoint holds, as docs/plans.md has it; of one micro-batch a step, and of more."""
    layer = torch.nn.Linear(512, 512, bias=False)
    optimizer = narrowed(layer, weights=mode)
    for micro_batches, expected in ((1, one), (2, several)):
        for _ in range(micro_batches):
            layer.weight.backward(torch.randn_like(layer.weight))
        (gradient,) = optimizer.gradients
        assert gradient is not None and layer.weight.grad is None
        size = gradient.nbytes + layer.weight.nbytes
        optimizer.step()
        assert optimizer.gradients == [None]
        size += sum(tensor.nbytes for tensor in optimizer.tensors().values())
        assert size / layer.weight.numel() == pytest.approx(expected, abs=0.01)
