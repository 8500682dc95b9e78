"""Evaluation during online RL: one completion to every held-out prompt, and what the stage's own reward says of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from whet.config.rollout import Rollout
from whet.data.render import Renderer
from whet.experience.collect import keyed, sampling_of
from whet.rewards.reward import Reward
from whet.rewards.state import on_scale, save_state
from whet.rollout.engine import Engine, answers
from whet.runs.files import read_json, write_json
from whet.schema.records import Prompt


def held_out_reward(
    prompts: Sequence[Prompt], engine: Engine, renderer: Renderer, reward: Reward, rollout: Rollout, *, scale: Path
) -> dict[str, float]:
    """`eval/reward`, its parts, and lengths, drawn as rollouts are and with the same random numbers every time.

    What a reward has seen so far is left as it was: evaluation is no part of its statistics. Where rewards are
    normalised, those of the first evaluation are the scale of all, kept in the file `scale`: on one that follows the
    training a policy that gets better and better would seem to get worse. Completions without a reward are in no mean,
    and their share is `eval/frac_reward_failed`.
    """
    requests = [
        renderer.ask(prompt.messages, prompt.tools, origin=prompt.origin).request(
            f"eval/{key}", sampling_of(rollout), rollout.seed
        )
        for prompt, key in keyed(prompts)
    ]
    completions = answers(engine, requests)
    with on_scale(reward, read_json(scale) if scale.is_file() else None):
        scores = reward.score(prompts, completions)
        seen = save_state(reward)
    # A part that has no spread yet would be measured as it is ever after.
    if seen and not scale.is_file() and all(numbers["num"] > 1 for numbers in seen.values()):
        write_json(scale, seen)
    answered = [completion for completion in completions if completion.finish_reason != "error"]
    known = [score for score in scores if score.value is not None]
    parts: dict[str, list[float]] = {}
    for score in known:
        for name, value in score.parts.items():
            parts.setdefault(f"eval/rewards/{name}/mean", []).append(value)
    measured = {
        "eval/reward": [float(score.value or 0.0) for score in known],
        "eval/frac_reward_failed": [float(score.value is None) for score in scores],
        "eval/completions/mean_length": [float(completion.num_tokens) for completion in answered],
        "eval/completions/clipped_ratio": [float(completion.finish_reason == "length") for completion in answered],
    } | parts
    # The reward, which may name the best checkpoint, is a metric also where none could be had this time.
    return {name: sum(values) / len(values) if values else math.nan for name, values in measured.items()}
