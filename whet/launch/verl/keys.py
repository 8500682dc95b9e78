"""Every key of verl's that may be written. `make test-verl` finds each of them in verl's own tree.

Not here, because verl 0.9.1 composes them and reads none of them: `custom_reward_function.*`, `reward_model.*` and
`sandbox_fusion.*` at the top, `actor.clip_ratio` (low and high have defaults of their own), `data.val_batch_size`,
`data.reward_fn_key`, `algorithm.filter_groups.max_num_gen_batches`, `critic.lam` and the like. `trainer.device` is not
here either: without a GPU verl turns `cpu` into `cuda`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TypeAlias

from whet.errors import ConfigError

Value: TypeAlias = str | int | float | bool | Sequence[str] | Sequence[float] | None
Settings: TypeAlias = Mapping[str, Value]
"""Keys of verl's with their values."""

ACTOR, ROLLOUT, MODEL, REF = (f"actor_rollout_ref.{part}" for part in ("actor", "rollout", "model", "ref"))


def below(prefix: str, *names: str) -> frozenset[str]:
    return frozenset(f"{prefix}.{name}" for name in names)


_MODEL = (
    "path", "tokenizer_path", "trust_remote_code", "use_remove_padding", "enable_gradient_checkpointing", "lora_rank",
    "lora_alpha", "target_modules", "exclude_modules",
)  # fmt: skip
_OPTIM = (
    "lr", "lr_warmup_steps", "lr_warmup_steps_ratio", "lr_scheduler_type", "min_lr_ratio", "weight_decay", "betas",
    "clip_grad", "optimizer", "optimizer_impl",
)  # fmt: skip
_SAMPLING = ("temperature", "top_p", "top_k")

KEYS: frozenset[str] = (
    below(
        "data", "train_files", "val_files", "prompt_key", "train_batch_size", "max_prompt_length",
        "max_response_length", "truncation", "filter_overlong_prompts", "shuffle", "seed", "trust_remote_code",
        "image_key", "image_patch_size",
    )
    | below(MODEL, *_MODEL)
    | below(
        ACTOR, "strategy", "ppo_mini_batch_size", "ppo_micro_batch_size_per_gpu", "use_dynamic_bsz",
        "ppo_max_token_len_per_gpu", "ppo_epochs", "clip_ratio_low", "clip_ratio_high", "clip_ratio_c",
        "entropy_coeff", "loss_agg_mode", "loss_scale_factor", "policy_loss.loss_mode", "use_kl_loss", "kl_loss_coef",
        "kl_loss_type", "freeze_vision_tower", "fsdp_config.param_offload", "fsdp_config.optimizer_offload",
        "fsdp_config.model_dtype", "fsdp_config.seed",
    )
    | below(f"{ACTOR}.optim", *_OPTIM)
    | below(
        REF, "log_prob_micro_batch_size_per_gpu", "log_prob_use_dynamic_bsz", "log_prob_max_token_len_per_gpu",
        "fsdp_config.param_offload",
    )
    | below(
        ROLLOUT, "name", "mode", "n", "seed", "tensor_model_parallel_size", "gpu_memory_utilization", "load_format",
        "log_prob_micro_batch_size_per_gpu", "log_prob_use_dynamic_bsz", "log_prob_max_token_len_per_gpu",
        "max_model_len", "calculate_log_probs", "do_sample", *_SAMPLING,
    )
    | below(f"{ROLLOUT}.val_kwargs", "n", "do_sample", *_SAMPLING)
    | below("critic.model", *_MODEL)
    | below("critic.optim", *_OPTIM)
    | below(
        "critic", "strategy", "ppo_micro_batch_size_per_gpu", "use_dynamic_bsz", "ppo_max_token_len_per_gpu",
        "cliprange_value", "fsdp.param_offload", "fsdp.optimizer_offload", "fsdp.model_dtype",
    )
    | below(
        "algorithm", "adv_estimator", "gamma", "lam", "norm_adv_by_std_in_grpo", "use_kl_in_reward", "kl_penalty",
        "kl_ctrl.type", "kl_ctrl.kl_coef", "filter_groups.enable", "filter_groups.metric",
        "rollout_correction.rollout_is", "rollout_correction.rollout_is_threshold",
    )
    | below(
        "reward", "custom_reward_function.path", "custom_reward_function.name", "reward_manager.name", "num_workers",
    )
    | below(
        "reward.reward_model", "enable", "model_path", "enable_resource_pool", "n_gpus_per_node", "nnodes",
        "rollout.name", "rollout.tensor_model_parallel_size", "rollout.gpu_memory_utilization",
        "rollout.prompt_length", "rollout.response_length",
    )
    | below(
        "trainer", "n_gpus_per_node", "nnodes", "total_epochs", "total_training_steps", "save_freq", "test_freq",
        "val_before_train", "logger", "project_name", "experiment_name", "default_local_dir", "resume_mode",
        "max_actor_ckpt_to_keep", "max_critic_ckpt_to_keep",
    )
    | below("ray_kwargs.ray_init", "num_cpus")
)  # fmt: skip


def lines(settings: Settings) -> list[str]:
    """The settings as verl takes them on its command line, one override a line.

    A key that is not in the list is a defect of whet, a KeyError; a text with a line break or an interpolation is
    refused, for neither can stand there.
    """
    for key in settings:
        if key not in KEYS:
            raise KeyError(f"{key} is no key that is written for verl")
    return [f"{key}={_written(key, value)}" for key, value in settings.items()]


def _written(key: str, value: Value) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case int() | float():
            return repr(value)
        case str():
            return _quoted(key, value)
        case _:
            return f"[{','.join(_written(key, entry) for entry in value)}]"


def _quoted(key: str, text: str) -> str:
    r"""In single quotes, as Hydra reads them: a quote is \', and a backslash is doubled only in front of one."""
    if "\n" in text or "${" in text:
        raise ConfigError(f"cannot be handed to verl as {key}", found=repr(text), fix="rename the file or folder")
    doubled = re.sub(r"(\\+)('|$)", lambda found: found[1] * 2 + found[2], text)
    return "'" + doubled.replace("'", "\\'") + "'"
