"""reject: several answers a prompt, a judge of correctness, and right and wrong ones in files of their own.

Rejection sampling as in RFT (Yuan et al., 2308.01825) and stage 2 of UnifiedReward-Think. Reading, formatting,
generating, judging and saving are parts of their own, each of which a plan may replace by a function of the user's.
Leaves in the stage's folder

    rollouts.jsonl  groups.jsonl       every answer as it came; every prompt with its scored answers
    accepted.jsonl  rejected.jsonl  preference.jsonl  solved.jsonl  unsolved.jsonl       what later stages read
    reject.json  reject_samples.jsonl  data.json      rates with intervals, some groups to read, data ledger

Everything is a stream: memory holds some windows of prompts, however many there are. Of several ranks each answers its
share of the prompts in a folder of its own, and the first puts them together in the order of the prompts.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from itertools import islice
from pathlib import Path

from whet.config.stage import RejectStage
from whet.errors import RunError
from whet.experience.accept import sort_group
from whet.experience.earlier import Earlier, recalling
from whet.experience.reject_counts import RejectCounts, judged_row
from whet.experience.reject_files import reject_files
from whet.experience.sampled import GroupFile, Row, read_groups
from whet.experience.sampler import Sampler
from whet.experience.store import RolloutStore
from whet.rewards.build import build_reward
from whet.rewards.reward import Reward
from whet.rollout.build import server_counts
from whet.runs.files import write_json, write_jsonl
from whet.runs.sinks import Progress
from whet.schema.artifacts import StageResult
from whet.stages.context import Context
from whet.stages.functions import FunctionSave, prompts_of
from whet.stages.questions import Questions, survey
from whet.stages.reject_account import account, describe, metrics
from whet.stages.reject_engines import RejectEngines
from whet.stages.rendering import renderer_of
from whet.stages.shares import claim_shares, join_lines, put_aside, share_folder

GROUPS = "groups.jsonl"


def run(stage: RejectStage, context: Context) -> StageResult:
    """Answer, judge, sort, write. Raises RunError where no answer has a score."""
    ranks, root, functions = context.ranks, context.paths.root, stage.functions
    ranks.on_main(partial(claim_shares, root, ranks))
    folder = share_folder(root, ranks.rank, ranks.world)
    read = prompts_of(stage.data, context.folders, functions.read, functions.format)
    save = FunctionSave(functions.save) if functions.save is not None else None
    renderer = renderer_of(context.start, context.model, system=stage.data.system)
    with ExitStack() as stack:
        engines = stack.enter_context(RejectEngines(stage, context, renderer, folder))
        reward = build_reward(stage.reward, setting=engines.setting())
        questions = survey(read, stage.data, renderer, reward)
        if ranks.is_main:
            write_json(context.paths.data, questions.ledger.to_json() | {"rows": {"train": questions.num, "eval": 0}})
        print(f"{stage.name}: {questions.ledger.describe()}; {questions.gold}")
        seconds = answer_share(stage, context, questions, reward, engines, folder)
    ranks.wait()
    if not ranks.is_main:
        return StageResult()
    if ranks.world > 1:
        join_lines([share_folder(root, rank, ranks.world) / GROUPS for rank in range(ranks.world)], root / GROUPS)
    return StageResult(metrics=sort_all(stage, context, save) | seconds)


def answer_share(
    stage: RejectStage, context: Context, questions: Questions, reward: Reward, engines: RejectEngines, folder: Path
) -> dict[str, float]:
    """Answer and score this rank's share of the prompts; returns the seconds each part took in this process, and what
    a server was asked."""
    ranks, begun = context.ranks, time.perf_counter()
    engine = recalling(engines.answering, put_aside(context.paths.root, "rollouts*.jsonl"))
    loading = time.perf_counter() - begun
    store = RolloutStore(folder / "rollouts.jsonl")
    num = len(range(ranks.rank, questions.num, ranks.world))
    total = num * stage.rollout.group_size
    progress = Progress(ranks.title(stage.name), total, done=store.num_stored, stream=ranks.stream)
    with progress, GroupFile(folder / GROUPS) as file:
        sampler = Sampler(
            engine=engine, renderer=engines.renderer, rollout=stage.rollout, reward=reward, store=store, file=file,
            earlier=Earlier(put_aside(context.paths.root, GROUPS)).group, scored=engines.forget, tell=progress.update,
        )  # fmt: skip
        sampler.run(islice(questions, ranks.rank, None, ranks.world))
    parts = {"load": loading, "generate": store.seconds, **sampler.seconds}
    seconds = {f"seconds_{part}": round(value, 3) for part, value in parts.items()}
    return seconds | server_counts(engines.answering)


def sort_all(stage: RejectStage, context: Context, save: FunctionSave | None) -> dict[str, float]:
    """From groups.jsonl to the files that are read, and the numbers. Nothing that was written before matters."""
    root, accept = context.paths.root, stage.accept
    counts = RejectCounts(
        group_size=stage.rollout.group_size, max_new_tokens=stage.rollout.max_new_tokens,
        num_logged=stage.num_logged, seed=stage.rollout.seed,
    )  # fmt: skip
    rows: dict[str, int] = {}
    if save is not None:
        sorted_rows = _judged(stage, root, counts)
        save(sorted_rows, root)
        for _ in sorted_rows:  # what the user's function did not take counts all the same
            pass
    else:
        with reject_files(root, accept) as files:
            for group in read_groups(root / GROUPS):
                fates = sort_group(group, accept)
                counts.add(group, fates)
                files.add(group, fates)
        rows = files.rows
    found = account(counts, rows)
    write_json(root / "reject.json", found)
    write_jsonl(root / "reject_samples.jsonl", counts.sampled_rows())
    print(f"{stage.name}: {describe(counts, found)}")
    if found["accept_rate"]["value"] is None:
        raise RunError(
            "no answer has a score", found=describe(counts, found), fix=f"read {root / GROUPS}"
        )  # fmt: skip
    return metrics(counts, found)


def _judged(stage: RejectStage, root: Path, counts: RejectCounts) -> Iterator[Row]:
    for group in read_groups(root / GROUPS):
        fates = sort_group(group, stage.accept)
        counts.add(group, fates)
        yield judged_row(group, fates)
