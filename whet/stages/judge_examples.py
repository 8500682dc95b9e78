"""judge_examples: a judge and people on the same answers; what they agree on teaches the judge.

Leaves in the stage's folder

    judge_examples.jsonl        conversations for sft: the judge's question, a judgement worth learning
    judgements.jsonl            every judgement as it came (what a killed stage goes on from)
    raw_responses.jsonl         prompt by prompt: answers, people's values, the judge's scores and words
    self_reward_samples.jsonl   a few of the raw rows, drawn at random, for reading
    histograms.json  examples.json  data.json      score distribution, what became of the prompts, data ledger
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import closing

from whet.config.engine import Native
from whet.config.rollout import Rollout
from whet.config.stage import JudgeExamplesStage
from whet.data.sources import read_records
from whet.errors import RunError
from whet.experience.asking import judge_stream
from whet.experience.collect import at_once
from whet.experience.examples import (
    Example,
    ExampleCounts,
    agreeing_examples,
    agreement_with_people,
    human_examples,
    without_commonest,
)
from whet.experience.judging import judge_metrics
from whet.experience.rows import raw_row
from whet.experience.summary import histograms, reservoir
from whet.experience.told import HumanScored, human_scored
from whet.rewards.judge import AskedJudge, build_judge
from whet.rewards.pointwise import PointForm
from whet.runs.files import write_json, write_jsonl
from whet.runs.sinks import Progress
from whet.schema.artifacts import StageResult
from whet.schema.rollouts import Group
from whet.stages.context import Context
from whet.stages.judging import judge_engine, judge_renderer


def run(stage: JudgeExamplesStage, context: Context) -> StageResult:
    """Read, judge, compare, write. Raises RunError where no example is left."""
    judge = build_judge(stage.judge, judge_renderer(stage.judge, context), seed=stage.data.seed)
    assert isinstance(judge.form, PointForm), "a judge of single answers"
    form, counts = judge.form, ExampleCounts()
    records, ledger = read_records(stage.data, ("scored", "ranking", "preference"), folders=context.folders)
    told = human_scored(records)
    write_json(context.paths.data, ledger.to_json() | {"rows": {"train": len(told)}})
    print(f"{stage.name}: {ledger.describe()}")
    metrics: dict[str, float] = {"num_prompts": float(len(told))}
    if stage.targets == "human":
        examples = human_examples(told, form, counts)
    else:
        judged, seconds = judge_all(stage, context, judge, told)
        metrics |= seconds | judge_metrics(judged, stage.judge) | agreement_with_people(told, judged)
        write_judged(stage, context, told, judged)
        examples = agreeing_examples(told, judged, form, counts)
    if stage.balance:
        examples = without_commonest(examples, stage.data.seed, counts)
    metrics["num_examples"] = float(len(examples))
    write_examples(stage, context, examples, counts)
    if not examples:
        raise RunError(
            "no judge examples", found=counts.describe(),
            fix="train the judge on targets=human first, or give it another template, more votes or another model",
        )  # fmt: skip
    return StageResult(metrics=metrics)


def judge_all(
    stage: JudgeExamplesStage, context: Context, judge: AskedJudge, told: Sequence[HumanScored]
) -> tuple[list[Group], dict[str, float]]:
    """Every answer judged, and the seconds it took in this process."""
    begun = time.perf_counter()
    rollout = Rollout(engine=stage.judge.engine or Native(), batch_size=stage.batch_size)
    with closing(judge_engine(stage.judge, rollout, context)) as engine:
        loading = time.perf_counter() - begun
        judging = judge_stream(judge, engine, context.paths.root, chunk=at_once(stage.batch_size))
        total = sum(judge.num_requests(len(one.values)) for one in told)
        with Progress(stage.name, total, done=judging.num_stored) as progress:
            groups = (one.group for one in told)
            judged = list(judging.judged(groups, lambda done: progress.update(done, "judgements")))
    return judged, {"seconds_load": round(loading, 3), "seconds_judge": round(judging.seconds, 3)}


def write_judged(
    stage: JudgeExamplesStage, context: Context, told: Sequence[HumanScored], judged: Sequence[Group]
) -> None:
    """What the judge said of every answer, beside what people thought of it: `human_order` has the places of every two
    that they told apart, the better one first."""
    raw = []
    for one, group in zip(told, judged, strict=True):
        row = raw_row(group, None)
        for candidate, value in zip(row["candidates"], one.values, strict=True):
            candidate["human"] = value
        raw.append(row | {"human_order": [list(places) for places in one.ordered]})
    write_jsonl(context.paths.file("raw_responses.jsonl"), raw)
    write_jsonl(context.paths.file("self_reward_samples.jsonl"), reservoir(raw, stage.num_logged, stage.data.seed))
    most = max((len(one.values) for one in told), default=0)
    scale = stage.judge.low, stage.judge.high
    write_json(context.paths.file("histograms.json"), histograms(judged, scale, most))


def write_examples(
    stage: JudgeExamplesStage, context: Context, examples: Sequence[Example], counts: ExampleCounts
) -> None:
    write_jsonl(context.paths.file("judge_examples.jsonl"), [example.row() for example in examples])
    account = counts.to_json() | {"examples": len(examples), "left_out_as_commonest": counts.left_out}
    write_json(context.paths.file("examples.json"), account)
    left_out = f"; {counts.left_out} of the commonest score left out" if counts.left_out else ""
    print(f"{stage.name}: {len(examples)} {counts.describe()}{left_out}")
