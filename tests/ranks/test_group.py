"""A process alone is a group of one, and a plan's number of processes must be the one there is."""

from __future__ import annotations

import pytest

from whet.errors import UserError
from whet.ranks.group import ALONE, Ranks, join_ranks, refuse_other_number


def test_shares_are_all_there_is_and_even() -> None:
    shares = [Ranks(rank=rank, world=3).share(range(8)) for rank in range(3)]
    assert sorted(number for share in shares for number in share) == list(range(8))
    assert [len(share) for share in shares] == [3, 3, 2]


def test_alone_everything_is_done_here() -> None:
    assert ALONE.on_main(lambda: 3) == ALONE.main_first(lambda: 3) == 3
    assert ALONE.everyone("a") == ["a"]


def test_ranks_of_a_machine_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two ranks of the second of two machines: each does its work once, and every turn is waited for."""
    assert ALONE.in_turn(lambda: 7) == 7
    done: list[str] = []
    monkeypatch.setattr(Ranks, "everyone", lambda self, value, what: [2, 2, 2, 2])
    monkeypatch.setattr(Ranks, "wait", lambda self, what: done.append(f"wait for {what}"))
    for rank in (2, 3):
        Ranks(rank=rank, world=4, local_world=2).in_turn(lambda: done.append("work"), "a turn")
    wait = "wait for a turn"
    assert done == ["work", wait, wait, wait, "work", wait]


def test_another_number_of_processes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_other_number(1)
    with pytest.raises(UserError, match=r"launch.processes: .* \(found 4, and 1 was started\)"):
        refuse_other_number(4)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    refuse_other_number(1)
    refuse_other_number(2)
    with pytest.raises(UserError, match="found 4, and 2 were started"):
        refuse_other_number(4)


@pytest.mark.parametrize(("name", "found"), [("WORLD_SIZE", "two"), ("RANK", "x"), ("MASTER_PORT", "²9")])
def test_an_environment_without_numbers_is_one_line(monkeypatch: pytest.MonkeyPatch, name: str, found: str) -> None:
    for variable, value in ({"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"} | {name: found}).items():
        monkeypatch.setenv(variable, value)
    with pytest.raises(UserError, match=rf"^{name}: is not a whole number \(found '{found}'\)"):
        join_ranks()
