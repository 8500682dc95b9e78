"""`whet explain` answers for every key there is, and guesses what was meant."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Literal

import pytest

from whet.config import catalogue
from whet.config.base import Section
from whet.config.catalogue import ELSEWHERE, entries, paths, sections, suggest
from whet.config.explain import explain, known_keys
from whet.config.rewards import Reward
from whet.config.rules import Exact
from whet.config.stage import Stage
from whet.errors import ConfigError


class Rewarded(Section):
    """A stage with a reward."""

    kind: Literal["rewarded"] = "rewarded"
    reward: Reward = Exact()


@pytest.fixture
def rewarded(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Plans may have a stage with a reward."""
    entries.cache_clear()
    monkeypatch.setattr(catalogue, "Stage", Stage | Rewarded)
    yield
    monkeypatch.undo()
    entries.cache_clear()


def test_a_key_with_its_defaults_by_kind() -> None:
    text = explain("train.learning_rate")
    assert "number, greater than 0" in text
    assert "0.0001 (sft; reward)" in text and "5e-06 (dpo; kto; reward_weighted; soft_preference)" in text
    assert "stages: sft, dpo" in text


def test_a_key_of_one_type_says_which() -> None:
    assert "type: sigmoid" in explain("objective.beta")
    assert "2310.12036" in explain("objective"), "a section with types says what each one is"


def test_a_section_lists_its_keys() -> None:
    text = explain("model.lora")
    for key in ("rank", "alpha", "dropout", "targets"):
        assert f"\n  {key} " in text
    assert "section or null" in text


def test_every_key_is_explained() -> None:
    for key in known_keys():
        assert explain(key).splitlines()[0].startswith(key)


def test_the_list_of_everything_names_every_plain_key() -> None:
    text = explain()
    repeated = (
        "watch.", "tasks.data.", "tasks.judge.", "tasks.checker.", "data.eval_files.", "objective.parts.objective.",
        "reward.parts.reward.", "engine.", "judge.engine.", "reward.engine.", "source.rollout.", "exclude.", "seen.",
    )  # fmt: skip
    for path in paths():
        assert path in text or path.startswith(repeated)


def test_every_field_says_what_it_is() -> None:
    silent = {entry.path for entry in entries() if not entry.info.description and not sections(entry.info.annotation)}
    assert {path for path in silent if not path.endswith(".type")} == set()


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("lora.rank", "model.lora.rank"), ("rank", "model.lora.rank"), ("train.epoch", "train.epochs"),
        ("learning_rat", "train.learning_rate"), ("lr", "train.learning_rate"), ("data.file", "data.files"),
        ("model_name_or_path", "model.path"), ("tasks.chekcer", "tasks.checker"), ("zzzz", None),
        ("save_interval", "train.save_every"), ("ppo.rollout_n", "rollout.group_size"),
        ("sft_data_path", "data.files"), ("ppo.kl_loss_type", "objective.kl_estimator"),
    ],
)  # fmt: skip
def test_an_unknown_key_is_guessed(written: str, meant: str | None) -> None:
    assert suggest(written) == meant


def test_names_from_elsewhere_lead_to_keys_that_exist() -> None:
    assert set(ELSEWHERE.values()) <= set(paths())


def test_an_unknown_key_is_refused_with_the_guess() -> None:
    with pytest.raises(ConfigError, match=r"train.epoch: no plan has this key; did you mean train.epochs\?"):
        explain("train.epoch")


def test_a_word_that_is_a_stage_and_a_section_is_explained_as_both(rewarded: None) -> None:
    text = explain("reward")
    assert text.startswith("reward: A reward model from pairs or rankings") and "\n\nreward\n" in text
    assert "type numeric: 1 where the answer's last number is the reference's last number" in text


def test_values_of_any_kind_are_named(rewarded: None) -> None:
    assert "type      mapping of text to anything or null" in explain("reward.definition")
    assert "type      list of text\n" in explain("reward.tags")


def test_parts_of_a_reward_are_explained_without_repeating_it(rewarded: None) -> None:
    text = explain("reward.parts")
    for key in ("name", "reward.type", "weight", "gate", "normalise", "clip"):
        assert f"\n  {key} " in text
    assert "type: composite" in text and "list of 2: number or null" in explain("reward.parts.clip")
    everything = explain()
    assert "\n  reward.parts.gate " in everything and "\n  reward.parts.reward.timeout " not in everything
    assert "reward.parts.reward.* those of reward.*" in everything
    assert "\n  reward.parts.reward.timeout " not in explain("rewarded")


def test_keys_of_an_export_are_explained_though_no_plan_has_them() -> None:
    assert "\n  verl.nnodes " in explain("verl")
    assert explain("verl.nnodes").splitlines() == [
        "verl.nnodes", "  Nodes that train.", "  type      whole number, at least 1", "  default   1",
        "  where     `whet export verl`",
    ]  # fmt: skip
    with pytest.raises(ConfigError, match=r"verl\.nodes: .* did you mean verl\.nnodes"):
        explain("verl.nodes")


def test_sections_that_a_type_tells_apart_name_their_types_and_the_one_that_is_taken() -> None:
    assert "  type      section, type one of native, http, vllm, ray\n" in explain("rollout.engine")
    assert "  type      section, type one of native, http, vllm, ray or null\n" in explain("judge.engine")
    assert "  default   local\n" in explain("launch.type")
    assert "  default   required\n" in explain("reward.type")
    assert "  default   sigmoid (dpo; online_dpo)\n" in explain("objective.type")
    assert re.search(r"  type +native +native \| http \| vllm \| ray\n", explain("rollout.engine"))
