"""rlhf.yaml: one file of settings for DPO by TRL and PPO or GRPO by verl, as some older toolkits have it.

`whet export verl` reads it. Every key has the name and the default it has there; what verl has no use for is read as
well, so that a file need not be changed.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, Field, ValidationError, field_validator

from whet.config.base import Section
from whet.config.catalogue import sections
from whet.config.complain import plan_error
from whet.config.node import Node, plain
from whet.config.source import parse_value, read_source
from whet.errors import ConfigError

MARK = "model_name_or_path"
"""A key at the top that a plan never has."""


class Peft(Section):
    """Adapters."""

    enabled: bool = False
    """Train an adapter instead of all weights."""
    qlora: bool = False
    """On 4-bit weights; verl has no such training."""
    lora_r: int = Field(8, ge=1)
    """Rank."""
    lora_alpha: int = Field(16, ge=1)
    """The update is scaled by alpha / rank."""
    lora_dropout: float = Field(0.05, ge=0, lt=1)
    """Not used: verl's adapters have no dropout."""
    target_modules: str | tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj")
    """Layers that get an adapter."""


class DpoData(Section):
    """Data of DPO, which verl does not run."""

    train_file: str | None = None
    """Not used by PPO and GRPO."""
    eval_file: str | None = None
    """Not used by PPO and GRPO."""
    max_length: int = 1024
    """Not used by PPO and GRPO."""


class Online(Section):
    """PPO and GRPO."""

    train_file: str
    """Parquet or JSONL of prompts."""
    eval_file: str | None = None
    """Held-out prompts."""
    prompt_key: str = "prompt"
    """Column of the prompt."""
    max_prompt_length: int = Field(512, ge=1)
    """Longest prompt in tokens."""
    max_response_length: int = Field(512, ge=1)
    """Longest response in tokens."""
    train_batch_size: int = Field(1024, ge=1)
    """Prompts of a round."""
    val_batch_size: int | None = 256
    """Not used: verl sends all held-out prompts to the engine at once."""
    rollout_backend: Literal["vllm", "hf", "sglang"] = "vllm"
    """What generates; verl 0.9.1 has no `hf` any more."""
    rollout_n: int = Field(1, ge=1)
    """Responses of a prompt; GRPO needs 2, better 4."""
    rollout_tp: int = Field(1, ge=1)
    """GPUs that one engine spreads the weights over."""
    rollout_gpu_memory_utilization: float = Field(0.6, gt=0, lt=1)
    """Share of a GPU's memory that the engine takes."""
    load_format: Literal["hf", "auto", "safetensors", "dummy"] = "hf"
    """How the engine gets its first weights; `hf` is what verl now calls auto."""
    log_prob_micro_batch_size_per_gpu: int = Field(4, ge=1)
    """Responses a pass where only log-probs are measured."""
    actor_lr: float = Field(1e-6, gt=0)
    """Learning rate of the policy."""
    ppo_epochs: int = Field(1, ge=1)
    """Passes over a round."""
    ppo_mini_batch_size: int = Field(256, ge=1)
    """Prompts of an optimiser step."""
    ppo_micro_batch_size_per_gpu: int = Field(4, ge=1)
    """Responses of a forward pass on a GPU."""
    kl_loss_coef: float = Field(0.001, ge=0)
    """Weight of the KL in the loss."""
    kl_loss_type: Literal["kl", "k1", "abs", "mse", "k2", "low_var_kl", "k3"] = "low_var_kl"
    """Its estimator."""
    use_kl_loss: bool | None = None
    """Whether the KL is in the loss; null is true for GRPO, false for PPO."""
    use_kl_in_reward: bool = False
    """Whether the KL is taken off the reward."""
    entropy_coeff: float = Field(0.0, ge=0)
    """Weight of an entropy bonus."""
    kl_coef: float = Field(0.001, ge=0)
    """Weight of the KL in the reward."""
    target_kl: float = 0.1
    """Not used: verl reads it for a controller that adapts, and there is no key for that."""
    gradient_checkpointing: bool = True
    """Recompute activations in the backward pass."""
    use_remove_padding: bool = True
    """Train on packed rows."""
    reward_model_name_or_path: str | None = None
    """The reward model; it may stand at the top as well."""
    reward_micro_batch_size_per_gpu: int | None = 2
    """Not used: verl serves a reward model, and the server fills its own batches."""
    reward_max_length: int = Field(2048, ge=1)
    """Longest prompt and response that the reward model is shown."""
    n_gpus_per_node: int = Field(1, ge=1)
    """GPUs of a node."""
    nnodes: int = Field(1, ge=1)
    """Nodes."""
    logger: tuple[str, ...] | None = None
    """Where metrics go; null is the console, and what `trace` names."""
    project_name: str = "rlhf"
    """Project in the logs."""
    experiment_name: str | None = None
    """Experiment in the logs; null takes the algorithm's name."""
    save_freq: int = 20
    """Rounds between checkpoints."""
    test_freq: int = 5
    """Rounds between evaluations."""
    total_epochs: int = Field(1, ge=1)
    """Passes over the prompts."""
    val_before_train: bool = True
    """Evaluate before the first step."""
    resume_mode: Literal["auto", "disable"] = "auto"
    """Whether verl goes on from its latest checkpoint."""

    @field_validator("logger", mode="before")
    @classmethod
    def _one_is_a_list(cls, value: object) -> object:
        return [value] if isinstance(value, str) else value


class Rlhf(Section):
    """The file."""

    algorithm: Literal["dpo", "ppo", "grpo"] = "dpo"
    """What is trained; `--stage ppo` or `--stage grpo` says otherwise."""
    model_name_or_path: str
    """The policy's checkpoint."""
    ref_model_name_or_path: str | None = None
    """The reference; in verl it is the policy's checkpoint."""
    tokenizer_name_or_path: str | None = None
    """Tokenizer, where it is not the checkpoint's."""
    reward_model_name_or_path: str | None = None
    """The reward model; it may stand in `ppo` as well."""
    trust_remote_code: bool = False
    """Run Python code that comes with a checkpoint."""
    data: DpoData = DpoData()
    beta: float = 0.1
    """Not used by PPO and GRPO."""
    loss_type: str = "sigmoid"
    """Not used by PPO and GRPO."""
    peft: Peft = Peft()
    training_args: dict[str, Any] = Field(default_factory=dict)
    """Not used by PPO and GRPO: arguments of transformers' trainer."""
    trace: Literal["wandb", "swanlab", "none"] | None = "swanlab"
    """Where runs are tracked."""
    ppo: Online


def is_rlhf(file: str) -> bool:
    """Whether a file is of this kind and no plan."""
    root = read_source(file)
    return root.is_dict and MARK in root.value


def load_rlhf(file: str, overrides: Sequence[str] = ()) -> Rlhf:
    """Raises ConfigError with file, line, key, what was found and what to do."""
    root = read_source(file)
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals:
            raise ConfigError("not an override", found=repr(text), fix="write key=value, e.g. ppo.rollout_n=4")
        root = _set(root, key.split("."), parse_value(value, key), key)
    _check_known(root, Rlhf)
    try:
        return Rlhf.model_validate(plain(root))
    except ValidationError as error:
        raise plan_error(error, root) from None


def _set(node: Node, path: Sequence[str], value: Node, key: str) -> Node:
    if not path:
        return value
    below = node.value.get(path[0]) if node.is_dict else None
    if not node.is_dict:
        raise ConfigError("has no keys below it", file=node.file, line=node.line, field=key)
    return node.with_entry(path[0], _set(below or Node({}, "override", None, key), path[1:], value, key))


def _check_known(node: Node, model: type[BaseModel]) -> None:
    """Raises ConfigError for the first unknown key, with the nearest one, wherever in the file that stands."""
    if not node.is_dict:
        return
    for name, entry in node.value.items():
        if name not in model.model_fields:
            near = _nearest(name)
            raise entry.error("unknown key", fix=f"did you mean {near}?" if near else "leave it out")
        for section in sections(model.model_fields[name].annotation):
            _check_known(entry, section)


def _nearest(name: str) -> str | None:
    known = {key: key for key in Rlhf.model_fields}
    known |= {key: f"ppo.{key}" for key in Online.model_fields if key not in known}
    known |= {key: f"peft.{key}" for key in Peft.model_fields if key not in known}
    found = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return known[found[0]] if found else None
