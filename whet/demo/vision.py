"""UnifiedReward-Think's three stages on the picture playground (2505.03318): a small vision-language model learns to
reason about which of two pictures fits a caption better.

    whet demo --vision --seed 1

base -> SFT on a few reasoned judgements (cold start) -> rejection sampling, SFT on what was right -> DPO, right answers
of that model against the first one's wrong ones on the same items; and GRPO on the items that were got wrong. Measured
is the share of held-out items judged right, each asked in both orders, so that a preference for a place shows.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from random import Random
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Column, Table

from whet.config.load import load_plan
from whet.demo.likeness import PREFERENCE, Pair, Row, judgement, picture_question, some_pair
from whet.demo.scenes import Scene, Split, draw
from whet.experience.comparisons import Splitting, compare
from whet.runs.files import write_jsonl, write_text
from whet.runs.layout import RunPaths

BASE = files("whet.demo").joinpath("base_vision")
"""The small base checkpoint that ships; how it was made: `python -m whet.demo.pretrain_vision`."""
NUM_JUDGED, NUM_PROMPTED, NUM_HELD_OUT = 300, 750, 400
"""Items: with a reasoned judgement, with nothing but a verdict, and held out. The last two are asked in both orders."""
NUM_ANSWERED, NUM_QUESTIONS = 150, 200
"""Questions about single pictures: to learn with the judgements, lest seeing be forgotten, and held out."""
PAPER = {"base": (67.5, 70.9), "cold_start": (66.9, 68.6), "refined": (72.1, 72.0), "grpo": (73.8, 72.5)}
"""What the paper's models reach at the same stages, in per cent: VLRewardBench overall, GenAI-Bench images. Its base is
UnifiedReward, which preferences have trained already, without reasoning."""
LEGEND = """\
swap: the same verdict in both orders. first: share of verdicts for the picture
shown first; half is no bias. sees: right answers about single pictures.
paper: VLRewardBench overall / GenAI-Bench images; the base there is
UnifiedReward, trained on preferences without reasoning."""


def write_inputs(folder: Path, seed: int) -> None:
    """The demo's inputs. The folder appears when it is whole: a demo killed before that begins anew."""
    half = folder.with_name(f".{folder.name}.half")
    shutil.rmtree(half, ignore_errors=True)
    fill_inputs(half, seed)
    half.rename(folder)


def fill_inputs(folder: Path, seed: int) -> None:
    """Preferences as a user would bring them, made into the files of the stages by `whet data compare`'s own function;
    and questions about single pictures, which show how well the model sees."""
    items = [item(folder, pair, judged=number < NUM_JUDGED)
             for number, pair in enumerate(pairs("train", NUM_JUDGED + NUM_PROMPTED, seed))]  # fmt: skip
    held_out = [item(folder, pair, judged=False) for pair in pairs("heldout", NUM_HELD_OUT, seed)]
    write_jsonl(folder / "items.jsonl", items)
    write_jsonl(folder / "held_out_items.jsonl", held_out)
    write_text(folder / "question.txt", PREFERENCE + "\n")
    template = str(folder / "question.txt")
    for file, target, share in (("items", "train", 0.0), ("held_out_items", "test", 1.0)):
        splitting = Splitting(held_out=share, template=template, orders="both", seed=seed)
        compare([str(folder / f"{file}.jsonl")], folder / target, splitting)
    write_jsonl(folder / "train/answered.jsonl", questions(folder, "train", NUM_ANSWERED, seed))
    write_jsonl(folder / "test/questions.jsonl", questions(folder, "heldout", NUM_QUESTIONS, seed))


def pairs(split: Split, num: int, seed: int) -> list[Pair]:
    """Different items, of a split."""
    rng, found = Random(f"pairs {split} {seed}"), dict[tuple[str, ...], Pair]()
    while len(found) < num:
        pair = some_pair(rng, split)
        found.setdefault((pair.caption, *sorted(scene.name for scene in pair.scenes)), pair)
    return list(found.values())


def item(folder: Path, pair: Pair, *, judged: bool) -> Row:
    """A line of preference data: caption, pictures, which is better, for some a reasoned judgement."""
    row: Row = {"caption": pair.caption, "images": [picture(folder, scene) for scene in pair.scenes]}
    row |= {"better": pair.better, "distance": pair.distance}
    return row | ({"judgement": judgement(pair)} if judged else {})


def picture(folder: Path, scene: Scene) -> str:
    """The scene's file, drawn where it is not there yet; its path as seen from the folder."""
    name = f"pictures/{hashlib.sha256(scene.name.encode()).hexdigest()[:16]}.png"
    if not (folder / name).exists():
        (folder / "pictures").mkdir(parents=True, exist_ok=True)
        draw(scene).save(folder / name)
    return name


def questions(folder: Path, split: Split, num: int, seed: int) -> list[Row]:
    """What pictures of a split show, and how many of something there are; with the answer where it is to be learnt."""
    rng, rows = Random(f"questions {split} {seed}"), []
    for _ in range(num):
        scene, asked, answer, kind = picture_question(rng, split)
        row: Row = {"images": [f"../{picture(folder, scene)}"]}
        turns = [{"role": "user", "content": f"<image>\n{asked}"}]
        if split == "train":
            row["messages"] = [*turns, {"role": "assistant", "content": answer}]
        else:
            row |= {"messages": turns, "reference": answer, "task": kind}
        rows.append(row)
    return rows


REWARD = {
    "type": "composite",
    "parts": [
        {"name": "format", "reward": {"type": "tags", "tags": ["think", "answer"]}},
        {"name": "accuracy", "reward": {"type": "verdict"}},
    ],
}
"""Upstream's rewards for GRPO: 1 for the form, 1 for the verdict."""


def vision_plan(run: Path, seed: int) -> dict[str, Any]:
    """The demo as a plan, in the words of a plan file."""
    folder = RunPaths(run).inputs
    learnt = [str(folder / "train/cold_start.jsonl"), str(folder / "train/answered.jsonl")]
    sampling = {"max_new_tokens": 80, "temperature": 1.0, "top_p": 1.0, "batch_size": 128}
    cold_start = {
        "kind": "sft",
        "name": "cold_start",
        "data": {"files": learnt},
        "train": {"batch_size": 16, "epochs": 6, "learning_rate": 2e-3, "warmup_ratio": 0.05},
    }
    reject = {
        "kind": "reject",
        "data": {"files": [str(folder / "train/prompts.jsonl")]},
        "rollout": {"group_size": 1, **sampling},
        "reward": {"type": "verdict"},
        "accept": {"together": "item"},
    }
    refined = {
        "kind": "sft",
        "name": "refined",
        "data": {"files": ["@reject/accepted.jsonl", *learnt]},
        "train": {"batch_size": 32, "epochs": 2, "learning_rate": 5e-4, "warmup_ratio": 0.05},
    }
    pair = {
        "kind": "pair",
        "chosen": ["@again/accepted.jsonl"],
        "rejected": ["@reject/rejected.jsonl"],
    }
    dpo = {
        "kind": "dpo",
        "data": {"files": ["@pair/preference.jsonl"]},
        # Right and wrong say nearly the same: without the likelihood of the right ones (2404.19733) both lose it.
        "objective": {"type": "sigmoid", "beta": 0.1, "nll_weight": 1.0},
        "train": {"batch_size": 32, "epochs": 1, "learning_rate": 5e-6, "warmup_ratio": 0.1},
    }
    grpo = {
        "kind": "grpo",
        "start": "refined",
        "data": {"files": ["@reject/unsolved.jsonl"]},
        "rollout": {"group_size": 8, "max_new_tokens": 80, "batch_size": 128},
        "reward": REWARD,
        "objective": {"type": "grpo", "kl_weight": 0.0},
        "train": {"batch_size": 16, "max_steps": 180, "learning_rate": 1e-4},
    }
    evaluate = {
        "kind": "evaluate",
        "models": ["base", "cold_start", "refined", "dpo", "grpo"],
        "tasks": [
            {
                "type": "verdict", "name": "pairs", "data": {"files": [str(folder / "test/held_out.jsonl")]},
                "by": "distance", "max_new_tokens": 80, "batch_size": 128,
            },
            {
                "type": "exact", "name": "seeing", "data": {"files": [str(folder / "test/questions.jsonl")]},
                "by": "task", "max_new_tokens": 24, "batch_size": 128,
            },
        ],
    }  # fmt: skip
    return {
        "run": str(run),
        "seed": seed,
        "model": {"path": str(BASE), "lora": None},  # words it has never written need their embeddings trained
        "stages": [cold_start, reject, refined, {**reject, "name": "again"}, pair, dpo, grpo, evaluate],
    }


def run_vision(run: Path, seed: int, overrides: Sequence[str] = ()) -> None:
    """Write the inputs, run the plan, print the table and write the report."""
    from whet.report.page import write_report
    from whet.stages.pipeline import run_plan

    plan = load_plan(vision_plan(run, seed), overrides)
    folder = RunPaths(Path(plan.run)).inputs
    if not folder.exists():
        write_inputs(folder, seed)
    print_table(run_plan(plan))
    print(f"report: {write_report(Path(plan.run))}")


def print_table(summary: dict[str, Any]) -> None:
    """Stage by stage: items judged right, what the order decides, and the paper's numbers beside them."""
    values = {(m["stage"], m["task"], m["metric"]): m for m in summary["evaluation"]}
    models = list(dict.fromkeys(stage for stage, *_ in values))
    num = values[models[0], "pairs", "accuracy"]["num"]
    headings = ("model", "right", "swap", "first", "readable", "sees", "paper")
    table = Table(
        *(Column(heading, no_wrap=True) for heading in headings),
        title=f"{num} held-out pairs, each in both orders, 95 % intervals", title_justify="left",
        box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True,
    )  # fmt: skip
    for model in models:
        found = [values.get((model, "pairs", metric)) for metric in ("accuracy", "consistency", "first", "readable")]
        found.append(values.get((model, "seeing", "accuracy")))
        right, *others = [f"{m['value']:.3f}" if m else "-" for m in found]
        spread = f"{right} [{found[0]['low']:.3f}, {found[0]['high']:.3f}]" if found[0] else right
        paper = " / ".join(f"{number:.1f}" for number in PAPER[model]) if model in PAPER else "-"
        table.add_row(model, spread, *others, paper)
    console = Console()
    console.print(table)
    console.print(f"\n{LEGEND}", highlight=False)
