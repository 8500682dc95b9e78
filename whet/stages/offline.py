"""Training on a fixed data set: every stage that trains. The kinds differ in their rows and their learner; see `work`.

read -> render -> fit to length -> loop -> the best checkpoint becomes the stage's model
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeAlias

import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from whet.config.stage import (
    DpoStage,
    KtoStage,
    OfflinePolicyStage,
    OfflineStage,
    RewardStage,
    RewardWeightedStage,
    SftStage,
    SoftPreferenceStage,
)
from whet.errors import ModelError
from whet.models.activations import Activations
from whet.models.backbone import unwrapped
from whet.models.load import compute_dtype, load_model, pick_device, refuse_quantised, save_trained
from whet.models.memory import Budget, FreedMemory, activation_bytes, token_budget
from whet.models.parts import Parts
from whet.models.reward import load_reward_model, save_reward_model
from whet.models.scoring import RowScorer, TokenScorer
from whet.ranks.pulse import beat
from whet.runs.files import read_jsonl
from whet.runs.sinks import MetricsFile
from whet.schema.artifacts import Measure, StageResult
from whet.stages.context import Context
from whet.stages.measure.interval import wilson
from whet.stages.memory import memory_told
from whet.stages.parts import check_parts, loaded_in_parts
from whet.stages.rendering import end_as_turns_do, tokenizer_of
from whet.stages.result import artefact_name, final_metrics, kept_step, publish, resumed
from whet.stages.reward_report import Heard, judged, reward_report
from whet.stages.rows import Rows, read_rows
from whet.stages.work import Ground, Work, work_of
from whet.train.bind import pairwise_objective
from whet.train.checkpoint import Checkpoints, Position
from whet.train.feed import Batches, OfflineFeed
from whet.train.loop import Loop, evaluate_loss
from whet.train.parallel import Parallel

Trained: TypeAlias = PreTrainedModel | PeftModel


def run(stage: OfflineStage, context: Context) -> StageResult:
    """Train, from the latest checkpoint of this folder if there is one. Returns the model and the final metrics.

    Raises RunError where a device's memory runs out.
    """
    with memory_told(stage):
        return fit(stage, context)


def fit(stage: OfflineStage, context: Context) -> StageResult:
    """The work of `run`."""
    train = stage.train
    device = device_of(stage, context)
    dtype = compute_dtype(train.arithmetic, device)
    parallel = Parallel(device, dtype, context.ranks, context.launch.sharding)
    check_parts(stage, parallel, adapter=trains_adapter(context))
    refuse_quantised(context.start.path, context.model)  # before the rows are rendered
    tokenizer = tokenizer_of(context.start, context.model)
    rows = context.ranks.main_first(partial(read_rows, stage, context, tokenizer), "the rows, rendered")
    checkpoints = Checkpoints(context.paths.checkpoints, keep=train.keep_checkpoints)
    asked = train.micro_batch_tokens

    def load() -> tuple[Trained, TokenScorer | RowScorer]:
        # Who holds a part takes it from the host's memory: the whole may not fit on the device.
        model = load_trainable(stage, context if parallel.holding is None else on_host(context), checkpoints, dtype)
        if not isinstance(stage, RewardStage):
            end_as_turns_do(model, tokenizer, context.start.path, context.model)
        return model, scorer_of(stage, model, budget_of(model))

    def budget_of(model: Trained) -> Budget:
        return Budget(asked, asked) if asked is not None else token_budget(unwrapped(model), device, dtype)

    model, scorer = loaded_in_parts(load, context, parallel)
    check_embedded(rows, model, tokenizer)
    budget = budget_of(model)
    freed = FreedMemory(budget.packed * activation_bytes(unwrapped(model), dtype))
    work = work_of(stage, Ground(context=context, rows=rows, scorer=scorer, parallel=parallel))
    with MetricsFile(context.paths.metrics, keeps=parallel.is_main) as metrics:
        position = Loop(
            model=scorer,
            learner=work.learner,
            feed=OfflineFeed(
                rows.lengths[: rows.num_train], work.collate, batch_size=train.batch_size,
                micro_batch_tokens=budget.packed, epochs=train.epochs, max_steps=train.max_steps, seed=train.seed,
                rank=parallel.rank, world=parallel.world,
            ),
            train=train,
            parallel=parallel,
            checkpoints=checkpoints,
            save_model=lambda folder: save(stage, model, tokenizer, folder / artefact_name(model), parallel.parts),
            metrics=metrics,
            evaluate=evaluator(stage, context, rows, work, scorer, tokenizer, parallel, budget),
            settle=freed.settle,
            title=stage.name,
        ).fit()  # fmt: skip
    end = partial(finish, stage, context, checkpoints, position, artefact_name(model), rows.num_held_out)
    return context.ranks.on_main(end, "the model that is kept")


def check_embedded(rows: Rows, model: Trained, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raises ModelError for a token that was added to the tokenizer and not to the model."""
    num = len(model.get_input_embeddings().weight)  # an adapter around them has that too
    if len(tokenizer) > num and (largest := rows.table.largest_id) >= num:
        raise ModelError(
            "the rows have a token that the model has no embedding for", field="model.path",
            found=f"{tokenizer.convert_ids_to_tokens(largest)!r}, {largest} of {num}",
            fix="take its own tokenizer, or resize the embeddings and save the model",
        )  # fmt: skip


def device_of(stage: OfflineStage, context: Context) -> torch.device:
    """Where the model trains. Raises ModelError, before anything is read, where this machine has no such device, or not
    the one that a second model is to be on."""
    if not isinstance(stage, SftStage | RewardStage) and has_second_model(stage, context):
        pick_device(stage.reference.device, field="reference.device")
    return pick_device(context.model.device, field="model.device")


def has_second_model(stage: OfflinePolicyStage, context: Context) -> bool:
    """Whether the objective compares with a model of its own: not without a reference, nor with an adapter's base."""
    match stage:
        case SftStage():
            return False
        case DpoStage(objective=objective) if not pairwise_objective(objective).needs_reference:
            return False
        case RewardWeightedStage() | SoftPreferenceStage() if stage.objective.kl_weight == 0:
            return False
        case _:
            return stage.reference.model != "start" or not trains_adapter(context)


def trains_adapter(context: Context) -> bool:
    return context.model.lora is not None or context.start.adapter is not None


def on_host(context: Context) -> Context:
    """Where models are loaded into the host's memory."""
    return replace(context, model=context.model.model_copy(update={"device": "cpu"}))


def scorer_of(stage: OfflineStage, model: Trained, budget: Budget) -> TokenScorer | RowScorer:
    """What turns packed rows into log-probs or scores; rows beyond the budget recompute their activations."""
    kept = Activations.of(stage.train)
    if isinstance(stage, RewardStage):
        return RowScorer(model, keep_tokens=budget.kept, activations=kept)
    noise = stage.train.neftune_alpha if isinstance(stage, SftStage) else 0.0
    return TokenScorer(model, noise=noise, keep_tokens=budget.kept, activations=kept)


def load_trainable(stage: OfflineStage, context: Context, checkpoints: Checkpoints, dtype: torch.dtype) -> Trained:
    """The model to train: as the latest checkpoint left it, else as the stage before did."""
    beat("loading the model")
    ref = resumed(checkpoints, context.start)
    if isinstance(stage, RewardStage):
        return load_reward_model(
            ref, context.model, stage.head, dtype=dtype, trainable=True, seed=stage.train.seed
        )
    return load_model(ref, context.model, dtype=dtype, trainable=True, seed=stage.train.seed)


def save(
    stage: OfflineStage, model: Trained, tokenizer: PreTrainedTokenizerBase, folder: Path, parts: Parts | None
) -> None:
    if isinstance(stage, RewardStage):
        save_reward_model(model, tokenizer, folder, parts)
    else:
        save_trained(model, tokenizer, folder, parts)


def evaluator(
    stage: OfflineStage, context: Context, rows: Rows, work: Work, scorer: TokenScorer | RowScorer,
    tokenizer: PreTrainedTokenizerBase, parallel: Parallel, budget: Budget,
) -> Callable[[], Mapping[str, float]] | None:  # fmt: skip
    """What the loop measures: the objective on held-out rows, and the tasks to watch. None where there is neither."""
    tasks = stage.watch if isinstance(stage, OfflinePolicyStage) else ()
    if not rows.num_held_out and not tasks:
        return None
    held_out = range(rows.num_train + parallel.rank, len(rows.rows), parallel.world)
    batches = Batches(held_out, rows.lengths, work.collate, budget.packed)

    def evaluate() -> dict[str, float]:
        if isinstance(scorer, RowScorer):
            heard = Heard(scorer)
            measured = evaluate_loss(heard, work.learner, batches, parallel)
            return measured | reward_report(parallel.ranks.everyone(judged(heard.scores, batches)))
        measured = evaluate_loss(scorer, work.learner, batches, parallel) if rows.num_held_out else {}
        if isinstance(stage, OfflinePolicyStage) and tasks:
            measured |= context.ranks.on_main(partial(watched, stage, scorer.model), "the tasks that are watched")
        return measured

    def watched(stage: OfflinePolicyStage, model: torch.nn.Module) -> dict[str, float]:
        from whet.stages.watch import watch

        with parallel.forward():
            return watch(stage, context, model, tokenizer)

    return evaluate


def finish(
    stage: OfflineStage, context: Context, checkpoints: Checkpoints, position: Position, artefact: str,
    num_held_out: int,
) -> StageResult:  # fmt: skip
    """Publish the chosen checkpoint's weights as the stage's model, and sum up its metrics."""
    step = kept_step(stage, position)
    model = publish(checkpoints.folder(step) / artefact, context.paths.file(artefact), context.start.path)
    last_epoch = math.ceil(read_jsonl(context.paths.metrics)[-1]["epoch"]) - 1
    metrics = final_metrics(context, step, since=last_epoch)
    return StageResult(metrics=metrics, model=model, evaluation=held_out_accuracy(stage, metrics, num_held_out))


def held_out_accuracy(stage: OfflineStage, metrics: Mapping[str, float], num_held_out: int) -> tuple[Measure, ...]:
    """Share of held-out rows that the kept model judges as the data does, with its Wilson interval; nothing for SFT."""
    accuracy = metrics.get("eval/accuracy" if isinstance(stage, RewardStage) else "eval/rewards/accuracies")
    if accuracy is None:
        return ()
    low, high = wilson(accuracy, num_held_out)
    return (
        Measure(
            stage=stage.name, task="held-out responses" if isinstance(stage, KtoStage) else "held-out pairs",
            metric="rewards/accuracies", value=accuracy, low=low, high=high,
            num=num_held_out,
        ),
    )  # fmt: skip
