"""Online RL: every stage that trains a policy on what it says. The kinds differ in their objective alone.

prompts -> completions -> rewards -> advantages -> steps -> the best checkpoint becomes the stage's model

    rounds/000012.jsonl      completions as the engine gave them, with their rewards: what a killed run goes on from
    measured/                log-probs and values of the responses when their round began
    completions.jsonl        the same to read: prompt, completion, every part of the reward, advantage
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from threading import Event

from whet.config.judge import PointwiseForm
from whet.config.stage import OnlineStage
from whet.data.render import Renderer
from whet.errors import DataError
from whet.models.backbone import unwrapped
from whet.models.load import compute_dtype, pick_device
from whet.models.memory import FreedMemory, activation_bytes
from whet.ranks.group import Ranks
from whet.rewards.build import RewardSetting, build_reward
from whet.rewards.gold import gold_check
from whet.rewards.reward import Reward
from whet.rollout.build import Answering, Served, policy_engine, server_counts
from whet.rollout.engine import Engine
from whet.runs.files import read_jsonl
from whet.runs.sinks import MetricsFile
from whet.schema.artifacts import StageResult
from whet.schema.records import Prompt
from whet.stages.context import Context
from whet.stages.held_out import held_out_reward
from whet.stages.judging import judge_engine, judge_renderer
from whet.stages.memory import memory_told
from whet.stages.online_work import OnlineGround, online_work
from whet.stages.parts import check_parts
from whet.stages.policy import Policy, load_policy
from whet.stages.prompts import PromptSet, read_prompts
from whet.stages.rendering import renderer_of
from whet.stages.result import artefact_name, final_metrics, kept_step, publish
from whet.stages.watch import watch
from whet.train.checkpoint import Checkpoints, Position
from whet.train.loop import Loop
from whet.train.parallel import Parallel
from whet.train.rounds import RoundOrder, UntilStopped

GOLD = "its reference does not get full marks"
"""Why a row is left out after the gold check."""
SCALE = "eval_scale.json"
"""What the rewards of the starting model's held-out answers were like, where rewards are normalised."""
LAST_SHARE = 0.1
"""Part of the training that the summary's means are over."""


def run(stage: OnlineStage, context: Context) -> StageResult:
    """Train, from the latest checkpoint of this folder if there is one. Returns the model and the final metrics.

    Raises DataError where the reward does not give full marks to the prompts' own references, and RunError where a
    device's memory runs out.
    """
    with memory_told(stage), ExitStack() as opened:
        return train(stage, context, opened)


def train(stage: OnlineStage, context: Context, opened: ExitStack) -> StageResult:
    """The work of `run`. Engines are closed with `opened`, and before them the thread that asks them."""
    device = pick_device(context.model.device, field="model.device")
    dtype = compute_dtype(stage.train.arithmetic, device)
    parallel = Parallel(device, dtype, context.ranks, context.launch.sharding)
    check_parts(stage, parallel, adapter=context.model.lora is not None or context.start.adapter is not None)
    renderer = renderer_of(context.start, context.model, system=stage.data.system)
    tokenizer = renderer.template.tokenizer
    judges, stopped = list[Engine](), Event()
    reward = build_reward(stage.reward, setting=setting(stage, context, opened, judges, stopped))
    asked = checked(stage, context, renderer, reward)
    checkpoints = Checkpoints(context.paths.checkpoints, keep=stage.train.keep_checkpoints)
    policy = load_policy(stage, context, checkpoints, tokenizer, device=device, dtype=dtype)
    engine = policy_engine(
        stage.rollout.engine, policy.model,
        Served(ref=context.start, model=context.model, folder=context.paths.root),
        Answering.by(renderer, batch_size=stage.rollout.batch_size), dtype=dtype, ahead=stage.rollout.staleness > 0,
        whole=None if parallel.parts is None else parallel.parts.whole,
    )  # fmt: skip
    opened.callback(engine.close)
    freed = FreedMemory(policy.budget.packed * activation_bytes(unwrapped(policy.model), dtype))
    latest = checkpoints.latest()
    keeps = parallel.is_main
    with (
        MetricsFile(context.paths.metrics, keeps=keeps) as metrics,
        MetricsFile(context.paths.completions, keeps=keeps) as completions,
    ):
        completions.truncate_after(latest.step if latest is not None else 0)
        work = online_work(
            stage,
            OnlineGround(
                context=context, policy=policy, engine=UntilStopped(engine, stopped), renderer=renderer, reward=reward,
                prompts=asked.prompts, parallel=parallel, log=completions.write,
            ),
        )  # fmt: skip
        opened.callback(work.order.close)
        opened.callback(stopped.set)
        position = Loop(
            model=policy.scorer,
            learner=work.learner,
            feed=work.feed,
            train=stage.train,
            parallel=parallel,
            checkpoints=checkpoints,
            save_model=lambda folder: policy.save(folder, parallel.parts),
            metrics=metrics,
            evaluate=evaluator(stage, context, asked.held_out, policy, engine, renderer, reward, parallel, work.order),
            settle=freed.settle,
            title=stage.name,
        ).fit()
    counts = asked_of_servers(engine, judges, context.ranks)
    end = partial(finish, stage, context, checkpoints, position, artefact_name(policy.model), counts)
    return context.ranks.on_main(end, "the model that is kept")


def setting(
    stage: OnlineStage, context: Context, opened: ExitStack, judges: list[Engine], stopped: Event
) -> RewardSetting:
    """What rewards may ask of this stage: earlier reward models, the answer's limit, a judge, which joins `judges` and
    answers until `stopped`."""
    return RewardSetting(
        models=context.models,
        max_new_tokens=stage.rollout.max_new_tokens,
        judge=partial(judge_of, stage, context, opened, judges, stopped),
        vision=context.model.vision,
    )


def judge_of(
    stage: OnlineStage, context: Context, opened: ExitStack, judges: list[Engine], stopped: Event,
    judge: PointwiseForm,
) -> tuple[Engine, Renderer]:  # fmt: skip
    """A language model that judges."""
    engine = judge_engine(judge, stage.rollout, context)
    opened.callback(engine.close)
    judges.append(engine)
    return UntilStopped(engine, stopped), judge_renderer(judge, context)


def checked(stage: OnlineStage, context: Context, renderer: Renderer, reward: Reward) -> PromptSet:
    """The prompts whose own references the reward gives full marks, as far as it reads references.

    Others are an error, or dropped and counted where `data.on_bad_row` says so.
    """
    asked = read_prompts(stage.data, context, renderer, hold_out=True)
    report = context.ranks.on_main(
        partial(gold_check, reward, (*asked.prompts, *asked.held_out)), "the rewards of the references"
    )
    if (error := report.error()) is not None and stage.data.on_bad_row == "error":
        raise error
    kept = asked.without({failure.origin for failure in report.failures}, GOLD)
    if context.ranks.is_main:
        kept.write(context)
    print(f"{stage.name}: {report.describe()}")
    if not kept.prompts:
        raise DataError("no prompts left", field="data.files", found=report.describe(), fix="mend the references")
    return kept


def evaluator(
    stage: OnlineStage, context: Context, held_out: Sequence[Prompt], policy: Policy, engine: Engine,
    renderer: Renderer, reward: Reward, parallel: Parallel, order: RoundOrder,
) -> Callable[[], Mapping[str, float]] | None:  # fmt: skip
    """What the loop measures: the reward on held-out prompts, and the tasks to watch. None where there is neither."""
    if not held_out and not stage.watch:
        return None

    def evaluate() -> dict[str, float]:
        order.wait()
        if held_out and (parallel.is_main or parallel.holding is not None):
            engine.sync(0)  # by all ranks where each has a part
        return context.ranks.on_main(measured, "the held-out prompts, which the first rank measures")

    def measured() -> dict[str, float]:
        found: dict[str, float] = {}
        if held_out:
            found |= held_out_reward(
                held_out, engine, renderer, reward, stage.rollout, scale=context.paths.file(SCALE)
            )
        if stage.watch:
            with parallel.forward():
                found |= watch(stage, context, policy.model, policy.tokenizer)
        return found

    return evaluate


def asked_of_servers(engine: Engine, judges: Sequence[Engine], ranks: Ranks) -> dict[str, float]:
    """What servers were asked by the processes that ended the stage, over all ranks."""
    own = Counter(server_counts(engine))
    for judge in judges:
        own.update({f"judge_{name}": value for name, value in server_counts(judge).items()})
    total: Counter[str] = Counter()
    for part in ranks.everyone(dict(own), "what servers were asked"):
        total.update(part)
    return dict(total)


def finish(
    stage: OnlineStage, context: Context, checkpoints: Checkpoints, position: Position, artefact: str,
    counts: Mapping[str, float],
) -> StageResult:  # fmt: skip
    """Publish the chosen checkpoint's weights as the stage's model, and sum up its metrics."""
    step = kept_step(stage, position)
    model = publish(checkpoints.folder(step) / artefact, context.paths.file(artefact), context.start.path)
    last = read_jsonl(context.paths.metrics)[-1]["epoch"]
    return StageResult(metrics={**final_metrics(context, step, since=(1 - LAST_SHARE) * last), **counts}, model=model)
