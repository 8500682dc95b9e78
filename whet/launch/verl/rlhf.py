"""rlhf.yaml -> a folder that verl runs: the same folder as of a plan, by the file's own numbers.

What the file does not say is verl's default there: clip 0.2, token-mean, AdamW with weight decay 0.01.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from whet.config.complain import plan_error
from whet.config.data import Data
from whet.config.model import Lora, Model
from whet.config.node import Node, from_python
from whet.config.rewards import RewardModel
from whet.config.rlhf import Online, Rlhf
from whet.config.rollout import OnlineRollout
from whet.config.stage import GrpoStage
from whet.config.train import OnlineTrain
from whet.config.verl import PREFIX, Verl
from whet.errors import ConfigError
from whet.launch.verl.arithmetic import Batch, check
from whet.launch.verl.export import Exported, check_end, check_prompts, write
from whet.launch.verl.keys import ACTOR, REF, ROLLOUT, Settings, Value
from whet.launch.verl.refuse import refused
from whet.launch.verl.settings import (
    NEVER,
    Ground,
    critic_passes,
    data_settings,
    model_settings,
    optimizer_settings,
    pass_settings,
    place_settings,
    policy_checkpoint,
    rollout_settings,
    training_settings,
)
from whet.launch.verl.spec import Served, Spec, reward_settings
from whet.runs.layout import StagePaths
from whet.schema.artifacts import ModelRef
from whet.stages.context import Context
from whet.stages.prompts import read_prompts
from whet.stages.rendering import renderer_of

Algorithm = Literal["ppo", "grpo"]
UNUSED = {
    "data": "is for DPO", "beta": "is for DPO", "loss_type": "is for DPO", "training_args": "is for DPO",
    "ppo.val_batch_size": "verl sends all held-out prompts to the engine at once",
    "ppo.target_kl": "verl reads it for an adaptive controller only, which the file has no key for",
    "ppo.reward_micro_batch_size_per_gpu": "verl serves the reward model, and the server fills its own batches",
}  # fmt: skip
"""Keys that no key of verl's comes of, and why."""
NAMES = {
    "tensor_parallel": "rollout_tp", "engine": "rollout_backend", "project": "project_name", "resume": "resume_mode",
    "gpu_memory_utilization": "rollout_gpu_memory_utilization", "experiment": "experiment_name",
    "micro_batch_per_gpu": "ppo_micro_batch_size_per_gpu",
}  # fmt: skip
"""What options are called under `ppo`, where that is another name."""
WEIGHT_DECAY, VALUE_RATE = 0.01, 1e-5
"""verl's own: weight decay, and the critic's learning rate."""


def export_rlhf(file: Rlhf, options: Verl, out: Path, *, algorithm: str | None) -> Verl:
    """Write the folder; returns the options with the file's own. Raises ConfigError for what verl cannot do."""
    chosen, both = _algorithm(file, algorithm), _options(file, options)
    write(_exported(file, chosen, both, out.resolve()), out.resolve())
    return both


def _algorithm(file: Rlhf, asked: str | None) -> Algorithm:
    match asked or file.algorithm:
        case "ppo":
            return "ppo"
        case "grpo":
            return "grpo"
        case other:
            raise ConfigError(
                "verl runs ppo and grpo here; preferences are learnt by `whet dpo`",
                field="--stage" if asked else "algorithm", found=other, fix="take --stage grpo or --stage ppo",
            )  # fmt: skip


def _options(file: Rlhf, given: Verl) -> Verl:
    """The file's own, under those of the command line. Raises ConfigError where they do not go together."""
    online = file.ppo
    traced = [file.trace] if file.trace not in (None, "none") else []
    own = {
        "n_gpus_per_node": online.n_gpus_per_node, "nnodes": online.nnodes, "tensor_parallel": online.rollout_tp,
        "engine": _engine(online),
        "gpu_memory_utilization": online.rollout_gpu_memory_utilization,
        "micro_batch_per_gpu": online.ppo_micro_batch_size_per_gpu, "use_remove_padding": online.use_remove_padding,
        "logger": online.logger or ["console", *traced], "project": online.project_name,
        "experiment": online.experiment_name, "val_before_train": online.val_before_train,
        "resume": online.resume_mode,
    }  # fmt: skip
    said = given.model_dump(include=given.model_fields_set)
    try:
        return Verl.model_validate(own | said)
    except ValidationError as error:
        nodes = {name: from_python(value, path=f"ppo.{NAMES.get(name, name)}") for name, value in own.items()}
        nodes |= {name: from_python(value, file="override", path=PREFIX + name) for name, value in said.items()}
        raise plan_error(error, Node(nodes, None, None, "")) from None


def _engine(online: Online) -> str:
    if online.rollout_backend == "hf":
        raise refused(
            "ppo.rollout_backend", "verl 0.9.1 has no rollouts by transformers any more: its engines are servers",
            found="hf", fix="take vllm or sglang, or train by `whet grpo`, which generates in its own process",
        )  # fmt: skip
    return online.rollout_backend


def _exported(file: Rlhf, algorithm: Algorithm, options: Verl, out: Path) -> Exported:
    online = file.ppo
    _check(file, algorithm)
    model = Model(path=file.model_name_or_path, lora=_lora(file), trust_remote_code=file.trust_remote_code)
    start = _place(file.model_name_or_path)
    tokenizer = file.tokenizer_name_or_path or file.model_name_or_path
    data = Data(
        files=(online.train_file,), eval_files=(online.eval_file,) if online.eval_file else (), format="prompt",
        columns={} if online.prompt_key == "prompt" else {"prompt": online.prompt_key},
        max_length=online.max_prompt_length,
    )  # fmt: skip
    renderer = renderer_of(ModelRef(path=_place(tokenizer)), model)
    asked = read_prompts(data, _context(data, model, start, out), renderer, hold_out=True)
    print(f"{algorithm}: {asked.ledger.describe()}")
    check_prompts((*asked.prompts, *asked.held_out), renderer, None)
    check_end(start, renderer)
    batch = Batch(
        prompts=online.train_batch_size, step_prompts=online.ppo_mini_batch_size, samples=online.rollout_n,
        prompt_tokens=online.max_prompt_length, response_tokens=online.max_response_length, passes=online.ppo_epochs,
        round_key="ppo.train_batch_size", step_key="ppo.ppo_mini_batch_size", samples_key="ppo.rollout_n",
    )  # fmt: skip
    check(batch, options, num_prompts=len(asked.prompts))
    ground = Ground(
        model=model, options=options, start=start, tokenizer=None if tokenizer == model.path else _place(tokenizer),
        folder=str(out), name=algorithm, num_prompts=len(asked.prompts), held_out=bool(asked.held_out),
        patch_size=None, critic=start if algorithm == "ppo" else None,
    )  # fmt: skip
    reward = _reward(file)
    longest = batch.prompt_tokens + batch.response_tokens
    served = Served(path=reward.path, reply_tokens=1, room=max(0, online.reward_max_length - longest))
    settings = {
        **_settings(file, algorithm, batch, ground),
        **reward_settings(str(out), served, options, longest=longest),
    }
    spec = Spec(
        reward=reward, model=model, served=reward.path, engine=options.engine, max_new_tokens=batch.response_tokens
    )
    return Exported(
        settings=settings, spec=spec, options=options, prompts=asked.prompts, held_out=asked.held_out, system=None,
        pictures=False, tokenizer=None, title=f"{algorithm} of rlhf.yaml", notes=_notes(file),
    )  # fmt: skip


def _check(file: Rlhf, algorithm: Algorithm) -> None:
    online = file.ppo
    if algorithm == "grpo" and online.rollout_n < 2:
        raise refused(
            "ppo.rollout_n", "GRPO compares the responses of a prompt, and verl would take a single one's reward for "
            "its advantage", found=online.rollout_n, fix="take at least 2, better 4",
        )  # fmt: skip
    if file.ref_model_name_or_path not in (None, file.model_name_or_path):
        raise refused(
            "ref_model_name_or_path", "verl's reference is the policy's checkpoint", found=file.ref_model_name_or_path,
            fix="leave it out, or name the same one as model_name_or_path",
        )  # fmt: skip
    if file.peft.enabled and file.peft.qlora:
        raise refused("peft.qlora", "verl does not train on 4-bit weights", found="true", fix="set it to false")
    top, below = file.reward_model_name_or_path, online.reward_model_name_or_path
    if None not in (top, below) and top != below:
        raise refused(
            "ppo.reward_model_name_or_path", f"the top of the file names another one, {top!r}", found=below,
            fix="keep one of both",
        )  # fmt: skip


def _reward(file: Rlhf) -> RewardModel:
    path = file.ppo.reward_model_name_or_path or file.reward_model_name_or_path
    if path is None:
        raise refused(
            "reward_model_name_or_path", "is required: nothing else in the file says what a response is worth",
            fix="name a reward model, or write a plan with a rule or a judge",
        )  # fmt: skip
    return RewardModel(path=_place(path))


def _lora(file: Rlhf) -> Lora | None:
    if not file.peft.enabled:
        return None
    targets = file.peft.target_modules
    named = "all-linear" if targets == "all-linear" else (targets,) if isinstance(targets, str) else targets
    return Lora.model_validate({"rank": file.peft.lora_r, "alpha": file.peft.lora_alpha, "targets": named})


def _settings(file: Rlhf, algorithm: Algorithm, batch: Batch, ground: Ground) -> Settings:
    online, lora = file.ppo, ground.model.lora
    train = OnlineTrain(
        batch_size=batch.prompts, learning_rate=online.actor_lr, weight_decay=WEIGHT_DECAY, epochs=online.total_epochs
    )
    rollout = OnlineRollout(group_size=online.rollout_n, max_new_tokens=online.max_response_length)
    settings: dict[str, Value] = {
        **data_settings(batch, ground, seed=train.seed),
        **model_settings(ground, lora, checkpointing=online.gradient_checkpointing),
        **training_settings(train, batch, ground),
        **pass_settings(batch, ground.options, asked=None),
        f"{REF}.log_prob_micro_batch_size_per_gpu": online.log_prob_micro_batch_size_per_gpu,
        f"{ROLLOUT}.log_prob_micro_batch_size_per_gpu": online.log_prob_micro_batch_size_per_gpu,
        **rollout_settings(rollout, batch, ground, lora),
        f"{ROLLOUT}.load_format": _load_format(online, lora),
        **place_settings(ground),
        "trainer.total_epochs": online.total_epochs,
        "trainer.save_freq": online.save_freq,
        "trainer.test_freq": online.test_freq if ground.held_out else NEVER,
        "trainer.val_before_train": ground.options.val_before_train and ground.held_out,
        "trainer.resume_mode": ground.options.resume,
        **_objective(online, algorithm),
    }
    if algorithm == "ppo":
        value = train.model_copy(update={"learning_rate": VALUE_RATE})
        settings |= {
            **policy_checkpoint("critic.model", ground, lora, checkpointing=online.gradient_checkpointing),
            **optimizer_settings("critic.optim", value, batch),
            **critic_passes(settings, ground.options),
        }
    return settings


def _load_format(online: Online, lora: Lora | None) -> str:
    """An adapter is laid over weights that the engine has read itself."""
    if lora is not None:
        return "safetensors"
    return "auto" if online.load_format == "hf" else online.load_format


def _objective(online: Online, algorithm: Algorithm) -> Settings:
    in_loss = algorithm == "grpo" if online.use_kl_loss is None else online.use_kl_loss
    settings: dict[str, Value] = {
        "algorithm.adv_estimator": "grpo" if algorithm == "grpo" else "gae",
        f"{ACTOR}.policy_loss.loss_mode": "vanilla",
        f"{ACTOR}.loss_agg_mode": "token-mean",
        f"{ACTOR}.clip_ratio_low": 0.2,
        f"{ACTOR}.clip_ratio_high": 0.2,
        f"{ACTOR}.clip_ratio_c": 3.0,
        f"{ACTOR}.ppo_epochs": online.ppo_epochs,
        f"{ACTOR}.entropy_coeff": online.entropy_coeff,
        f"{ACTOR}.use_kl_loss": in_loss,
        "algorithm.use_kl_in_reward": online.use_kl_in_reward,
    }
    if in_loss:
        settings |= {f"{ACTOR}.kl_loss_coef": online.kl_loss_coef, f"{ACTOR}.kl_loss_type": online.kl_loss_type}
    if online.use_kl_in_reward:
        settings |= {"algorithm.kl_ctrl.type": "fixed", "algorithm.kl_ctrl.kl_coef": online.kl_coef}
    return settings


def _notes(file: Rlhf) -> list[str]:
    notes = [f"`{key}` is not written: {why}." for key, why in UNUSED.items()]
    if file.peft.enabled and file.peft.lora_dropout:
        notes.append("`peft.lora_dropout` is not written: verl's adapters have no dropout.")
    return notes


def _place(path: str) -> str:
    return str(Path(path).resolve()) if Path(path).exists() else path


def _context(data: Data, model: Model, start: str, out: Path) -> Context:
    """What reading prompts needs; nothing is written through it."""
    ref = ModelRef(path=start)
    stage = GrpoStage.model_validate({"data": data, "reward": {"type": "exact"}})
    return Context(
        model=model, start=ref, models={"base": ref}, paths=StagePaths(out), folders={}, stage=stage,
    )  # fmt: skip
