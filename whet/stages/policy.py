"""What online RL trains: the policy, and beside it PPO's value function; loaded, gone on from, and saved.

checkpoints/step-000200/  adapter/ | model/        the policy
                          value_head.safetensors   a value head on the policy's layers
                          value/                   a value model of its own
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from whet.config.stage import OnlineStage, PpoStage
from whet.config.value import ModelValue, PolicyValue
from whet.models.activations import Activations
from whet.models.backbone import unwrapped
from whet.models.load import load_model, save_trained
from whet.models.memory import Budget, token_budget
from whet.models.parts import Parts
from whet.models.reward import save_reward_model
from whet.models.scoring import TokenScorer
from whet.models.value import (
    PolicyScorer,
    ValueHead,
    ValueScorer,
    fresh_value_head,
    load_value_head,
    load_value_model,
    save_value_head,
)
from whet.ranks.pulse import beat
from whet.runs.given import ref_of
from whet.stages.context import Context
from whet.stages.rendering import end_as_turns_do
from whet.stages.result import artefact_name, resumed, saved_ref
from whet.train.checkpoint import Checkpoints

Trained: TypeAlias = PreTrainedModel | PeftModel
VALUE_MODEL = "value"
"""Folder of a value model of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """The policy and, in PPO, its value function, on their device."""

    model: Trained
    tokenizer: PreTrainedTokenizerBase
    budget: Budget
    tokens: TokenScorer
    """Log-probs of the policy."""
    values: ValueHead | ValueScorer | None
    scorer: TokenScorer | PolicyScorer
    """Both in one module: what the loop trains."""

    def save(self, folder: Path, parts: Parts | None = None) -> None:
        """Write what was trained into the folder of a checkpoint; where it is in `parts` there is no value function."""
        save_trained(self.model, self.tokenizer, folder / artefact_name(self.model), parts)
        match self.values:
            case ValueHead():
                save_value_head(self.values, folder)
            case ValueScorer():
                save_reward_model(self.values.model, self.tokenizer, folder / VALUE_MODEL)


def load_policy(
    stage: OnlineStage, context: Context, checkpoints: Checkpoints, tokenizer: PreTrainedTokenizerBase,
    *, device: torch.device, dtype: torch.dtype,
) -> Policy:  # fmt: skip
    """As the latest checkpoint left it, else as the stage before did."""
    beat("loading the model")
    position = checkpoints.latest()
    folder = None if position is None else checkpoints.folder(position.step)
    ref = resumed(checkpoints, context.start)
    model = load_model(ref, context.model, dtype=dtype, trainable=True, seed=stage.train.seed)
    end_as_turns_do(model, tokenizer, context.start.path, context.model)
    asked = stage.train.micro_batch_tokens
    budget = Budget(asked, asked) if asked is not None else token_budget(unwrapped(model), device, dtype)
    tokens = TokenScorer(model, keep_tokens=budget.kept, activations=Activations.of(stage.train))
    values = _value_function(stage, context, model, folder, dtype, budget) if isinstance(stage, PpoStage) else None
    scorer = tokens if values is None else PolicyScorer(tokens, values, pace=_pace(stage))
    return Policy(model=model, tokenizer=tokenizer, budget=budget, tokens=tokens, values=values, scorer=scorer)


def _pace(stage: OnlineStage) -> float:
    """The value model's learning rate over the policy's."""
    if not isinstance(stage, PpoStage) or not isinstance(stage.value, ModelValue):
        return 1.0
    return (stage.value.learning_rate or stage.train.learning_rate) / stage.train.learning_rate


def _value_function(
    stage: PpoStage, context: Context, model: Trained, folder: Path | None, dtype: torch.dtype, budget: Budget
) -> ValueHead | ValueScorer:
    match stage.value:
        case PolicyValue(layers=layers):
            if folder is not None:
                return load_value_head(model, folder)
            return fresh_value_head(model, layers=layers, seed=stage.train.seed)
        case ModelValue(model=name):
            ref = context.start if name == "start" else ref_of(name, context.models)
            if folder is not None:
                ref = saved_ref(folder / VALUE_MODEL, ref.path)
            return ValueScorer(
                load_value_model(ref, context.model, dtype=dtype, seed=stage.train.seed), keep_tokens=budget.kept,
                activations=Activations.of(stage.train),
            )  # fmt: skip
