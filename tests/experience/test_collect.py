"""Kill at any byte: nothing stored is asked again, and the files end the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from tests.experience.groups import FakeEngine, question
from whet.config.rollout import Judge, Rollout
from whet.data.render import Renderer
from whet.errors import RunError
from whet.experience.collect import Collector, prompt_keys
from whet.experience.store import RolloutStore
from whet.rewards.judge import build_judge
from whet.schema.records import Message, Prompt
from whet.schema.rollouts import Completion, Group, Request, Sampling

PROMPTS = [question(f"Name city {number % 7}.") for number in range(9)]


@pytest.fixture(scope="module")
def renderer(tiny_checkpoint: Path) -> Renderer:
    return Renderer(AutoTokenizer.from_pretrained(tiny_checkpoint))


def collect(path: Path, renderer: Renderer, prompts: list[Prompt] = PROMPTS) -> tuple[list[Group], list[str]]:
    engine = FakeEngine()
    collector = Collector(
        engine=engine,
        renderer=renderer,
        rollout=Rollout(group_size=3, batch_size=3),
        judge=build_judge(Judge(votes=2), renderer, seed=1),
        store=RolloutStore(path),
    )
    return list(collector.groups(prompts)), engine.asked


def test_groups_follow_their_prompts(tmp_path: Path, renderer: Renderer) -> None:
    groups, asked = collect(tmp_path / "rollouts.jsonl", renderer)
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


def test_killed_on_the_way(tmp_path: Path, renderer: Renderer) -> None:
    whole = tmp_path / "whole.jsonl"
    expected, asked = collect(whole, renderer)
    content = whole.read_bytes()
    for offset in range(0, len(content), len(content) // 7):
        path = tmp_path / f"killed{offset}.jsonl"
        path.write_bytes(content[:offset])
        stored = stored_keys(content[:offset])
        groups, asked_again = collect(path, renderer)
        assert groups == expected
        assert path.read_bytes() == content
        assert asked_again == asked[len(stored) :] and not set(asked_again) & set(stored)


CHUNKS = [
    [Request(key=f"{chunk}#{n}", prompt_ids=(1,), sampling=Sampling(max_new_tokens=1), seed=0) for n in range(num)]
    for chunk, num in enumerate((1, 2))
]


def answer(path: Path) -> tuple[list[Completion], list[str]]:
    engine, store = FakeEngine(), RolloutStore(path)
    return [completion for chunk in CHUNKS for completion in store.answer(engine, chunk)], engine.asked


def test_killed_at_every_byte(tmp_path: Path) -> None:
    expected, asked = answer(tmp_path / "whole.jsonl")
    assert len(asked) == 3
    content = (tmp_path / "whole.jsonl").read_bytes()
    path = tmp_path / "killed.jsonl"
    for offset in range(len(content) + 1):
        path.write_bytes(content[:offset])
        completions, asked_again = answer(path)
        assert completions == expected
        assert path.read_bytes() == content
        assert asked_again == asked[len(stored_keys(content[:offset])) :]


def stored_keys(content: bytes) -> list[str]:
    """Keys of the whole chunks, read the plain way."""
    rows = [json.loads(line) for line in content.split(b"\n")[:-1]]
    last = max((index + 1 for index, row in enumerate(rows) if row.get("end")), default=0)
    return [row["key"] for row in rows[:last]]


def test_progress_counts_what_was_made_and_what_was_stored(tmp_path: Path, renderer: Renderer) -> None:
    path = tmp_path / "rollouts.jsonl"
    collect(path, renderer)
    content = path.read_bytes()
    for share in (0, 1 / 2, 1):
        path.write_bytes(content[: int(share * len(content))])
        store = RolloutStore(path)
        waiting, told = store.num_waiting, list[int]()
        collector = Collector(
            engine=FakeEngine(),
            renderer=renderer,
            rollout=Rollout(group_size=3, batch_size=3),
            judge=build_judge(Judge(votes=2), renderer, seed=1),
            store=store,
            tell=lambda num, note, told=told: told.append(num),
        )
        list(collector.groups(PROMPTS))
        assert waiting + sum(told) == 81 and store.num_waiting == 0


def test_a_torn_chunk_is_no_more_than_the_chunk_in_flight(tmp_path: Path, renderer: Renderer) -> None:
    path = tmp_path / "rollouts.jsonl"
    _, asked = collect(path, renderer)
    content = path.read_bytes()
    path.write_bytes(content[:-5])
    _, asked_again = collect(path, renderer)
    assert 0 < len(asked_again) <= 12 and asked_again == asked[-len(asked_again) :]


def test_a_file_of_other_prompts_is_refused(tmp_path: Path, renderer: Renderer) -> None:
    path = tmp_path / "rollouts.jsonl"
    collect(path, renderer)
    before = path.read_bytes()
    with pytest.raises(RunError, match="holds answers to other requests"):
        collect(path, renderer, [question("Another?")])
    assert path.read_bytes() == before


def test_an_unwritable_place_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot write"):
        RolloutStore(tmp_path / "file" / "rollouts.jsonl")
