"""An engine whose device is full goes on on the CPU; what it had answered it does not answer again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import pytest
import torch

from whet.models.placed import Placed
from whet.rollout.moving import MovingEngine
from whet.schema.rollouts import Completion, Request, Sampling


@dataclass
class Answering:
    """Answers with the name of its device, until its memory is full."""

    device: torch.device
    room: int
    asked: list[str]

    def generate(self, requests: Iterable[Request]) -> Iterator[Completion]:
        for number, request in enumerate(requests):
            if self.device.type != "cpu" and number == self.room:
                raise torch.OutOfMemoryError("out of memory")
            self.asked.append(request.key)
            yield Completion(key=request.key, ids=(), text=self.device.type, logprobs=(), finish_reason="stop")

    def sync(self, version: int) -> None: ...


def opened(room: int, *, fall_back: bool = True) -> tuple[MovingEngine, list[str]]:
    asked: list[str] = []
    placed = Placed(
        lambda device: Answering(device, room, asked), torch.device("cuda"), fall_back=fall_back, what="the judge"
    )
    return MovingEngine(placed), asked  # type: ignore[arg-type]


REQUESTS = [Request(key=str(n), prompt_ids=(1,), sampling=Sampling(max_new_tokens=1), seed=0) for n in range(5)]


@pytest.mark.parametrize("room", [0, 2, 4])
def test_every_request_is_answered_once_and_in_order(room: int, capsys: pytest.CaptureFixture[str]) -> None:
    engine, asked = opened(room)
    completions = list(engine.generate(iter(REQUESTS)))
    assert [c.key for c in completions] == [r.key for r in REQUESTS] == asked
    assert [c.text for c in completions] == ["cuda"] * room + ["cpu"] * (5 - room)
    assert "no room for the judge on cuda: it goes on on the CPU" in capsys.readouterr().err
    assert [c.text for c in engine.generate(REQUESTS)] == ["cpu"] * 5
    assert capsys.readouterr().err == ""


def test_a_device_that_was_asked_for_is_not_left() -> None:
    with pytest.raises(torch.OutOfMemoryError):
        list(opened(1, fall_back=False)[0].generate(REQUESTS))
