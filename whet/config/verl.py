"""Where verl runs what `whet export verl` writes: keys of that command line, `verl.nnodes=2`, and no part of a plan."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Self

from pydantic import Field, ValidationError, model_validator

from whet.config.base import Section
from whet.config.complain import plan_error
from whet.config.node import Node, plain
from whet.config.source import parse_value
from whet.errors import ConfigError, nearest

Logger = Literal["console", "file", "wandb", "swanlab", "mlflow", "tensorboard", "clearml", "trackio"]
PREFIX = "verl."
"""What these keys begin with on a command line that has a plan's keys too."""


class Verl(Section):
    """How verl runs an exported stage."""

    n_gpus_per_node: int = Field(1, ge=1)
    """GPUs of a node that train."""
    nnodes: int = Field(1, ge=1)
    """Nodes that train."""
    engine: Literal["vllm", "sglang"] = "vllm"
    """What generates. verl 0.9.1 has no rollouts by transformers."""
    tensor_parallel: int = Field(1, ge=1)
    """GPUs that one engine spreads the weights over."""
    gpu_memory_utilization: float = Field(0.5, gt=0, lt=1)
    """Share of a GPU's memory that the engine takes while it generates."""
    strategy: Literal["fsdp", "fsdp2"] = "fsdp2"
    """How training is sharded."""
    param_offload: bool = False
    """Keep weights in the host's memory while they are not needed."""
    optimizer_offload: bool = False
    """Keep the optimiser's state in the host's memory while it is not needed."""
    micro_batch_per_gpu: int | None = Field(None, ge=1)
    """Responses of a forward pass on a GPU; null fills passes by tokens, as whet does."""
    tokens_per_gpu: int | None = Field(None, ge=1)
    """Tokens of a forward pass on a GPU; null takes `train.micro_batch_tokens`, else 16,384 or the longest response
    with its prompt."""
    use_remove_padding: bool = True
    """Train on packed rows; needs flash-attn."""
    reward_workers: int = Field(8, ge=1)
    """Processes of verl that ask for rewards; each has a whet process beside it."""
    reward_deadline: float = Field(300.0, gt=0)
    """Seconds a reward may take; a longer one ends its whet process and leaves the completion without a score."""
    unscored: float = 0.0
    """What a completion without a score is worth: verl cannot leave it out, as whet does."""
    max_unscored: float = Field(0.1, ge=0, le=1)
    """Share of the last 200 completions without a score at which the run stops."""
    reward_nnodes: int = Field(0, ge=0)
    """Nodes of their own for a reward model or judge; 0 has it share the GPUs that train."""
    reward_gpus_per_node: int = Field(1, ge=1)
    """GPUs of such a node."""
    reward_tensor_parallel: int = Field(1, ge=1)
    """GPUs that one reward model or judge is spread over."""
    reward_gpu_memory_utilization: float = Field(0.5, gt=0, lt=1)
    """Share of a GPU's memory that the reward model or judge takes while it answers."""
    logger: tuple[Logger, ...] = Field(("console", "file"), min_length=1)
    """Where metrics go; `file` is metrics.jsonl in the exported folder."""
    project: str = Field("whet", min_length=1)
    """Project in the logs."""
    experiment: str | None = None
    """Experiment in the logs; null takes the names of run and stage."""
    val_before_train: bool = True
    """Measure the held-out prompts before the first step, where there are any."""
    resume: Literal["auto", "disable"] = "auto"
    """Whether verl goes on from its latest checkpoint."""
    num_cpus: int | None = Field(None, ge=1)
    """CPUs that Ray counts on; on SLURM it must be told."""

    @model_validator(mode="after")
    def _engines_fit(self) -> Self:
        if self.n_gpus_per_node % self.tensor_parallel:
            raise ValueError(
                f"tensor_parallel {self.tensor_parallel} does not divide n_gpus_per_node {self.n_gpus_per_node}"
            )
        pool = self.reward_gpus_per_node if self.reward_nnodes else self.n_gpus_per_node
        if pool % self.reward_tensor_parallel:
            raise ValueError(f"reward_tensor_parallel {self.reward_tensor_parallel} does not divide {pool} GPUs a node")
        return self

    @property
    def num_gpus(self) -> int:
        """GPUs that train."""
        return self.n_gpus_per_node * self.nnodes


def verl_options(overrides: Sequence[str]) -> Verl:
    """The options of `verl.KEY=VALUE` pairs. Raises ConfigError with the key, what was found and what to do."""
    root = Node({}, "override", None, "verl")
    for text in overrides:
        key, equals, value = text.partition("=")
        name = key.strip().removeprefix(PREFIX)
        if not equals:
            raise ConfigError("not an override", file="override", found=repr(text), fix="write e.g. verl.nnodes=2")
        if name not in Verl.model_fields:
            near = nearest(name, Verl.model_fields)
            raise ConfigError(
                "unknown key", file="override", field=PREFIX + name,
                fix=f"did you mean {PREFIX}{near}?" if near else "`whet explain verl` lists every key",
            )  # fmt: skip
        root = root.with_entry(name, parse_value(value, PREFIX + name))
    try:
        return Verl.model_validate(plain(root))
    except ValidationError as error:
        raise plan_error(error, root) from None
