"""Kill at any byte: nothing stored is asked again, and the files end the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from tests.experience.groups import FakeEngine, question
from whet.config.judge import Pointwise
from whet.config.rollout import Rollout
from whet.data.render import Renderer
from whet.errors import RunError
from whet.experience.asking import judge_stream
from whet.experience.collect import Collector, Tell, at_once, prompt_keys
from whet.experience.store import RolloutStore
from whet.rewards.judge import build_judge
from whet.schema.records import Message, Prompt
from whet.schema.rollouts import Group

PROMPTS = [question(f"Name city {number % 7}.") for number in range(9)]


@pytest.fixture(scope="module")
def renderer(tiny_checkpoint: Path) -> Renderer:
    return Renderer(AutoTokenizer.from_pretrained(tiny_checkpoint))


def collector(folder: Path, renderer: Renderer, engine: FakeEngine, tell: Tell = lambda num, note: None) -> Collector:
    return Collector(
        engine=engine,
        renderer=renderer,
        rollout=Rollout(group_size=3, batch_size=3),
        store=RolloutStore(folder / "rollouts.jsonl"),
        judging=judge_stream(build_judge(Pointwise(votes=2), renderer, seed=1), engine, folder, chunk=at_once(3)),
        tell=tell,
    )


def collect(
    folder: Path, renderer: Renderer, prompts: list[Prompt] = PROMPTS, *, batched: bool = True
) -> tuple[list[Group], list[str]]:
    engine = FakeEngine(batched=batched)
    return list(collector(folder, renderer, engine).groups(prompts)), engine.asked


def keys_in(content: bytes) -> list[str]:
    return [json.loads(line)["key"] for line in content.split(b"\n")[:-1]]


FILES = ("rollouts.jsonl", "judgements.jsonl")


def test_groups_follow_their_prompts(tmp_path: Path, renderer: Renderer) -> None:
    groups, asked = collect(tmp_path, renderer)
    assert [group.prompt for group in groups] == PROMPTS
    keys = prompt_keys(PROMPTS)
    for group, key in zip(groups, keys, strict=True):
        assert [c.key for c in group.completions] == [f"{key}#{index}" for index in range(3)]
        for completion, score in zip(group.completions, group.scores, strict=True):
            expected = [sum(map(ord, f"{completion.key}/judge{vote}")) % 6 for vote in range(2)]
            assert score.value == sum(expected) / 2
    assert len(asked) == len(set(asked)) == 9 * 3 * 3


def test_keys_are_made_of_content() -> None:
    keys = prompt_keys(PROMPTS)
    assert len(set(keys)) == 9 and keys[7] == f"{keys[0]}.1", "a prompt that occurs again is sampled anew"
    moved = [PROMPTS[3], PROMPTS[1]]
    assert prompt_keys(moved) == [keys[3], keys[1]]
    other_role = Prompt(messages=(Message("system", "Name city 3."),))
    assert prompt_keys([other_role])[0] != keys[3]


@pytest.mark.parametrize("batched", [True, False])
def test_killed_on_the_way(tmp_path: Path, renderer: Renderer, batched: bool) -> None:
    expected, asked = collect(tmp_path / "whole", renderer, batched=batched)
    whole = {name: (tmp_path / "whole" / name).read_bytes() for name in FILES}
    for share in (0.0, 0.3, 0.5, 0.99):
        folder = tmp_path / f"killed{share}"
        folder.mkdir()
        for name, content in whole.items():
            (folder / name).write_bytes(content[: int(share * len(content))])
        groups, asked_again = collect(folder, renderer, batched=batched)
        assert groups == expected
        assert {name: (folder / name).read_bytes() for name in FILES} == whole
        stored = {key for name in FILES for key in keys_in(whole[name][: int(share * len(whole[name]))])}
        assert len(asked_again) == len(set(asked_again)) and set(asked_again) | stored == set(asked)
        assert batched or not set(asked_again) & stored


@pytest.mark.parametrize("share", [0, 1 / 2, 1])
def test_progress_counts_what_was_made_and_what_was_stored(tmp_path: Path, renderer: Renderer, share: float) -> None:
    collect(tmp_path, renderer)
    for name in FILES:
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(content[: int(share * len(content))])
    told: list[int] = []
    again = collector(tmp_path, renderer, FakeEngine(), lambda num, note: told.append(num))
    list(again.groups(PROMPTS))
    assert again.num_stored + sum(told) == 81


def test_judging_begins_before_all_have_answered(tmp_path: Path, renderer: Renderer) -> None:
    """So that neither engine waits for the other, and no more is held than has been asked."""
    engine = FakeEngine(batched=False)
    next(collector(tmp_path, renderer, engine).groups(PROMPTS))
    assert len([key for key in engine.asked if "/judge" not in key]) == 3


def test_a_file_of_other_prompts_is_refused(tmp_path: Path, renderer: Renderer) -> None:
    collect(tmp_path, renderer)
    before = [(tmp_path / name).read_bytes() for name in FILES]
    with pytest.raises(RunError, match="holds answers to other requests"):
        collect(tmp_path, renderer, [question("Another?")])
    assert [(tmp_path / name).read_bytes() for name in FILES] == before
