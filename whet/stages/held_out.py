"""Evaluation during online RL: one completion to every held-out prompt, and what the stage's own reward says of it."""

from __future__ import annotations

from collections.abc import Sequence

from whet.config.rollout import Rollout
from whet.data.render import Renderer
from whet.experience.collect import keyed, sampling_of
from whet.rewards.reward import Reward
from whet.rewards.state import load_state, save_state
from whet.rollout.engine import Engine, answers
from whet.schema.records import Prompt


def held_out_reward(
    prompts: Sequence[Prompt], engine: Engine, renderer: Renderer, reward: Reward, rollout: Rollout
) -> dict[str, float]:
    """`eval/reward`, its parts, and lengths, drawn as rollouts are and with the same random numbers every time.

    What a reward has seen so far is left as it was: evaluation is no part of its statistics. Completions without a
    reward are in no mean, and their share is `eval/frac_reward_failed`.
    """
    requests = [
        renderer.ask(prompt.messages, prompt.tools, origin=prompt.origin).request(
            f"eval/{key}", sampling_of(rollout), rollout.seed
        )
        for prompt, key in keyed(prompts)
    ]
    completions = answers(engine, requests)
    before = save_state(reward)
    scores = reward.score(prompts, completions)
    load_state(reward, before)
    known = [score for score in scores if score.value is not None]
    parts: dict[str, list[float]] = {}
    for score in known:
        for name, value in score.parts.items():
            parts.setdefault(f"eval/rewards/{name}/mean", []).append(value)
    measured = {
        "eval/reward": [float(score.value or 0.0) for score in known],
        "eval/frac_reward_failed": [float(score.value is None) for score in scores],
        "eval/completions/mean_length": [float(completion.num_tokens) for completion in completions],
        "eval/completions/clipped_ratio": [float(completion.finish_reason == "length") for completion in completions],
    } | parts
    return {name: sum(values) / len(values) for name, values in measured.items() if values}
