"""prepare: the model answers prompts, a judge scores its answers, and the scores become training data.

Self-Rewarding Language Models (Yuan et al., 2401.10020), one round of it; with `meta` the judge's own training data as
well (Meta-Rewarding, 2407.19594). Leaves in the stage's folder

    rollouts.jsonl              every answer as it came, and in judgements.jsonl every judgement: what a killed stage
                                goes on from (so are probabilities.jsonl, of scores, and meta_judgements.jsonl)
    raw_responses.jsonl         prompt by prompt: candidates, scores, judge's words, chosen and rejected or why not
    dpo_training.jsonl  grpo_training.jsonl  gspo_training.jsonl      the same as training rows
    self_reward_samples.jsonl   a few of the raw rows, drawn at random, for reading
    histograms.json  pairs.json  data.json                            score distribution, pair counts, data ledger
    judge_training.jsonl  judge_pairs.json                            with `meta`: pairs of judgements, the same way
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from functools import partial
from itertools import zip_longest

from whet.config.judge import RewardJudge
from whet.config.stage import PrepareStage
from whet.data.render import Renderer
from whet.errors import RunError
from whet.experience.agreement import Checked, agreement_metrics, check_groups
from whet.experience.asking import JudgeStream, judge_stream
from whet.experience.collect import Collector, at_once, keyed
from whet.experience.earlier import recalling
from whet.experience.judging import judge_metrics, score_range
from whet.experience.meta import MetaJudge, build_meta_judge
from whet.experience.pairs import Outcome, PairCounts, select_pairs
from whet.experience.rows import dpo_row, grpo_rows, gspo_row, raw_row
from whet.experience.store import RolloutStore
from whet.experience.summary import chosen_length_ratio, group_metrics, histograms, reservoir
from whet.rewards.check import build_checker
from whet.rewards.judge import AskedJudge, Judge
from whet.rollout.build import Answering, Served, open_engine, server_counts
from whet.runs.files import write_json, write_jsonl
from whet.runs.layout import StagePaths
from whet.runs.sinks import Progress
from whet.schema.artifacts import StageResult
from whet.schema.records import Prompt
from whet.schema.rollouts import Group
from whet.stages.context import Context
from whet.stages.judging import judge_engine, judge_of
from whet.stages.prompts import read_prompts
from whet.stages.rendering import renderer_of
from whet.stages.shares import claim_shares, put_aside, share_folder


def run(stage: PrepareStage, context: Context) -> StageResult:
    """Generate, judge, pair, write. Raises RunError where no pair is left."""
    check = build_checker(stage.checker) if stage.checker is not None else None
    renderer = renderer_of(context.start, context.model, system=stage.data.system)
    judge = judge_of(stage.judge, context, seed=stage.rollout.seed)
    if stage.meta is not None and isinstance(judge, AskedJudge):
        build_meta_judge(stage.meta, judge)  # a bad template is found before anything is asked
    asked = read_prompts(stage.data, context, renderer, hold_out=False)
    if context.ranks.is_main:
        asked.write(context)
    groups, metrics = collect_groups(stage, context, renderer, judge, asked.prompts)
    if not context.ranks.is_main:
        return StageResult()
    checked = check_groups(groups, check) if check is not None else None
    outcomes, counts = select_pairs(
        groups, stage.pairs, seed=stage.rollout.seed, marks=checked.right if checked is not None else None
    )
    metrics |= group_metrics(groups, counts) | judge_metrics(groups, stage.judge)
    write_files(context.paths, stage, groups, outcomes, counts)
    print(f"{stage.name}: {counts.describe()}")
    if not counts.kept:
        raise RunError(
            "no pairs left after judging",
            found=counts.describe(),
            fix=f"read {context.paths.file('raw_responses.jsonl')}",
        )
    if (ratio := chosen_length_ratio(groups, outcomes)) is not None:
        metrics["chosen_length_ratio"] = ratio
    if checked is not None:
        metrics |= compare_with_truth(stage.name, groups, outcomes, checked)
    return StageResult(metrics=metrics)


def collect_groups(
    stage: PrepareStage,
    context: Context,
    renderer: Renderer,
    judge: Judge,
    prompts: Sequence[Prompt],
) -> tuple[list[Group], dict[str, float]]:
    """Scored groups of all prompts, and the seconds each part took in this process; with `meta`, its files and numbers.

    Of several ranks each has its share of the prompts to answer, and the first reads what the others have stored.
    """
    ranks, root = context.ranks, context.paths.root
    ranks.on_main(partial(claim_shares, root, ranks))
    named = list(keyed(prompts))
    shares = [named[rank :: ranks.world] for rank in range(ranks.world)]
    begun = time.perf_counter()
    answering = Answering.by(renderer, batch_size=stage.rollout.batch_size)
    served = Served(ref=context.start, model=context.model, folder=root)
    with ExitStack() as opened:
        engine = opened.enter_context(closing(open_engine(stage.rollout.engine, served, answering)))
        speaking = engine
        if not isinstance(stage.judge, RewardJudge):
            speaking = judge_engine(stage.judge, stage.rollout, context, engine)
        if speaking is not engine:
            opened.enter_context(closing(speaking))
        loading = time.perf_counter() - begun
        judged_by = recalling(speaking, put_aside(root, "judgements*.jsonl", "probabilities*.jsonl"))

        def collector(rank: int) -> Collector:
            folder = share_folder(root, rank, ranks.world)
            return Collector(
                engine=recalling(engine, put_aside(root, "rollouts*.jsonl")), renderer=renderer, rollout=stage.rollout,
                judging=judge_stream(judge, judged_by, folder, chunk=at_once(stage.rollout.batch_size)),
                store=RolloutStore(folder / "rollouts.jsonl"),
            )  # fmt: skip

        mine, size = collector(ranks.rank), stage.rollout.group_size
        total = len(shares[ranks.rank]) * (size + judge.num_requests(size))
        with Progress(ranks.title(stage.name), total, done=mine.num_stored, stream=ranks.stream) as progress:
            dealt = [list(replace(mine, tell=progress.update).groups_of(shares[ranks.rank]))]
        ranks.wait()
        if ranks.is_main:
            dealt += [list(collector(rank).groups_of(shares[rank])) for rank in range(1, ranks.world)]
        groups = [group for together in zip_longest(*dealt) for group in together if group is not None]
        metrics = {f"seconds_{part}": round(value, 3) for part, value in mine.seconds.items()}
        if stage.meta is not None and isinstance(judge, AskedJudge) and ranks.is_main:
            metrics |= judge_judgements(build_meta_judge(stage.meta, judge), groups, mine.judging, context.paths)
        metrics |= server_counts(engine)
        if speaking is not engine:
            metrics |= {f"judge_{name}": value for name, value in server_counts(speaking).items()}
    return groups, {"seconds_load": round(loading, 3)} | metrics


def judge_judgements(
    meta: MetaJudge, groups: Sequence[Group], judging: JudgeStream, paths: StagePaths
) -> dict[str, float]:
    """Write the judge's own training data."""
    store, begun = RolloutStore(paths.file("meta_judgements.jsonl")), time.perf_counter()
    result = meta.run(groups, lambda requests: list(store.stream(judging.engine, requests, chunk=judging.chunk)))
    write_jsonl(paths.file("judge_training.jsonl"), [meta.row(pair) for pair in result.pairs])
    write_json(paths.file("judge_pairs.json"), result.to_json())
    return result.metrics() | {"seconds_meta": round(time.perf_counter() - begun, 3)}


def write_files(
    paths: StagePaths,
    stage: PrepareStage,
    groups: Sequence[Group],
    outcomes: Sequence[Outcome],
    counts: PairCounts,
) -> None:
    """Every file the stage leaves, each appearing whole. Without pairs those that say why."""
    both = list(zip(groups, outcomes, strict=True))
    raw = [raw_row(group, outcome) for group, outcome in both]
    write_jsonl(paths.file("raw_responses.jsonl"), raw)
    write_jsonl(paths.file("self_reward_samples.jsonl"), reservoir(raw, stage.num_logged, stage.rollout.seed))
    scale = score_range(groups, stage.judge)
    write_json(paths.file("histograms.json"), histograms(groups, scale, stage.rollout.group_size))
    write_json(paths.file("pairs.json"), counts.to_json())
    if not counts.kept:
        return
    weighted = [gspo_row(group, stage.pairs.weight_temperature) for group in groups]
    write_jsonl(paths.file("grpo_training.jsonl"), [row for group in groups for row in grpo_rows(group)])
    write_jsonl(paths.file("gspo_training.jsonl"), [row for row in weighted if row is not None])
    pairs = [dpo_row(group, pair) for group, outcome in both if isinstance(outcome, tuple) for pair in outcome]
    write_jsonl(paths.file("dpo_training.jsonl"), pairs)


def compare_with_truth(
    name: str, groups: Sequence[Group], outcomes: Sequence[Outcome], checked: Checked
) -> dict[str, float]:
    """The judge's agreement with the checker, said aloud: pairs are worth no more than the judge."""
    metrics = agreement_metrics(groups, outcomes, checked)
    if checked.failures:
        print(f"{name}: the checker failed on {checked.failures} answers; the first: {checked.first_failure}")
    if "agreement" in metrics:
        num, value = int(metrics["agreement_num"]), metrics["agreement"]
        print(f"{name}: the judge scores a right answer above a wrong one with chance {value:.3f} ({num} answers)")
    return metrics
