"""The one training loop: micro-batches, one division, one step; evaluate, save, go on.

    count  = units of all micro-batches, over all ranks      (before the first backward)
    grad   = sum over micro-batches of d loss.total / count

so the gradient does not depend on micro-batch size, padding, packing or the number of ranks.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import torch

from whet.config.train import Train
from whet.errors import RunError
from whet.models.mode import evaluating
from whet.objectives.loss import Total
from whet.ranks.pulse import beat
from whet.runs.sinks import MetricsFile, Progress
from whet.schema.metrics import values
from whet.train.checkpoint import Checkpoints, Position, load_random, random_tensors
from whet.train.feed import Feed
from whet.train.learners import Learner
from whet.train.optim import Optimizer, learning_rate
from whet.train.parallel import Parallel, peak_memory_bytes
from whet.train.sharding.holding import Score


class Batch(Protocol):
    @property
    def num_samples(self) -> int: ...
    @property
    def num_tokens(self) -> int: ...


B = TypeVar("B", bound=Batch)


@dataclass(kw_only=True)
class Loop(Generic[B]):
    """Everything a training needs. `fit` runs it from wherever its checkpoints stand to the end."""

    model: torch.nn.Module
    """The scorer around the model; on its device, already loaded from `checkpoints.latest()` where there is one."""
    learner: Learner[B]
    feed: Feed[B]
    train: Train
    parallel: Parallel
    checkpoints: Checkpoints
    save_model: Callable[[Path], None]
    """Writes the model's trained part into a checkpoint folder."""
    metrics: MetricsFile
    evaluate: Callable[[], Mapping[str, float]] | None = None
    """Measures the model as it stands; keys like `eval/loss`."""
    settle: Callable[[], None] = lambda: None
    """Called whenever a micro-batch's activations have been freed."""
    title: str = "train"
    _score: Score = field(init=False)
    _optimizer: Optimizer = field(init=False)
    _parameters: list[torch.nn.Parameter] = field(init=False)

    def fit(self) -> Position:
        """Train to the end and return where it ended, the best evaluation included."""
        if self.train.best_metric is not None and self.evaluate is None:
            raise RunError(
                "nothing is measured", field="train.best_metric", found=self.train.best_metric,
                fix="add data.eval_files, data.eval_fraction or a task to watch",
            )  # fmt: skip
        self.model.train()
        self._score, self._optimizer = self.parallel.hold(self.model, self.train)
        self._parameters = [p for p in self.model.parameters() if p.requires_grad]
        position = self._resume()
        if position is None:
            torch.manual_seed(self.train.seed)
            position = self._evaluated(Position(step=0), keep_best=False)
        shown = self.parallel.stream
        with Progress(self.title, self.feed.num_steps, done=position.step, stream=shown) as progress:
            while position.step < self.feed.num_steps:
                row = self._step(position.step)
                position = replace(position, step=position.step + 1, tokens=position.tokens + int(row["tokens"]))
                self.metrics.write({"step": position.step, "epoch": self.feed.epoch(position.step), **row})
                told = position.step % self.train.log_every == 0
                progress.update(1, note=f"loss {row['loss']:.4f}" if told else "")
                position = self._after(position)
        return position

    def _resume(self) -> Position | None:
        position = self.checkpoints.latest()
        self.metrics.truncate_after(position.step if position else -1)
        if position is not None:
            if self.parallel.holding is not None:
                self.checkpoints.restore_parts(position.step, self.parallel.holding)
            else:
                self.checkpoints.restore(position.step, self._optimizer)
            self.parallel.restore_scaler(position.scaler)
            if self.parallel.is_main:
                self.checkpoints.rotate(position.best_step)
        return position

    def _step(self, step: int) -> dict[str, Any]:
        """One optimiser step; returns its line for the log."""
        started = time.perf_counter()
        beat(f"step {step + 1}")
        batches = self.feed.micro_batches(step)
        self.parallel.reseed(self.train.seed, step)
        units = self.parallel.sum(sum(self.learner.units(batch) for batch in batches))
        rate = learning_rate(step, self.feed.num_steps, self.train)
        for group in self._optimizer.param_groups:
            group["lr"] = rate * group["pace"]
        logged = Totals()
        self.parallel.begin(len(batches))
        with evaluating(self.model), self.parallel.forward():  # measured as the reference is
            surveyed = self.learner.survey(self.model, batches, self.parallel)
        for batch in batches:
            with self.parallel.forward():
                loss = self.learner.loss(self._score, batch, surveyed)
            self.parallel.backward(loss.total / max(units, 1e-12))
            self.settle()
            beat()
            logged.add({"loss": Total(loss.total, self.learner.units(batch)), **loss.metrics})
        norm = 0.0
        if units:  # else no rank has anything to learn from, and momentum alone moves no weights
            norm = self.parallel.step(self._optimizer, self._parameters, self.train.max_grad_norm)
        row = values(self.parallel.means(logged.totals))
        row.setdefault("loss", 0.0)  # a step of online RL may find nothing to learn from, on any rank
        self._check_finite(step, row["loss"], norm, rate)
        return {
            "loss": row.pop("loss"),
            "learning_rate": rate,
            "grad_norm": norm,
            "tokens": int(self.parallel.sum(sum(batch.num_tokens for batch in batches))),
            "samples": int(self.parallel.sum(sum(batch.num_samples for batch in batches))),
            "step_seconds": round(time.perf_counter() - started, 4),
            "peak_memory_bytes": peak_memory_bytes(self.parallel.device),
            **row,
            **self.feed.metrics(step),
        }

    def _check_finite(self, step: int, loss: float, norm: float, rate: float) -> None:
        """Stop before NaN weights can get into a checkpoint. fp16 leaves out overflowing steps itself."""
        for name, value in (("loss", loss), ("gradient norm", 0.0 if self.parallel.skips_overflows else norm)):
            if not math.isfinite(value):
                raise RunError(
                    f"{name} is {value} at step {step + 1}", field="train.learning_rate", found=str(rate),
                    fix="lower it, raise the warm-up, or use train.precision=fp32; the last checkpoint is intact",
                )  # fmt: skip

    def _after(self, position: Position) -> Position:
        """Evaluate and save where the plan says so; a new best is always saved."""
        last = position.step == self.feed.num_steps
        epoch_ends = self.feed.ends_epoch(position.step)
        if self._due(self.train.eval_every, position.step, epoch_ends, last):
            position = self._evaluated(position, keep_best=True)
        new_best = position.best_step == position.step
        if new_best or self._due(self.train.save_every, position.step, epoch_ends, last):
            position = replace(position, scaler=self.parallel.scaler)
            self._save(position)
        return position

    def _save(self, position: Position) -> None:
        beat(f"the checkpoint of step {position.step}")
        self.feed.rest()
        self.parallel.wait()
        if (holding := self.parallel.holding) is not None:
            self.checkpoints.save_parts(position, self.save_model, holding, keeps=self.parallel.is_main)
        elif self.parallel.is_main:
            self.checkpoints.save(position, self.save_model, self._optimizer)
        self.parallel.wait()

    @staticmethod
    def _due(every: int | None, step: int, epoch_ends: bool, last: bool) -> bool:
        return last or (epoch_ends if every is None else step % every == 0)

    def _evaluated(self, position: Position, *, keep_best: bool) -> Position:
        """Measure and log. With `keep_best`, remember the step where the best metric was best."""
        if self.evaluate is None:
            return position
        self.model.eval()
        beat("evaluation")
        random = random_tensors()
        measured = dict(self.evaluate())
        load_random(random)
        self.model.train()
        self.metrics.write({"step": position.step, "epoch": self.feed.epoch(position.step), **measured})
        name = best_metric(self.train, measured)
        if name is None or not keep_best:
            return position
        value = measured[name]
        if math.isnan(value):
            return position
        if position.best_value is None or better(value, position.best_value, name, self.train):
            return replace(position, best_value=value, best_step=position.step)
        return position


def best_metric(train: Train, measured: Mapping[str, float]) -> str | None:
    """The metric that names the best checkpoint: the plan's, else eval/loss or (online) eval/reward, else none.

    Raises RunError where the plan names a metric that was not measured.
    """
    if train.best_metric is None:
        return next((name for name in ("eval/loss", "eval/reward") if name in measured), None)
    if train.best_metric not in measured:
        raise RunError(
            "no such metric", field="train.best_metric", found=train.best_metric,
            fix=f"choose from {', '.join(sorted(measured))}",
        )  # fmt: skip
    return train.best_metric


FALLING = frozenset({"loss", "perplexity", "ece", "brier", "failed", "clipped"})
"""Words of a metric's name of which less is better."""


def better(value: float, than: float, name: str, train: Train) -> bool:
    """Whether `value` beats `than`. Without `best_mode`, what is named by one of `FALLING` should fall."""
    # Tasks and parts of a reward bear names of the user's, which say nothing.
    known = name.rpartition("/")[2] if name.startswith(("watch/", "eval/rewards/")) else name
    falls = not FALLING.isdisjoint(re.split("[/_]", known))
    mode = train.best_mode or ("min" if falls else "max")
    return value < than if mode == "min" else value > than


def evaluate_loss(
    model: torch.nn.Module, learner: Learner[B], batches: Sequence[B], parallel: Parallel
) -> dict[str, float]:
    """The objective and its metrics on held-out batches, as `eval/...`; each exactly averaged over its units.

    A formula that looks at a whole step takes the held-out batches together for one.
    """
    logged = Totals()
    with torch.no_grad():
        with parallel.forward():
            surveyed = learner.survey(model, batches, parallel)
        for batch in batches:
            with parallel.forward():
                loss = learner.loss(model, batch, surveyed)
            beat()
            logged.add({"loss": Total(loss.total, learner.units(batch)), **loss.metrics})
    return {f"eval/{name}": value for name, value in values(parallel.means(logged.totals)).items()}


OF_THE_STEP = ("loss", "policy_loss")
"""What is divided by the units of the step, which its first batch may bring for them all."""


class Totals:
    """Totals of several micro-batches added up on the device: nothing waits for it until the step is over."""

    def __init__(self) -> None:
        self.totals: dict[str, Total] = {}

    def add(self, more: Mapping[str, Total]) -> None:
        for name, metric in more.items():
            if metric.count == 0 and name not in OF_THE_STEP:
                continue  # a mean over nothing: no good response in the batch, say
            known = self.totals.get(name)
            new = Total(metric.total.detach().float(), metric.count)
            self.totals[name] = new if known is None else Total(known.total + new.total, known.count + new.count)
