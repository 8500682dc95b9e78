"""Training on a fixed data set: SFT and the DPO family. The kinds differ in their rows and their learner; see `Work`.

read -> render -> fit to length -> [reference log-probs] -> loop -> the best checkpoint becomes the stage's model
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from whet.config.stage import DpoStage, SftStage
from whet.data.batch import PairBatch, TokenBatch, collate_pairs, collate_tokens
from whet.data.render import RenderedPair
from whet.models.load import compute_dtype, load_model, load_tokenizer, pick_device, save_trained
from whet.runs.files import read_jsonl, writing
from whet.runs.ledger import content_hash
from whet.runs.sinks import MetricsFile
from whet.schema.artifacts import Measure, ModelRef, StageResult
from whet.stages.context import Context
from whet.stages.measure.interval import wilson
from whet.stages.rows import Rows, read_rows
from whet.train.bind import pairwise_formula, supervised_formula
from whet.train.checkpoint import Checkpoints, Position
from whet.train.feed import OfflineFeed
from whet.train.learners import Learner, PairLearner, TokenLearner
from whet.train.loop import Loop, evaluate_loss
from whet.train.parallel import Parallel
from whet.train.reference import compute_reference, load_reference, reference_key, save_reference


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What a kind of stage brings to the loop: how indices of rows become a batch, and a batch a loss."""

    learner: Learner[Any]
    collate: Callable[[Sequence[int]], Any]


def run(stage: SftStage | DpoStage, context: Context) -> StageResult:
    """Train, from the latest checkpoint of this folder if there is one. Returns the model and the final metrics."""
    train = stage.train
    device = pick_device(context.model.device)
    parallel = Parallel(device, compute_dtype(train.precision, device))
    tokenizer = load_tokenizer(
        context.start.path, chat_template=context.model.chat_template, trust_remote_code=context.model.trust_remote_code
    )
    rows = read_rows(stage, context, tokenizer)
    work = bind(stage, context, rows, tokenizer, parallel)
    checkpoints = Checkpoints(context.paths.checkpoints, keep=train.keep_checkpoints)
    model = load_trainable(stage, context, checkpoints, parallel)
    with MetricsFile(context.paths.metrics) as metrics:
        position = Loop(
            model=model,
            learner=work.learner,
            feed=OfflineFeed(
                rows.num_train, work.collate, batch_size=train.batch_size, micro_batch_size=train.micro_batch_size,
                epochs=train.epochs, max_steps=train.max_steps, seed=train.seed,
                lengths=[row.num_tokens for row in rows.rows], rank=parallel.rank, world=parallel.world,
            ),
            train=train,
            parallel=parallel,
            checkpoints=checkpoints,
            save_model=lambda folder: save_trained(model, tokenizer, folder / artefact_name(model)),
            metrics=metrics,
            evaluate=evaluator(stage, context, rows, work, model, tokenizer, parallel),
            title=stage.name,
        ).fit()  # fmt: skip
    return finish(stage, context, checkpoints, position, artefact_name(model), rows.num_held_out)


def bind(
    stage: SftStage | DpoStage, context: Context, rows: Rows, tokenizer: PreTrainedTokenizerBase, parallel: Parallel
) -> Work:
    """Batches and formula of the stage's kind; for pairs, their reference log-probs as well."""
    pad_id, device = int(tokenizer.pad_token_id), parallel.device
    match stage:
        case SftStage():

            def tokens(indices: Sequence[int]) -> TokenBatch:
                return collate_tokens([rows.rows[i] for i in indices], pad_id=pad_id, device=device)

            return Work(learner=TokenLearner(supervised_formula(stage.objective)), collate=tokens)
        case DpoStage():

            def pairs(indices: Sequence[int]) -> PairBatch:
                return collate_pairs([rows.rows[i] for i in indices], indices, pad_id=pad_id, device=device)

            reference = reference_logprobs(stage, context, rows.rows, pairs, parallel)
            return Work(learner=PairLearner(pairwise_formula(stage.objective), reference), collate=pairs)


def reference_logprobs(
    stage: DpoStage, context: Context, rows: Sequence[RenderedPair],
    collate: Callable[[Sequence[int]], PairBatch], parallel: Parallel,
) -> torch.Tensor:  # fmt: skip
    """The starting model's log-probs of every pair, from the stage folder or computed now. [num_rows, 2]."""
    start = [content_hash(Path(p)) if Path(p).exists() else p for p in (context.start.path, context.start.adapter) if p]
    key = reference_key(rows, " ".join(start), compute_dtype(stage.train.precision, parallel.device))
    path = context.paths.file("reference.safetensors")
    cached = load_reference(path, key)
    if cached is not None:
        return cached
    model = load_start(stage, context, context.start, parallel)
    size = stage.train.micro_batch_size or stage.train.batch_size
    logprobs = compute_reference(
        model, len(rows), collate, batch_size=size, parallel=parallel, title=f"{stage.name} reference"
    )
    save_reference(path, key, logprobs)
    return logprobs


def load_trainable(
    stage: SftStage | DpoStage, context: Context, checkpoints: Checkpoints, parallel: Parallel
) -> PreTrainedModel | PeftModel:
    """The model to train: as the latest checkpoint left it, else as the stage before did."""
    position = checkpoints.latest()
    ref = context.start
    if position is not None:
        folder = checkpoints.folder(position.step)
        adapter = folder / "adapter"
        ref = (
            ModelRef(path=ref.path, adapter=str(adapter)) if adapter.is_dir() else ModelRef(path=str(folder / "model"))
        )
    model = load_start(stage, context, ref, parallel)
    if stage.train.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    return model


def load_start(
    stage: SftStage | DpoStage, context: Context, ref: ModelRef, parallel: Parallel
) -> PreTrainedModel | PeftModel:
    dtype = compute_dtype(stage.train.precision, parallel.device)
    return load_model(ref, context.model, dtype=dtype, trainable=True, seed=stage.train.seed)


def evaluator(
    stage: SftStage | DpoStage, context: Context, rows: Rows, work: Work, model: torch.nn.Module,
    tokenizer: PreTrainedTokenizerBase, parallel: Parallel,
) -> Callable[[], Mapping[str, float]] | None:  # fmt: skip
    """What the loop measures: the objective on held-out rows, and the tasks to watch. None where there is neither."""
    if not rows.num_held_out and not stage.watch:
        return None
    size = stage.train.micro_batch_size or stage.train.batch_size
    held_out = range(rows.num_train, len(rows.rows))
    batches = [work.collate(held_out[i : i + size]) for i in range(0, len(held_out), size)]

    def evaluate() -> dict[str, float]:
        measured = evaluate_loss(model, work.learner, batches, parallel) if batches else {}
        if stage.watch:
            from whet.stages.watch import watch

            with parallel.forward():
                measured |= watch(stage, context, model, tokenizer)
        return measured

    return evaluate


def finish(
    stage: SftStage | DpoStage, context: Context, checkpoints: Checkpoints, position: Position, artefact: str,
    num_held_out: int,
) -> StageResult:  # fmt: skip
    """Publish the chosen checkpoint's weights as the stage's model, and sum up its metrics."""
    step = position.best_step if stage.train.keep == "best" and position.best_step is not None else position.step
    source, target = checkpoints.folder(step) / artefact, context.paths.file(artefact)
    temporary = target.with_name(f".{artefact}.tmp")
    with writing(target):
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.copytree(source, temporary)
        shutil.rmtree(target, ignore_errors=True)
        temporary.replace(target)
    model = (
        ModelRef(path=context.start.path, adapter=str(target)) if artefact == "adapter" else ModelRef(path=str(target))
    )
    metrics = final_metrics(context, step)
    return StageResult(metrics=metrics, model=model, evaluation=held_out_accuracy(stage, metrics, num_held_out))


def held_out_accuracy(
    stage: SftStage | DpoStage, metrics: Mapping[str, float], num_held_out: int
) -> tuple[Measure, ...]:
    """Share of held-out pairs that the kept model orders rightly, with its Wilson interval; nothing for SFT."""
    accuracy = metrics.get("eval/rewards/accuracies")
    if accuracy is None:
        return ()
    low, high = wilson(accuracy, num_held_out)
    return (
        Measure(
            stage=stage.name, task="held-out pairs", metric="rewards/accuracies", value=accuracy, low=low, high=high,
            num=num_held_out,
        ),
    )  # fmt: skip


def artefact_name(model: torch.nn.Module) -> str:
    """`adapter` where an adapter was trained, `model` where every weight was."""
    return "adapter" if isinstance(model, PeftModel) else "model"


def final_metrics(context: Context, kept_step: int) -> dict[str, float]:
    """Numbers for the summary: the last epoch's means, the first and the kept evaluation, and which step was kept."""
    rows = read_jsonl(context.paths.metrics)
    steps = [row for row in rows if "loss" in row]
    evaluations = [row for row in rows if "loss" not in row]
    metrics = {"steps": float(steps[-1]["step"]), "kept_step": float(kept_step)}
    metrics |= last_epoch_means(steps)
    metrics["tokens"] = float(sum(row["tokens"] for row in steps))
    metrics["train_seconds"] = round(sum(row["step_seconds"] for row in steps), 2)
    for row in evaluations:
        if row["step"] in (0, kept_step):
            prefix = "start/" if row["step"] == 0 else ""
            metrics |= {prefix + name: value for name, value in row.items() if "/" in name}
    return metrics


def last_epoch_means(steps: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Loss and rewards averaged over the samples of the last epoch: one step's batch says little."""
    begin = math.ceil(steps[-1]["epoch"]) - 1
    last = [row for row in steps if row["epoch"] > begin]
    num = sum(row["samples"] for row in last)
    names = [name for name in steps[-1] if name == "loss" or name.startswith("rewards/")]
    return {name: sum(row["samples"] * row[name] for row in last) / num for name in names}
