"""TRL's side: its own trainers on the rows of `benchmarks.prepare`. Beside `grpo_trl` the only file that knows TRL.

SFTTrainer and RewardTrainer take rows that are token ids already. DPOTrainer tokenises whatever it is given, so it is
built on a row of text that is never trained and then handed the ids its collator asks for.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoTokenizer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from benchmarks import vision
from benchmarks.job import Job, Trained, Training
from whet.errors import UserError

try:
    from trl.trainer.dpo_config import DPOConfig
    from trl.trainer.dpo_trainer import DPOTrainer
    from trl.trainer.reward_config import RewardConfig
    from trl.trainer.reward_trainer import RewardTrainer
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer
except ImportError as error:
    raise UserError("TRL is not installed", field="--peer", fix="pip install 'trl>=1.16'") from error

Trainer = SFTTrainer | DPOTrainer | RewardTrainer
Row = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How TRL is set up."""

    gradient_checkpointing: bool
    weights: str
    """Type the frozen weights are loaded in."""
    log_every: int
    """Its logs cost little, and are not timed."""
    micro_batch: int
    """Records a forward pass; the step adds up its micro-batches."""
    padding_free: bool = False
    """SFT: rows laid end to end; attention sees the boundaries in the positions."""


def settings_for(job: Job) -> Settings:
    """`default` is what TRL does when nothing is set; the others are what a careful user would set.

    One by one, no row is padded to another's length (in a pair one still is), and a step needs less memory.
    """
    whole = job.training.batch_size
    tuned = Settings(
        gradient_checkpointing=False,
        weights="bfloat16" if job.training.precision == "bf16" else "float32",
        log_every=job.training.steps + 1,
        micro_batch=whole,
    )
    match job.side:
        case "trl-default":
            return Settings(gradient_checkpointing=True, weights="float32", log_every=10, micro_batch=whole)
        case "trl-tuned":
            return tuned
        case "trl-one-by-one":
            return replace(tuned, micro_batch=1)
        case "trl-padding-free":
            return replace(tuned, padding_free=True)
        case "whet" | "whet-unshared":
            raise ValueError(job.side)


class StepClock(TrainerCallback):  # type: ignore[misc]  # transformers is not type-checked
    """Seconds and loss of each step. A step begins where its rows are fetched and ends behind the optimiser."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.losses: list[torch.Tensor] = []
        self._began = 0.0
        self._parts: list[torch.Tensor] = []

    def watch(self, trainer: Trainer) -> None:
        """Stand before the two methods of the trainer that no callback sees, and change nothing of what they do."""
        fetch: Any = trainer.get_batch_samples
        train: Any = trainer.training_step

        def timed_fetch(*args: Any) -> Any:
            self._began = time.perf_counter()
            self._parts = []
            return fetch(*args)

        def noted_step(*args: Any) -> torch.Tensor:
            loss: torch.Tensor = train(*args)
            self._parts.append(loss.detach())
            return loss

        trainer.get_batch_samples = timed_fetch
        trainer.training_step = noted_step  # type: ignore[method-assign]
        trainer.add_callback(self)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        self.seconds.append(time.perf_counter() - self._began)
        # Each micro-batch's loss is its share of the step's.
        self.losses.append(torch.stack(self._parts).sum())
        return control


def train(job: Job) -> Trained:
    """Train once."""
    began = time.perf_counter()
    settings = settings_for(job)
    rows = json.loads(Path(job.training.rows).read_text(encoding="utf-8"))
    trainer = build_trainer(job, settings, rows)
    clock = StepClock()
    clock.watch(trainer)
    trainer.train()
    return Trained(
        step_seconds=clock.seconds,
        losses=[float(loss) for loss in clock.losses],
        first_step=first_log(trainer.state.log_history[0]),
        total_seconds=time.perf_counter() - began,
        settings={
            "gradient checkpointing": str(settings.gradient_checkpointing),
            "frozen weights": settings.weights,
            "records a forward pass": str(settings.micro_batch),
            "padding": "none" if settings.padding_free else "to the longest row",
        },
    )


def first_log(log: dict[str, float]) -> dict[str, float]:
    """Numbers of the first step under whet's names."""
    return {"tokens" if name == "num_tokens" else name: value for name, value in log.items()}


def build_trainer(job: Job, settings: Settings, rows: list[Row]) -> Trainer:
    """The task's trainer with `rows` in their order, one optimiser step after the other."""
    training = job.training
    tokenizer = AutoTokenizer.from_pretrained(training.model)
    shared: dict[str, Any] = {"model": training.model, "processing_class": tokenizer}
    arguments = common_arguments(job, settings)
    match training.task:
        case "sft":
            length = None if settings.padding_free else training.max_length
            config = SFTConfig(max_length=length, padding_free=settings.padding_free, **arguments)
            data = Dataset.from_list([{"input_ids": row["ids"], "labels": row["labels"]} for row in rows])
            return SFTTrainer(args=config, train_dataset=data, peft_config=lora(training, "CAUSAL_LM"), **shared)
        case "dpo" if training.pictures:
            config = DPOConfig(max_length=training.max_length, beta=0.1, **arguments)
            shared["processing_class"] = vision.own_processor(training.model)
            adapter = lora(training, "CAUSAL_LM", vision.LANGUAGE_LAYERS)
            return DPOTrainer(args=config, train_dataset=vision.peer_data(rows), peft_config=adapter, **shared)
        case "dpo":
            text = Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c"}])
            config = DPOConfig(max_length=training.max_length, beta=0.1, **arguments)
            trainer = DPOTrainer(args=config, train_dataset=text, peft_config=lora(training, "CAUSAL_LM"), **shared)
            trainer.train_dataset = Dataset.from_list(
                [{f"{part}_ids": row[part] for part in ("prompt", "chosen", "rejected")} for row in rows]
            )
            return trainer
        case "reward":
            config = RewardConfig(max_length=training.max_length, **arguments)
            data = Dataset.from_list(
                [{f"{part}_ids": row["prompt"] + row[part] for part in ("chosen", "rejected")} for row in rows]
            )
            return RewardTrainer(args=config, train_dataset=data, peft_config=lora(training, "SEQ_CLS"), **shared)


def common_arguments(job: Job, settings: Settings) -> dict[str, Any]:
    """What the three configurations share. What is not named here is left at TRL's default."""
    training = job.training
    return {
        "output_dir": job.folder,
        "max_steps": training.steps,
        "per_device_train_batch_size": settings.micro_batch,
        "gradient_accumulation_steps": training.batch_size // settings.micro_batch,
        "learning_rate": training.learning_rate,
        "lr_scheduler_type": "constant",
        "train_sampling_strategy": "sequential",
        "seed": training.seed,
        "bf16": training.precision == "bf16",
        "use_cpu": training.device == "cpu",
        "gradient_checkpointing": settings.gradient_checkpointing,
        "model_init_kwargs": {"dtype": settings.weights},
        "logging_steps": settings.log_every,
        "logging_first_step": True,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }


def lora(training: Training, kind: str, targets: str = "all-linear") -> LoraConfig:
    return LoraConfig(
        r=training.rank, lora_alpha=training.alpha, lora_dropout=0.0, target_modules=targets, task_type=kind
    )
