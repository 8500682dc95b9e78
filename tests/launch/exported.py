"""Plans to export, and what the tests of exports share."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from whet.config.plan import Plan
from whet.config.verl import Verl, verl_options
from whet.demo.plan import BASE
from whet.launch.verl.export import OVERRIDES, export_plan

REWARDS: dict[str, dict[str, Any]] = {
    "rule": {"type": "numeric"},
    "model": {"type": "model", "path": str(BASE)},
    "judge": {"type": "judge", "votes": 1, "max_new_tokens": 64},
}
"""A reward model here is a checkpoint's folder: nothing but its tokenizer is ever loaded."""


def sums(path: Path, num: int = 120) -> Path:
    """Rows as GSM8K has them."""
    rows = [
        {"question": f"Tom has {n} apples and gets {m}. How many has he?", "answer": f"{n}+{m}\n#### {n + m}"}
        for n, m in ((n, n % 7) for n in range(num))
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def plan_of(
    folder: Path, kind: str, *, reward: Mapping[str, Any] | None = None, lora: bool = False, **sections: Any
) -> Plan:
    """One stage on a file of sums; sections are the stage's own, laid over small ones."""
    stage: dict[str, Any] = {
        "kind": kind,
        "data": {"files": [str(sums(folder / "sums.jsonl"))], "eval_fraction": 0.1, "max_length": 256},
        "rollout": {"group_size": 4, "max_new_tokens": 32},
        "reward": dict(reward or REWARDS["rule"]),
        "train": {"batch_size": 16},
    }
    if kind == "ppo":
        stage["value"] = {"type": "model"}
    for name, section in sections.items():
        stage[name] = {**stage.get(name, {}), **section}
    model = {"path": str(BASE), "lora": {"rank": 8, "alpha": 16} if lora else None}
    return Plan.load({"run": str(folder / "run"), "model": model, "stages": [stage]})


def exported(plan: Plan, out: Path, options: Sequence[str] = ()) -> dict[str, str]:
    """Export; the overrides as they are written."""
    export_plan(plan, verl_options(options) if options else Verl(), out)
    return overrides(out)


def overrides(out: Path) -> dict[str, str]:
    lines = (out / OVERRIDES).read_text(encoding="utf-8").splitlines()
    return {key: value for key, _, value in (line.partition("=") for line in lines)}
