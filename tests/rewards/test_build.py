"""Every kind of reward section becomes a reward, by the keys of a plan."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import TypeAdapter
from transformers import AutoTokenizer

from tests.rewards.made import completion, prompt, value
from whet.config.base import Section
from whet.config.catalogue import sections
from whet.config.judge import PointwiseForm
from whet.config.node import Node, plain
from whet.config.override import apply_overrides
from whet.config.rewards import Composite, Custom, Judged, Reward
from whet.config.rules import Numeric, Overlong
from whet.data.render import Renderer
from whet.errors import ConfigError
from whet.rewards.build import RewardSetting, build_reward
from whet.rewards.judged import JudgedReward
from whet.rewards.normalise import NormalisedReward
from whet.schema.rollouts import Completion, Request


def parse(section: dict[str, Any]) -> Any:
    return TypeAdapter(Reward).validate_python(section)


PLAIN: dict[str, dict[str, Any]] = {
    "exact": {}, "contains": {}, "numeric": {}, "math": {}, "verdict": {}, "regex": {"pattern": "a"}, "tags": {},
    "json_schema": {"definition": {"type": "array"}}, "length": {"budget": 5}, "overlong": {"max_tokens": 9},
    "repetition": {}, "custom": {"path": "whet.rewards.rules:last_number"}, "http": {"url": "http://127.0.0.1:9"},
}  # fmt: skip
NEEDS = {"math": "math_verify", "json_schema": "jsonschema"}


@pytest.mark.parametrize("kind", PLAIN)
def test_every_kind_is_built(kind: str) -> None:
    if kind in NEEDS:
        pytest.importorskip(NEEDS[kind])
    assert build_reward(parse({"type": kind} | PLAIN[kind])).score([], []) == []


def test_no_kind_is_forgotten() -> None:
    kinds = {model.model_fields["type"].default for model in get_args(get_args(Reward)[0])}
    assert kinds == {*PLAIN, "model", "judge", "composite"}


def test_the_keys_of_a_command_line() -> None:
    root = apply_overrides(Node({"reward": Node({}, "plan", None, "reward")}, "plan", None, ""),
        ["reward.type=custom", "reward.path=FILE.py:f"], kind="grpo",
    )  # fmt: skip
    assert parse(plain(root)["reward"]) == Custom(path="FILE.py:f")


def test_a_composite_of_a_plan() -> None:
    config = parse(
        {
            "type": "composite",
            "parts": [
                {"name": "right", "reward": {"type": "numeric"}},
                {"name": "short", "reward": {"type": "overlong"}, "weight": 0.5},
            ],
        }
    )
    reward = build_reward(config, setting=RewardSetting(max_new_tokens=10))
    (score,) = reward.score([prompt("5")], [completion("5", ids=tuple(range(10)))])
    assert score.value == 1.0 - 0.5 and score.parts == {"right": 1.0, "short": -1.0}
    with pytest.raises(ConfigError, match="is required here"):
        build_reward(Overlong())


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"type": "length"}, "either a target or a budget"),
        ({"type": "length", "target": 1, "budget": 1}, "either a target or a budget"),
        ({"type": "json_schema"}, "give the schema as definition"),
        ({"type": "tags", "tags": ["a", "a"]}, "named once only"),
        ({"type": "tags", "tags": ["<a>"]}, "tags"),
        ({"type": "http", "url": "file:///etc/passwd"}, "url"),
        ({"type": "custom"}, "path"),
        ({"type": "composite", "parts": []}, "parts"),
        ({"type": "composite", "parts": [{"name": "a", "reward": {"type": "exact"}}] * 2}, "same name"),
        ({"type": "composite", "parts": [{"name": "a", "reward": {"type": "composite", "parts": []}}]}, "composite"),
        ({"type": "composite", "parts": [{"name": "a", "reward": {"type": "exact"}, "clip": [1, 0]}]}, "lower bound"),
        (
            {"type": "composite", "parts": [
                {"name": "a", "reward": {"type": "model", "path": "m", "normalise": "running"}}]},
            "set normalise on the part",
        ),
        ({"type": "best"}, "best"),
    ],
)  # fmt: skip
def test_impossible_sections_are_refused(section: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse(section)


def test_every_field_says_what_it_is() -> None:
    models: list[type[Section]] = [*sections(Reward), *sections(Composite.model_fields["parts"].annotation)]
    for model in models:
        assert model.__doc__
        for name, field in model.model_fields.items():
            assert field.description or name == "type", f"{model.__name__}.{name}"


class Echo:
    """An engine whose judge counts the tokens of what it is asked."""

    batched = True

    def generate(self, requests: Sequence[Request]) -> Iterator[Completion]:
        for request in requests:
            yield Completion(
                key=request.key, ids=(1,), text="Score: 4" if "judge0" in request.key else "Score: 2", logprobs=(0.0,),
                finish_reason="stop",
            )  # fmt: skip

    def close(self) -> None:
        pass


def test_a_judge(tiny_checkpoint: Path) -> None:
    asked = []

    def judge(config: PointwiseForm) -> tuple[Echo, Renderer]:
        asked.append(config.model)
        return Echo(), Renderer(AutoTokenizer.from_pretrained(tiny_checkpoint))

    reward = build_reward(Judged(votes=2, model="base"), setting=RewardSetting(judge=judge))
    assert isinstance(reward, JudgedReward) and asked == ["base"]
    scores = reward.score([prompt()] * 3, [completion("5"), completion("", error="too long"), completion("6")])
    assert [score.value for score in scores] == [3.0, None, 3.0]
    assert scores[0].votes == ("Score: 4", "Score: 2")
    with pytest.raises(ConfigError, match=r"reward\.type: has no model to judge with here"):
        build_reward(Judged())


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for kind, extra in (("math", "math"), ("json_schema", "json")):
        with pytest.raises(ConfigError, match=rf"needs the package .*whet\[{extra}\]"):
            build_reward(parse({"type": kind} | PLAIN[kind]))


def test_without_a_setting() -> None:
    reward = build_reward(Numeric())
    assert value(reward, "5", "5") == 1.0 and not isinstance(reward, NormalisedReward)
