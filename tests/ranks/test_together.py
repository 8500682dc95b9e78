"""What goes wrong on one rank is told once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from torch.distributed import HashStore

from whet.errors import UserError
from whet.ranks import group, together
from whet.ranks.group import Ended, Job, Ranks
from whet.ranks.life import Signs
from whet.ranks.pulse import pulse, waiting
from whet.ranks.watchdog import Watchdog


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[HashStore]:
    monkeypatch.setattr(together, "GRACE", 0.5)
    monkeypatch.setattr(pulse, "lost", "")
    monkeypatch.setattr(group, "_joined", [])
    yield HashStore()


def join(store: HashStore, rank: int) -> Job:
    """This process becomes that rank."""
    signs = Signs(store, rank, 2, "here", 0)
    job = Job(Ranks(rank=rank, world=2), Watchdog(signs, rank=rank, world=2, limit=60, stacks=None), signs)
    group._joined[:] = [job]
    return job


def fail(error: Exception) -> int:
    with pytest.raises(Ended) as ended, together.together():
        raise error
    return ended.value.code


def test_the_first_to_fail_tells_and_the_other_ends_without_a_word(
    store: HashStore, capsys: pytest.CaptureFixture[str]
) -> None:
    join(store, 1)
    assert fail(UserError("no rows", file="a.jsonl")) == 2
    assert capsys.readouterr().err == "error: rank 1: a.jsonl: no rows\n"
    join(store, 0)
    assert fail(UserError("no rows", file="a.jsonl")) == 2
    with pytest.raises(Ended), together.together(), waiting("the gradients"):
        raise RuntimeError("Connection closed by peer")
    assert capsys.readouterr().err == ""


def test_a_defect_has_its_traceback_and_its_code_on_all_ranks(
    store: HashStore, capsys: pytest.CaptureFixture[str]
) -> None:
    join(store, 0)
    assert fail(ZeroDivisionError("nobody thought of this")) == 1
    said = capsys.readouterr().err
    assert said.startswith("Traceback") and said.endswith("error: rank 0: ZeroDivisionError: nobody thought of this\n")
    join(store, 1)
    assert fail(Ended()) == 1 and capsys.readouterr().err == ""


def test_a_rank_that_vanished_is_named_by_who_missed_it(store: HashStore, capsys: pytest.CaptureFixture[str]) -> None:
    job = join(store, 0)
    job.watchdog._seen[0].ticked += 1e6
    job.watchdog._seen[1].ticked -= 1e3
    with pytest.raises(Ended), together.together(), waiting("the gradients"):
        raise RuntimeError("Connection closed by peer")
    said = capsys.readouterr().err
    assert said.startswith("error: rank 0: rank 1 is gone: it has not come yet; the same command goes on"), said


def test_alone_an_error_is_what_it_was(store: HashStore) -> None:
    with pytest.raises(UserError, match="no rows"), together.together():
        raise UserError("no rows")
