"""The offline feed: every record once an epoch, whatever the split, and a pure function of the step."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from whet.train.feed import Batches, OfflineFeed


def feed(
    num: int, *, batch: int = 4, tokens: int = 100, epochs: int = 2, rank: int = 0, world: int = 1, steps=None
) -> OfflineFeed:
    """Rows of one token each."""
    return OfflineFeed(
        [1] * num,
        list,
        batch_size=batch,
        micro_batch_tokens=tokens,
        epochs=epochs,
        max_steps=steps,
        seed=7,
        rank=rank,
        world=world,
    )


@pytest.mark.parametrize(("num", "batch"), [(10, 4), (8, 4), (3, 8), (1, 1)])
def test_every_record_once_an_epoch(num: int, batch: int) -> None:
    f = feed(num, batch=batch)
    per_epoch = f.num_steps // 2
    for epoch in range(2):
        seen = [i for step in range(epoch * per_epoch, (epoch + 1) * per_epoch) for i in f.indices(step)]
        assert sorted(seen) == list(range(num))
    assert f.ends_epoch(per_epoch)
    assert f.epoch(per_epoch) == 1.0


def test_epochs_differ_and_repeat_exactly() -> None:
    first, again = feed(50, batch=50), feed(50, batch=50)
    assert first.indices(0) != first.indices(1)
    assert [first.indices(s) for s in (0, 1)] == [again.indices(s) for s in (1, 0)][::-1]


def test_micro_batches_split_a_step_and_nothing_else() -> None:
    whole, split = feed(10, batch=8), feed(10, batch=8, tokens=3)
    for step in range(whole.num_steps):
        assert sorted(i for part in split.micro_batches(step) for i in part) == sorted(whole.micro_batches(step)[0])
    assert [len(part) for part in split.micro_batches(0)] == [3, 3, 2]


def test_ranks_share_a_step_without_overlap() -> None:
    one = feed(11, batch=4, world=1)
    two = [feed(11, batch=4, rank=r, world=2) for r in (0, 1)]
    assert one.num_steps == two[0].num_steps
    for step in range(one.num_steps):
        assert sorted(two[0].indices(step) + two[1].indices(step)) == sorted(one.indices(step))


def test_max_steps_wins_over_epochs() -> None:
    assert feed(10, epochs=1, steps=9).num_steps == 9
    assert feed(10, epochs=5, steps=2).num_steps == 2


def test_micro_batches_are_filled_up_to_the_budget_and_a_longer_row_stands_alone() -> None:
    lengths = [5, 9, 2, 7, 30, 1]
    of = OfflineFeed(lengths, list, batch_size=6, micro_batch_tokens=10, epochs=1, max_steps=None, seed=7)
    parts = of.micro_batches(0)
    assert sorted(sorted(lengths[i] for i in part) for part in parts) == [[1, 9], [2, 7], [5], [30]]


def test_held_out_batches_are_made_when_they_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("whet.train.feed.WINDOW", 4)
    made: list[list[int]] = []

    def collate(part: Sequence[int]) -> list[int]:
        made.append(list(part))
        return list(part)

    batches = Batches(range(3, 13), [2] * 13, collate, 6)
    assert made == [] and len(batches) == 5
    assert [sorted(batch) for batch in batches] == [[3, 4, 5], [6], [7, 8, 9], [10], [11, 12]]
    assert batches[-1] == [11, 12] and batches[:1] == [[3, 4, 5]]
