"""What ranks tell the driver, without a cluster; with one: `tests/integration/test_ray.py`."""

from __future__ import annotations

import pickle

from whet.errors import ConfigError
from whet.launch.board import Board, Refusal, Said, Telling
from whet.runs.sinks import Progress


def test_what_is_printed_is_heard_once_and_in_order() -> None:
    board = Board()
    out, err = Telling("stdout", board.say), Telling("stderr", board.say)
    print("sft: 12 rows", file=out)
    with Progress("sft", total=2, stream=err) as progress:
        progress.update(2)
    heard = board.hear()
    assert "".join(said.text for said in heard if said.channel == "stdout") == "sft: 12 rows\n"
    assert "2/2 100%" in "".join(said.text for said in heard if said.channel == "stderr")
    assert heard[0] == Said("stdout", "sft: 12 rows")
    assert board.hear() == []


def test_the_first_refusal_stays_and_travels_whole() -> None:
    board = Board()
    assert board.refusal() is None
    board.refuse(Refusal(ConfigError("is wrong", field="train.epochs", found="0", fix="write 1"), told=True))
    board.refuse(Refusal(ConfigError("is wrong too"), told=False))
    refusal = pickle.loads(pickle.dumps(board.refusal()))
    assert refusal.told and isinstance(refusal.error, ConfigError)
    assert str(refusal.error) == "train.epochs: is wrong (found 0); write 1"
    assert refusal.error.field == "train.epochs"


def test_attempts_are_counted() -> None:
    board = Board()
    assert [board.begin(), board.begin()] == [1, 2]
