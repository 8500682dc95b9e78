"""The process beside verl that scores: whet's reward over a pair of pipes.

    in    {"number": 7, "completion": "... 5", "reference": "5", "extra": {...}, "router": "10.0.0.1:8000" or null}
    out   {"ready": true}, then {"number": 7, "value": 1.0, "parts": {}, "error": null}

What has come in by the time a call ends is scored by the next one together: a judge is asked about all at once. The
other end is `reward_function`, in verl's environment.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from whet.config.engine import Http
from whet.config.judge import PointwiseForm
from whet.config.rewards import RewardModel
from whet.data.render import Renderer
from whet.errors import UserError
from whet.launch.verl.prompt import prompt_of
from whet.launch.verl.spec import Spec
from whet.rewards.build import RewardSetting, build_reward
from whet.rewards.reward import Reward
from whet.rollout.engine import Engine
from whet.rollout.http import http_engine
from whet.schema.artifacts import ModelRef
from whet.schema.records import Prompt
from whet.schema.rollouts import Completion, Score

MOST = 1024
"""Completions that are scored together."""


def main() -> None:
    """Serve until the other end closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    lines, replies = os.fdopen(os.dup(0), encoding="utf-8"), os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever prints does not speak to verl
    try:
        scoring = Scoring(Spec.read(Path(sys.argv[1])))
        scoring.check()
    except UserError as error:
        _tell(replies, {"problem": str(error)})
        return
    _tell(replies, {"ready": True})
    asked: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(lines, asked), daemon=True).start()
    while batch := _batch(asked):
        for request, score in zip(batch, scoring.scores(batch), strict=True):
            _tell(
                replies,
                {
                    "number": request["number"], "value": score.value, "parts": dict(score.parts),
                    "error": score.error,
                },
            )  # fmt: skip
    os._exit(0)  # the reader may still wait for a line


class Scoring:
    """The reward of a spec, one for each router that serves its model; there is hardly ever a second."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self._rewards: dict[str | None, Reward] = {}

    def check(self) -> None:
        """Build a reward that needs no router at once, so that what is missing is said before training."""
        if self.spec.served is None:
            self.reward(None)

    def scores(self, requests: Sequence[Mapping[str, Any]]) -> list[Score]:
        """One score a request, in order."""
        found: dict[int, Score] = {}
        for router in dict.fromkeys(request["router"] for request in requests):
            places = [place for place, request in enumerate(requests) if request["router"] == router]
            prompts = [_prompt(requests[place]) for place in places]
            completions = [_completion(requests[place]) for place in places]
            found |= dict(zip(places, self.reward(router).score(prompts, completions), strict=True))
        return [found[place] for place in range(len(requests))]

    def reward(self, router: str | None) -> Reward:
        """Raises ConfigError or ModelError where something that it needs is not there."""
        if router not in self._rewards:
            setting = RewardSetting(
                max_new_tokens=self.spec.max_new_tokens,
                judge=lambda judge: self._judge(judge, router),
                served=lambda config: self._served(config, router),
            )
            self._rewards[router] = build_reward(self.spec.reward, setting=setting)
        return self._rewards[router]

    def _judge(self, judge: PointwiseForm, router: str | None) -> tuple[Engine, Renderer]:
        engine = judge.engine
        if not isinstance(engine, Http):
            engine = Http(urls=(f"http://{_known(router)}/v1",), model=judge.model, concurrency=256)
        from whet.stages.rendering import renderer_of  # torch

        return http_engine(engine), renderer_of(ModelRef(path=judge.model), self.spec.model)

    def _served(self, config: RewardModel, router: str | None) -> Reward:
        from whet.launch.verl.classify import ServedReward
        from whet.stages.rendering import renderer_of  # torch

        renderer = renderer_of(ModelRef(path=config.path), self.spec.model.model_copy(update={"chat_template": None}))
        return ServedReward(
            url=f"http://{_known(router)}", model=config.path, engine=self.spec.engine, renderer=renderer
        )


def _known(router: str | None) -> str:
    if router is None:
        raise UserError("verl serves no model, and the reward asks one", field="reward.reward_model.enable")
    return router


def _prompt(request: Mapping[str, Any]) -> Prompt:
    return prompt_of({"reward_model": {"ground_truth": request["reference"]}, "extra_info": request["extra"]})


def _completion(request: Mapping[str, Any]) -> Completion:
    return Completion(
        key=f"verl/{request['number']}", ids=(), text=request["completion"], logprobs=(), finish_reason="stop"
    )


def _read(lines: IO[str], asked: queue.SimpleQueue[dict[str, Any] | None]) -> None:
    for line in lines:
        asked.put(json.loads(line))
    asked.put(None)


def _batch(asked: queue.SimpleQueue[dict[str, Any] | None]) -> list[dict[str, Any]]:
    """Everything that waits, at least one; nothing once the other end has closed."""
    first = asked.get()
    batch = [] if first is None else [first]
    while batch and len(batch) < MOST:
        try:
            request = asked.get_nowait()
        except queue.Empty:
            break
        if request is None:
            asked.put(None)
            break
        batch.append(request)
    return batch


def _tell(replies: IO[str], said: Mapping[str, Any]) -> None:
    replies.write(json.dumps(said) + "\n")
    replies.flush()


if __name__ == "__main__":
    main()
