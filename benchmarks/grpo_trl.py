"""TRL's side of `grpo`: GRPOTrainer on the same prompts in the same order."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from datasets import Dataset
from peft import LoraConfig
from torch import Tensor
from transformers import AutoTokenizer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from benchmarks import vision
from benchmarks.grpo_job import Job, Learned, Step
from benchmarks.grpo_reward import share_of_letters
from whet.errors import UserError

try:
    from trl.trainer.grpo_config import GRPOConfig
    from trl.trainer.grpo_trainer import GRPOTrainer
except ImportError as error:
    raise UserError("TRL is not installed", field="--sides", fix="pip install 'trl>=1.16'") from error

Messages = list[dict[str, str]]


class StepClock(TrainerCallback):  # type: ignore[misc]  # transformers is not type-checked
    """Seconds of each step and of its parts. A step begins where its prompts are fetched and ends behind the
    optimiser."""

    def __init__(self, samples: int) -> None:
        self.seconds: list[float] = []
        self.parts: list[dict[str, float]] = []
        """Of each step, by the name of the trainer's method."""
        self.prompt_ids: list[list[list[int]]] = []
        self.lengths: list[list[int]] = []
        self._samples, self._began = samples, 0.0

    def watch(self, trainer: GRPOTrainer) -> None:
        """Stand before the methods that no callback sees, and change nothing of what they do."""
        fetch: Any = trainer.get_batch_samples
        experience: Any = trainer._generate_and_score_completions

        def timed_fetch(*args: Any) -> Any:
            self._began = time.perf_counter()
            self.parts.append({})
            return fetch(*args)

        def noted_experience(*args: Any) -> dict[str, Tensor]:
            made: dict[str, Tensor] = experience(*args)
            rows = zip(made["prompt_ids"], made["prompt_mask"], strict=True)
            prompts = [ids[mask.bool()].tolist() for ids, mask in rows]
            self.prompt_ids.append(prompts[:: self._samples])
            self.lengths.append(made["completion_mask"].sum(1).tolist())
            return made

        instead = {
            "get_batch_samples": timed_fetch,
            "_generate_and_score_completions": noted_experience,
            "_generate": self._timed("_generate", trainer._generate),
            "_calculate_rewards": self._timed("_calculate_rewards", trainer._calculate_rewards),
        }
        for name, method in instead.items():
            setattr(trainer, name, method)
        trainer.add_callback(self)

    def _timed(self, name: str, method: Any) -> Any:
        def timed(*args: Any) -> Any:
            began = time.perf_counter()
            given = method(*args)
            self.parts[-1][name] = time.perf_counter() - began
            return given

        return timed

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        self.seconds.append(time.perf_counter() - self._began)
        return control


def train(job: Job) -> Learned:
    """Train once."""
    trainer = build_trainer(job)
    clock = StepClock(job.learning.samples)
    clock.watch(trainer)
    trainer.train()
    logged = [row for row in trainer.state.log_history if "reward" in row]
    steps = [
        Step(
            seconds=seconds,
            generate_seconds=parts["_generate"],
            score_seconds=parts["_calculate_rewards"],
            reward=row["reward"],
            kl=row["kl"],
            prompt_ids=prompt_ids,
            lengths=lengths,
        )
        for seconds, parts, row, prompt_ids, lengths in zip(
            clock.seconds, clock.parts, logged, clock.prompt_ids, clock.lengths, strict=True
        )
    ]
    return Learned(steps=steps, kl_weight=trainer.beta)


def build_trainer(job: Job) -> GRPOTrainer:
    """What is not named here is left at TRL's default. The logs stand between steps, where the clock does not run."""
    learning, tuned = job.learning, job.side == "trl-tuned"
    asked: list[Any] = json.loads(Path(learning.ordered).read_text(encoding="utf-8"))
    config = GRPOConfig(
        output_dir=job.folder,
        max_steps=learning.steps,
        per_device_train_batch_size=learning.prompts * learning.samples,
        num_generations=learning.samples,
        max_completion_length=learning.new_tokens,
        generation_kwargs={"min_new_tokens": learning.new_tokens},
        temperature=1.0,
        beta=learning.kl_weight,
        loss_type="grpo",
        shuffle_dataset=False,
        learning_rate=learning.learning_rate,
        lr_scheduler_type="constant",
        seed=learning.seed,
        bf16=True,
        use_cpu=learning.device == "cpu",
        gradient_checkpointing=not tuned,
        model_init_kwargs={"dtype": "bfloat16" if tuned else "float32"},
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    targets = vision.LANGUAGE_LAYERS if learning.pictures else "all-linear"
    adapter = LoraConfig(
        r=learning.rank, lora_alpha=learning.alpha, lora_dropout=0.0, target_modules=targets, task_type="CAUSAL_LM"
    )
    data = Dataset.from_list([{"prompt": [{"role": "user", "content": text}]} for text in asked])
    processor = AutoTokenizer.from_pretrained(learning.checkpoint)
    if learning.pictures:
        data, processor = vision.peer_data(asked), vision.own_processor(learning.checkpoint)
    return GRPOTrainer(
        model=learning.checkpoint, processing_class=processor, reward_funcs=[letters], args=config, train_dataset=data,
        peft_config=adapter,
    )  # fmt: skip


def letters(prompts: list[Any], completions: list[Messages | str], **columns: Any) -> list[float]:
    """The same function as whet's, as TRL calls it: with turns, or with texts where it was given such."""
    said = [turns if isinstance(turns, str) else turns[-1]["content"] for turns in completions]
    return [share_of_letters("", text) for text in said]
