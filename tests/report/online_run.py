"""A run of online RL such as `whet` leaves, with numbers of healthy stages, without running one."""

from __future__ import annotations

from pathlib import Path

import yaml

from tests.report.playground import NASTY, write, write_lines

PLAN = {
    "run": "runs/online",
    "model": {"path": "whet/demo/base", "lora": None},
    "stages": [{"kind": "grpo", "name": "grpo"}, {"kind": "ppo", "name": "ppo"}],
}
PASSES = 2
"""Steps a round of the made-up PPO."""


def step_row(step: int) -> dict:
    moved = 0.0 if step % PASSES else 0.002
    return {
        "step": step, "epoch": step / 10, "loss": 0.01, "learning_rate": 1e-5, "grad_norm": 0.4, "tokens": 900,
        "samples": 32, "step_seconds": 2.0, "peak_memory_bytes": None, "policy/approxkl_avg": moved,
        "clip_ratio/low_mean": 0.01, "clip_ratio/high_mean": 0.02, "clip_ratio/region_mean": 0.03,
        "policy_ratio": 1.0 + moved, "entropy": 1.2 - 0.01 * step,
    }  # fmt: skip


def round_row(step: int, **more: float) -> dict:
    """What the first step of a round has besides."""
    return {
        "reward": 0.2 + 0.02 * step, "reward_std": 0.3, "frac_reward_zero_std": 0.25, "frac_reward_failed": 0.0,
        "completions/mean_length": 80.0, "completions/clipped_ratio": 0.05, "left_out_prompts": 0.0,
        "seconds/generate": 0.7, "seconds/score": 0.1, **more,
    }  # fmt: skip


def evaluation_row(step: int, truth: float) -> dict:
    return {
        "step": step, "epoch": step / 10, "eval/reward": 0.2 + 0.02 * step, "eval/frac_reward_failed": 0.0,
        "eval/completions/mean_length": 82.0, "eval/rewards/right/mean": 0.1, "watch/maths/accuracy": truth,
        "watch/maths/accuracy/sums": truth, "watch/text/perplexity": 9.0 - 0.1 * step,
    }  # fmt: skip


def completion(number: int, place: int, sample: int, **changed: object) -> dict:
    step = 1 + PASSES * number
    row = {
        "step": step, "round": number, "key": f"{number}/p{place}#{sample}", "prompt": f"What is {place} + 1?",
        "completion": f"It is {place + sample}.", "num_tokens": 5 + sample, "finish_reason": "stop",
        "reward": float(sample == 1), "parts": {"right": float(sample == 1), "short": 0.5},
        "advantage": 1.5 if sample == 1 else -0.5, "error": None,
    }  # fmt: skip
    return row | changed


def completions(rounds: int, prompts: int = 6, samples: int = 4) -> list[dict]:
    return [completion(n, p, s) for n in range(rounds) for p in range(prompts) for s in range(samples)]


def stage(root: Path, number: int, kind: str, rows: list[dict], said: list[dict], **config: object) -> None:
    folder = root / "stages" / f"{number:02d}-{kind}"
    write(folder / "status.json", {"name": kind, "kind": kind, "status": "done", "seconds": 40.0, "metrics": {}})
    (folder / "config.yaml").write_text(yaml.safe_dump({"rollout": {"group_size": 4, "max_new_tokens": 100}, **config}))
    write_lines(folder / "metrics.jsonl", rows)
    write_lines(folder / "completions.jsonl", said)


def grpo_rows(num: int = 20) -> list[dict]:
    parts = {"rewards/right/mean": 0.1, "rewards/short/mean": 0.5}
    steps = [step_row(step) | {"policy/approxkl_avg": 0.0, "kl": 0.001 * step} for step in range(1, num + 1)]
    rows = [row | round_row(row["step"]) | parts for row in steps]
    return [evaluation_row(0, 0.2), *rows[:10], evaluation_row(10, 0.4), *rows[10:], evaluation_row(20, 0.5)]


def ppo_rows(num: int = 24) -> list[dict]:
    rows = []
    for step in range(1, num + 1):
        row = step_row(step) | {"loss/value_avg": 1 / step, "val/mean": 0.3, "val/clipfrac_avg": 0.0}
        if step % PASSES == 1:
            row |= round_row(step, **{"objective/kl": 0.1 * step, "val/explained_variance": 0.5})
        rows.append(row)
    return rows


def build_online_run(root: Path) -> Path:
    said = completions(20)
    said[-1] |= {"completion": NASTY, "prompt": NASTY, "reward": None, "advantage": None, "error": NASTY}
    stage(root, 1, "grpo", grpo_rows(), said, objective={"type": "grpo"})
    stage(root, 2, "ppo", ppo_rows(), completions(12, prompts=2), objective={"type": "ppo"})
    (root / "plan.yaml").write_text(yaml.safe_dump(PLAN, sort_keys=False))
    return root
