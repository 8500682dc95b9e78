"""Replies of a judge that a kill leaves behind are not asked for again, and nothing of them is kept once used."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.experience.groups import FakeEngine
from whet.experience.remembered import Remembered
from whet.schema.rollouts import Request, Sampling

REQUESTS = [
    Request(key=f"k#{n}/judge0", prompt_ids=(1,), sampling=Sampling(max_new_tokens=1), seed=0) for n in range(4)
]


@pytest.mark.parametrize("batched", [True, False])
def test_replies_outlive_the_process_until_they_are_used(batched: bool, tmp_path: Path) -> None:
    path, engine = tmp_path / "judging.jsonl", FakeEngine(batched=batched)
    first = Remembered(lambda: engine, path)
    said = list(first.generate(REQUESTS))
    assert [reply.key for reply in said] == [request.key for request in REQUESTS]
    again = FakeEngine(batched=batched)
    second = Remembered(lambda: again, path)
    assert list(second.generate(REQUESTS)) == said and not again.asked
    second.forget()
    assert path.read_bytes() == b""
    list(second.generate(REQUESTS))
    assert len(again.asked) == 4
    second.forget()
    second.close()
    assert not path.exists()


def test_of_a_batch_that_is_not_whole_all_are_asked_again(tmp_path: Path) -> None:
    path = tmp_path / "judging.jsonl"
    list(Remembered(FakeEngine, path).generate(REQUESTS))
    content = path.read_bytes()
    path.write_bytes(content[: len(content) - 5])
    for batched, expected in ((True, 4), (False, 1)):
        path.write_bytes(content[: len(content) - 5])
        engine = FakeEngine(batched=batched)
        assert len(list(Remembered(lambda engine=engine: engine, path).generate(REQUESTS))) == 4
        assert len(engine.asked) == expected


def test_a_judge_that_is_never_asked_is_never_opened(tmp_path: Path) -> None:
    def open_it() -> FakeEngine:
        raise AssertionError("opened")

    judge = Remembered(open_it, tmp_path / "judging.jsonl")
    assert list(judge.generate([])) == []
    judge.forget()
    judge.close()
