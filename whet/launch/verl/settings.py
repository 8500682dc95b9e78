"""A stage of online RL as verl's keys: data, model, training, sampling and the trainer. The objective is `objective`.

verl counts in rounds where whet counts in optimiser steps: `save_freq`, `test_freq`, warm-up and total are divided.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from whet.config.engine import Native, Ray, Vllm
from whet.config.model import Lora, Model
from whet.config.rollout import OnlineRollout
from whet.config.stage import OnlinePolicyStage, PpoStage
from whet.config.train import OnlineTrain
from whet.config.value import ModelValue, PolicyValue
from whet.config.verl import Verl
from whet.launch.verl.arithmetic import DEFAULT_TOKENS, Batch, rounds
from whet.launch.verl.keys import ACTOR, MODEL, REF, ROLLOUT, Settings, Value
from whet.launch.verl.objective import objective_settings
from whet.launch.verl.refuse import refused

OPTIMIZERS = {
    "adamw": ("torch.optim", "AdamW"),
    "adamw_8bit": ("bitsandbytes.optim", "AdamW8bit"),
    "paged_adamw": ("bitsandbytes.optim", "PagedAdamW"),
    "paged_adamw_8bit": ("bitsandbytes.optim", "PagedAdamW8bit"),
}
EYES = r".*(visual|vision_tower|vision_model|multi_modal_projector).*"
"""Layers of a vision tower and its projector, by the names that transformers gives them."""
NEVER = -1
"""A frequency in verl."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ground:
    """What the keys need beside the stage: places, sizes and what the checkpoint is."""

    model: Model
    options: Verl
    start: str
    """Checkpoint that training starts from."""
    tokenizer: str | None
    """Folder of another tokenizer than the checkpoint's; None has none."""
    folder: str
    """The exported folder."""
    name: str
    """Experiment in the logs."""
    num_prompts: int
    held_out: bool
    patch_size: int | None
    """Of the checkpoint's pictures; None for a model of text."""
    critic: str | None
    """Checkpoint of the value function; None for no PPO."""


def stage_batch(stage: OnlinePolicyStage) -> Batch:
    """The stage's numbers: `train.batch_size` is that of all ranks, as verl's. Raises ConfigError where minibatches are
    not equal."""
    prompts, minibatches = stage.train.batch_size, stage.objective.minibatches
    if prompts % minibatches:
        raise refused(
            "objective.minibatches", f"{prompts} prompts are not so many equal minibatches", found=minibatches,
            fix="take a divisor of train.batch_size",
        )  # fmt: skip
    return Batch(
        prompts=prompts, step_prompts=prompts // minibatches, samples=stage.rollout.group_size,
        prompt_tokens=stage.data.max_length, response_tokens=stage.rollout.max_new_tokens,
        passes=stage.objective.passes,
    )  # fmt: skip


def stage_settings(stage: OnlinePolicyStage, ground: Ground, batch: Batch) -> dict[str, Value]:
    """Every key that a stage decides; the reward's are not among them. Raises ConfigError for what verl lacks."""
    lora = ground.model.lora
    settings: dict[str, Value] = {
        **data_settings(batch, ground, seed=stage.data.seed),
        **model_settings(ground, lora, checkpointing=whole_layers(stage.train, ground)),
        **training_settings(stage.train, batch, ground),
        **pass_settings(batch, ground.options, asked=stage.train.micro_batch_tokens),
        **rollout_settings(stage.rollout, batch, ground, lora),
        **trainer_settings(stage.train, batch, ground),
        **objective_settings(stage.objective, max_new_tokens=stage.rollout.max_new_tokens),
    }
    if isinstance(stage, PpoStage):
        settings |= critic_settings(stage, ground, lora, settings, batch)
    return settings


def data_settings(batch: Batch, ground: Ground, *, seed: int) -> Settings:
    settings: dict[str, Value] = {
        "data.train_files": [f"{ground.folder}/train.parquet"],
        "data.val_files": [f"{ground.folder}/{'val' if ground.held_out else 'train'}.parquet"],
        "data.prompt_key": "prompt",
        "data.train_batch_size": batch.prompts,
        "data.max_prompt_length": batch.prompt_tokens,
        "data.max_response_length": batch.response_tokens,
        "data.truncation": "error",
        "data.filter_overlong_prompts": False,  # whet has done it, and keeps an account
        "data.shuffle": True,
        "data.seed": seed,
        "data.trust_remote_code": ground.model.trust_remote_code,
    }
    if ground.patch_size is not None:
        settings |= {"data.image_key": "images", "data.image_patch_size": ground.patch_size}
    return settings


def whole_layers(train: OnlineTrain, ground: Ground) -> bool:
    """Whether all layers recompute. Raises ConfigError for other ways in which the plan saves memory."""
    if not isinstance(train.gradient_checkpointing, bool):
        raise refused(
            "train.gradient_checkpointing", "verl recomputes all layers or none", found=train.gradient_checkpointing,
            fix="take true or false",
        )  # fmt: skip
    if train.activation_offload:
        raise refused("train.activation_offload", "is not exported", found=True, fix="leave it out")
    if ground.model.quantization is not None:
        raise refused(
            "model.quantization", "verl trains on weights in full precision", found=ground.model.quantization.type,
            fix="leave it out",
        )  # fmt: skip
    return train.gradient_checkpointing


def model_settings(ground: Ground, lora: Lora | None, *, checkpointing: bool) -> Settings:
    return {
        **_checkpoint(MODEL, ground.start, ground, lora, checkpointing),
        f"{ACTOR}.strategy": ground.options.strategy,
        f"{ACTOR}.fsdp_config.model_dtype": "fp32",
        f"{ACTOR}.fsdp_config.param_offload": ground.options.param_offload,
        f"{ACTOR}.fsdp_config.optimizer_offload": ground.options.optimizer_offload,
        f"{REF}.fsdp_config.param_offload": ground.options.param_offload,
        f"{ACTOR}.freeze_vision_tower": ground.patch_size is not None and not ground.model.vision.train,
    }


def policy_checkpoint(place: str, ground: Ground, lora: Lora | None, *, checkpointing: bool) -> Settings:
    """A model that begins as the policy does."""
    return _checkpoint(place, ground.start, ground, lora, checkpointing)


def _checkpoint(place: str, path: str, ground: Ground, lora: Lora | None, checkpointing: bool) -> dict[str, Value]:
    settings: dict[str, Value] = {
        f"{place}.path": path,
        f"{place}.tokenizer_path": ground.tokenizer,
        f"{place}.trust_remote_code": ground.model.trust_remote_code,
        f"{place}.use_remove_padding": ground.options.use_remove_padding,
        f"{place}.enable_gradient_checkpointing": checkpointing,
        f"{place}.lora_rank": 0 if lora is None else lora.rank,
    }
    if lora is not None:
        _check_lora(lora)
        settings |= {
            f"{place}.lora_alpha": int(lora.alpha),
            f"{place}.target_modules": lora.targets if isinstance(lora.targets, str) else list(lora.targets),
        }
        if ground.patch_size is not None and not ground.model.vision.train:
            settings[f"{place}.exclude_modules"] = EYES
    return settings


def _check_lora(lora: Lora) -> None:
    if lora.dropout:
        raise refused("model.lora.dropout", "verl's adapters have no dropout", found=lora.dropout, fix="set it to 0")
    if not lora.alpha.is_integer():
        raise refused("model.lora.alpha", "verl takes a whole number", found=lora.alpha)


def training_settings(train: OnlineTrain, batch: Batch, ground: Ground) -> Settings:
    if train.weights != "fp32":
        raise refused("train.weights", "verl holds the weights that train in fp32", found=train.weights)
    if train.arithmetic not in ("auto", "bf16"):
        raise refused("train.precision", "verl's FSDP computes in bf16", found=train.precision, fix="leave it at auto")
    return {
        f"{ACTOR}.ppo_mini_batch_size": batch.step_prompts,
        f"{ACTOR}.fsdp_config.seed": train.seed,
        **optimizer_settings(f"{ACTOR}.optim", train, batch),
    }


def optimizer_settings(place: str, train: OnlineTrain, batch: Batch) -> Settings:
    """AdamW and its schedule. verl moves the learning rate once a round."""
    if train.schedule == "linear":
        raise refused("train.schedule", "verl has constant and cosine", found="linear")
    if train.max_grad_norm is None:
        raise refused("train.max_grad_norm", "verl always clips the gradient", found="null", fix="set a large number")
    if train.epsilon != 1e-8:
        raise refused("train.epsilon", "verl leaves AdamW's at 1e-8", found=train.epsilon)
    implementation, name = OPTIMIZERS[train.optimizer]
    return {
        f"{place}.optimizer_impl": implementation,
        f"{place}.optimizer": name,
        f"{place}.lr": train.learning_rate,
        f"{place}.lr_scheduler_type": train.schedule,
        f"{place}.lr_warmup_steps": -1 if train.warmup_steps is None else rounds(train.warmup_steps, batch),
        f"{place}.lr_warmup_steps_ratio": train.warmup_ratio if train.warmup_steps is None else 0.0,
        f"{place}.min_lr_ratio": train.min_lr_ratio,
        f"{place}.weight_decay": train.weight_decay,
        f"{place}.betas": list(train.betas),
        f"{place}.clip_grad": train.max_grad_norm,
    }


def pass_settings(batch: Batch, options: Verl, *, asked: int | None) -> Settings:
    """How responses are put into forward passes: so many, or as many as their tokens allow."""
    micro = options.micro_batch_per_gpu
    tokens = max(options.tokens_per_gpu or asked or DEFAULT_TOKENS, batch.prompt_tokens + batch.response_tokens)
    settings: dict[str, Value] = {
        f"{ACTOR}.use_dynamic_bsz": micro is None,
        f"{ACTOR}.ppo_micro_batch_size_per_gpu": micro,
        f"{ACTOR}.ppo_max_token_len_per_gpu": tokens,
    }
    for place in (REF, ROLLOUT):
        settings |= {
            f"{place}.log_prob_use_dynamic_bsz": micro is None,
            f"{place}.log_prob_micro_batch_size_per_gpu": micro,
            f"{place}.log_prob_max_token_len_per_gpu": tokens,
        }
    return settings


def rollout_settings(rollout: OnlineRollout, batch: Batch, ground: Ground, lora: Lora | None) -> Settings:
    for key, value, absent in (
        ("min_p", rollout.min_p, 0.0), ("min_new_tokens", rollout.min_new_tokens, 0), ("stop", rollout.stop, ()),
        ("staleness", rollout.staleness, 0),
    ):  # fmt: skip
        if value != absent:
            raise refused(f"rollout.{key}", "verl's rollouts have no such setting", found=value, fix="leave it out")
    if isinstance(rollout.engine, Vllm) and rollout.engine.url is not None:
        raise refused("rollout.engine.url", "verl starts its engines itself", found=rollout.engine.url)
    assert isinstance(rollout.engine, Native | Vllm | Ray), "online RL has no other engine"
    sampling = sampling_settings(rollout.temperature, rollout.top_p, rollout.top_k)
    return {
        f"{ROLLOUT}.name": ground.options.engine,
        f"{ROLLOUT}.mode": "async",
        f"{ROLLOUT}.n": rollout.group_size,
        f"{ROLLOUT}.seed": rollout.seed,
        f"{ROLLOUT}.tensor_model_parallel_size": ground.options.tensor_parallel,
        f"{ROLLOUT}.gpu_memory_utilization": ground.options.gpu_memory_utilization,
        # An adapter is laid over weights that the engine has read itself; whole weights come with the first sync.
        f"{ROLLOUT}.load_format": "dummy" if lora is None else "safetensors",
        f"{ROLLOUT}.max_model_len": batch.prompt_tokens + batch.response_tokens,
        f"{ROLLOUT}.calculate_log_probs": True,
        f"{ROLLOUT}.do_sample": True,
        **{f"{ROLLOUT}.{name}": value for name, value in sampling.items()},
        **{f"{ROLLOUT}.val_kwargs.{name}": value for name, value in sampling.items()},
        f"{ROLLOUT}.val_kwargs.n": 1,
        f"{ROLLOUT}.val_kwargs.do_sample": True,
    }


def sampling_settings(temperature: float, top_p: float, top_k: int) -> Mapping[str, Value]:
    return {"temperature": temperature, "top_p": top_p, "top_k": top_k or -1}


def trainer_settings(train: OnlineTrain, batch: Batch, ground: Ground) -> Settings:
    options, epoch = ground.options, ground.num_prompts // batch.prompts
    most = None if train.max_steps is None else rounds(train.max_steps, batch)
    return {
        **place_settings(ground),
        # verl ends with whichever comes first, and `max_steps` counts whatever `epochs` says.
        "trainer.total_epochs": train.epochs if most is None else -(-most // epoch),
        "trainer.total_training_steps": most,
        "trainer.save_freq": epoch if train.save_every is None else rounds(train.save_every, batch),
        "trainer.test_freq": _test_freq(train, batch, epoch) if ground.held_out else NEVER,
        "trainer.val_before_train": options.val_before_train and ground.held_out,
        "trainer.resume_mode": options.resume,
        "trainer.max_actor_ckpt_to_keep": train.keep_checkpoints,
        "trainer.max_critic_ckpt_to_keep": train.keep_checkpoints,
    }


def _test_freq(train: OnlineTrain, batch: Batch, epoch: int) -> int:
    return epoch if train.eval_every is None else rounds(train.eval_every, batch)


def place_settings(ground: Ground) -> Settings:
    """Where it runs, and under which name."""
    options = ground.options
    return {
        "trainer.n_gpus_per_node": options.n_gpus_per_node,
        "trainer.nnodes": options.nnodes,
        "trainer.logger": list(options.logger),
        "trainer.project_name": options.project,
        "trainer.experiment_name": options.experiment or ground.name,
        "trainer.default_local_dir": f"{ground.folder}/checkpoints",
        **({} if options.num_cpus is None else {"ray_kwargs.ray_init.num_cpus": options.num_cpus}),
    }


def critic_settings(
    stage: PpoStage, ground: Ground, lora: Lora | None, settings: Settings, batch: Batch
) -> Settings:
    """The value function: in verl a model of its own, with an optimiser of its own."""
    match stage.value:
        case PolicyValue():
            raise refused(
                "value.type", "verl's value function is a model of its own, not a head on the policy", found="policy",
                fix="set value={type: model}",
            )  # fmt: skip
        case ModelValue(learning_rate=rate):
            assert ground.critic is not None, "PPO has a critic"
            checkpointing = whole_layers(stage.train, ground)
            train = stage.train if rate is None else stage.train.model_copy(update={"learning_rate": rate})
            return {
                **_checkpoint("critic.model", ground.critic, ground, lora, checkpointing),
                **optimizer_settings("critic.optim", train, batch),
                **critic_passes(settings, ground.options),
            }


def critic_passes(settings: Settings, options: Verl) -> Settings:
    """The critic's passes are the policy's."""
    return {
        "critic.strategy": options.strategy,
        "critic.use_dynamic_bsz": settings[f"{ACTOR}.use_dynamic_bsz"],
        "critic.ppo_micro_batch_size_per_gpu": settings[f"{ACTOR}.ppo_micro_batch_size_per_gpu"],
        "critic.ppo_max_token_len_per_gpu": settings[f"{ACTOR}.ppo_max_token_len_per_gpu"],
        "critic.fsdp.model_dtype": "fp32",
        "critic.fsdp.param_offload": options.param_offload,
        "critic.fsdp.optimizer_offload": options.optimizer_offload,
    }
