"""A run directory such as a self-rewarding pipeline leaves, with realistic numbers, without running one."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import yaml

PLAN = {
    "run": "runs/playground",
    "model": {"path": "whet/demo/base", "lora": {"rank": 16, "alpha": 32.0}},
    "stages": [
        {"kind": "sft", "name": "sft", "train": {"learning_rate": 1e-3}, "objective": {"type": "nll"}},
        {"kind": "prepare", "name": "prepare"},
        {"kind": "dpo", "name": "dpo", "objective": {"type": "sigmoid", "beta": 0.1}},
        {"kind": "evaluate", "name": "evaluate", "models": ["base", "sft", "dpo"]},
    ],
}
NASTY = "</pre><script>console.error('escaped nothing')</script><img src=x onerror=alert(1)>"


def write(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def write_lines(path: Path, rows: list) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def status(folder: Path, name: str, kind: str, seconds: float, state: str = "done", **metrics: float) -> None:
    write(folder / "status.json", {"name": name, "kind": kind, "status": state, "seconds": seconds, "metrics": metrics})
    stage = next(stage for stage in PLAN["stages"] if stage["name"] == name)
    (folder / "config.yaml").write_text(yaml.safe_dump(stage))


def ledger(read: int, dropped: dict, truncated: int = 0) -> dict:
    lost = {
        reason: {"count": count, "lines": {"data/demonstrations.jsonl": lines}, "example": f"line {lines[:3]} {reason}"}
        for reason, (count, lines) in dropped.items()
    }
    cut = {
        "count": truncated,
        "lines": {"data/demonstrations.jsonl": ",".join(map(str, range(5, 5 + 7 * truncated, 7)))},
    }
    return {
        "read": read,
        "kept": read - sum(count for count, _ in dropped.values()),
        "truncated": cut,
        "dropped": lost,
        "formats": {"data/demonstrations.jsonl": "alpaca"},
        "notes": [],
    }


def training_row(rng: random.Random, step: int, total: int, loss: float, peak: float) -> dict:
    warm = min(1.0, step / (0.1 * total))
    return {
        "step": step,
        "epoch": round(3 * step / total, 3),
        "loss": loss,
        "learning_rate": peak * warm * 0.5 * (1 + math.cos(math.pi * step / total)),
        "grad_norm": 0.6 + 1.8 * math.exp(-6 * step / total) + abs(rng.gauss(0, 0.12)),
        "tokens": rng.randint(1700, 2300),
        "samples": 32,
        "step_seconds": 0.11 + abs(rng.gauss(0, 0.01)),
        "peak_memory_bytes": 610_000_000 + 40_000 * step,
    }


def sft_stage(folder: Path) -> None:
    rng, total, rows = random.Random(1), 240, []
    for step in range(0, total + 1):
        if step:
            loss = 0.82 + 1.5 * math.exp(-5 * step / total) + rng.gauss(0, 0.05)
            rows.append(training_row(rng, step, total, loss, 1e-3))
        if step % 40 == 0:
            held_out = 0.86 + 1.5 * math.exp(-5 * step / total)
            watched = 0.35 * (1 - math.exp(-4 * step / total))
            rows.append({"step": step, "epoch": step / 80, "eval/loss": held_out, "watch/exact/accuracy": watched})
    status(folder, "sft", "sft", 31.2, loss=0.83, kept_step=240.0, tokens=480_000.0)
    write_lines(folder / "metrics.jsonl", rows)
    dropped = {"has an empty answer": (7, "12,40-43,88,91"), "is longer than max_length in its prompt": (2, "104,377")}
    write(folder / "data.json", {"train": ledger(4009, dropped, 31), "eval": ledger(200, {})})


def dpo_stage(folder: Path) -> None:
    rng, total, rows = random.Random(2), 90, []
    for step in range(0, total + 1):
        done = step / total
        if step:
            margin = 2.2 * (1 - math.exp(-3 * done)) + rng.gauss(0, 0.12)
            row = training_row(rng, step, total, math.log1p(math.exp(-margin)) + abs(rng.gauss(0, 0.02)), 5e-5)
            chosen = 0.5 * done + rng.gauss(0, 0.06)
            row |= {"rewards/chosen": chosen, "rewards/rejected": chosen - margin, "rewards/margins": margin}
            row |= {"rewards/accuracies": min(1.0, max(0.0, 0.55 + 0.4 * done + rng.gauss(0, 0.06)))}
            row |= {
                "logps/chosen": -14 + 3 * done + rng.gauss(0, 0.5),
                "logps/rejected": -16 - 14 * done + rng.gauss(0, 0.7),
            }
            rows.append(row)
        if step % 15 == 0:
            point = {"step": step, "epoch": 3 * done, "eval/loss": 0.693 - 0.3 * done + 0.22 * done**3}
            point |= {"eval/rewards/accuracies": 0.5 + 0.32 * (1 - math.exp(-4 * done))}
            rows.append(point | {"watch/exact/accuracy": 0.36 + 0.27 * math.sin(1.9 * done)})
    status(folder, "dpo", "dpo", 14.8, loss=0.16, kept_step=75.0, **{"rewards/accuracies": 0.94})
    write_lines(folder / "metrics.jsonl", rows)
    write(folder / "data.json", {"train": ledger(366, {}), "eval": ledger(29, {})})


def measures(model: str, accuracy: float, greedy: float, perplexity: float) -> list[dict]:
    found = []
    for task, value in (("sampled", accuracy), ("greedy", greedy)):
        groups = {"accuracy": 0.0, "accuracy/sort": 0.08, "accuracy/count": -0.05, "accuracy/words": -0.03}
        for metric, shift in groups.items():
            here, num = min(1.0, max(0.0, value + shift)), 600 if metric == "accuracy" else 200
            half = 1.96 * math.sqrt(max(here * (1 - here), 0.002) / num)
            numbers = {"value": here, "low": max(0.0, here - half), "high": min(1.0, here + half), "num": num}
            found.append({"stage": model, "task": task, "metric": metric, **numbers})
    interval = {"value": perplexity, "low": perplexity * 0.96, "high": perplexity * 1.04, "num": 200}
    return [*found, {"stage": model, "task": "perplexity", "metric": "perplexity", **interval}]


def evaluate_stage(folder: Path) -> None:
    rng = random.Random(3)
    table = {"base": (0.02, 0.01, 9.41), "sft": (0.362, 0.134, 2.36), "dpo": (0.608, 0.846, 2.61)}
    write(folder / "evaluation.json", [row for name, numbers in table.items() for row in measures(name, *numbers)])
    samples = []
    for number in range(20):
        words = rng.sample(["plum", "apple", "fig", "melon", "kiwi", "lime", "pear"], 4)
        gold = ", ".join(sorted(words))
        for model, (_, chance, _) in table.items():
            right = rng.random() < chance
            text = gold if right else ", ".join(words) + (" and so on " * 30 if number == 3 else "")
            samples.append({
                "model": model, "task": "greedy", "key": f"heldout.jsonl:{number + 1}",
                "prompt": f"Write these words in alphabetical order, with commas between them: {' '.join(words)}",
                "completion": NASTY if number == 5 and model == "sft" else text,
                "reference": gold, "score": float(right),
            })  # fmt: skip
    write_lines(folder / "samples.jsonl", samples)
    status(folder, "evaluate", "evaluate", 22.9, replies=3600, replies_cut=12)
    write(folder / "data.json", {"sampled": ledger(600, {}), "greedy": ledger(600, {}), "perplexity": ledger(200, {})})


def prepare_stage(folder: Path) -> None:
    rng = random.Random(4)
    metrics = {"num_prompts": 400.0, "num_candidates": 2400.0, "num_pairs": 366.0, "parse_failure_rate": 0.021}
    metrics |= {"unscored_rate": 0.004, "tie_rate": 0.062, "cut_rate": 0.013, "mean_score": 2.61, "mean_length": 22.4}
    metrics |= {"agreement": 0.842, "agreement_num": 2391.0, "agreement_same_prompt": 0.817, "accuracy": 0.357}
    metrics |= {"pair_accuracy": 0.91, "pair_accuracy_num": 290.0, "chosen_length_ratio": 1.04}
    status(folder, "prepare", "prepare", 63.5, **metrics)
    outcomes = {"total": 400, "kept": 366, "ties": 25, "identical": 8, "one_candidate": 1, "no_score": 0, "empty": 0}
    write(folder / "pairs.json", outcomes | {"below_margin": 0})
    scores = [91, 104, 213, 251, 322, 389, 344, 301, 214, 162]
    write(folder / "histograms.json", {
        "score": {"edges": [0.5 * n for n in range(11)], "counts": scores},
        "candidates": {"edges": list(range(8)), "counts": [0, 1, 2, 4, 11, 44, 338]},
    })  # fmt: skip
    groups = []
    for number in range(10):
        texts = [f"plum, apple, fig no. {number}.{n}" for n in range(6)]
        marks = [round(rng.uniform(0, 5) * 2) / 2 for _ in texts]
        best, worst = marks.index(max(marks)), marks.index(min(marks))
        candidates = [
            {"response": text, "score": mark, "judge_output": f"Sorted? yes. Commas? no. Score: {mark:g}"}
            for text, mark in zip(texts, marks, strict=True)
        ]
        row = {
            "instruction": f"Write these words in alphabetical order: fig plum apple ({number})",
            "candidates": candidates,
        }
        row |= {
            "chosen": texts[best],
            "rejected": texts[worst],
            "chosen_score": marks[best],
            "rejected_score": marks[worst],
        }
        if number == 7:
            row |= {"chosen": None, "rejected": None, "dropped": "ties"}
            candidates[0] |= {"response": NASTY, "score": None}
        groups.append(row)
    write_lines(folder / "self_reward_samples.jsonl", groups)
    write(folder / "data.json", ledger(400, {}))


def build_run(root: Path) -> Path:
    """A run with every stage done."""
    stages = root / "stages"
    for number, (name, build) in enumerate(
        (("sft", sft_stage), ("prepare", prepare_stage), ("dpo", dpo_stage), ("evaluate", evaluate_stage)), start=1
    ):
        folder = stages / f"{number:02d}-{name}"
        folder.mkdir(parents=True)
        build(folder)
    (root / "plan.yaml").write_text(yaml.safe_dump(PLAN, sort_keys=False))
    packages = {"whet": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0", "peft": "0.21.0", "accelerate": None}
    environment = {"created": "2026-11-21T09:14:03+00:00", "command": ["whet", "demo"], "python": "3.11.9"}
    environment |= {
        "platform": "Linux-6.1-x86_64",
        "processor": "Xeon",
        "cpus": 2,
        "commit": "a5ae396",
        "packages": packages,
    }
    write(root / "environment.json", environment)
    return root
