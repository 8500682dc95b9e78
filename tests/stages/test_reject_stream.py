"""reject as a stream: memory holds a window of prompts, whatever their number; a server's answers come in any order."""

from __future__ import annotations

import json
import os
import random
import threading
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import pytest

from tests.stages.test_reject import contents, run, stage
from whet.config.stage import RejectStage
from whet.experience.sampler import ahead
from whet.runs.files import read_jsonl
from whet.schema.rollouts import Completion, Request
from whet.stages import reject_engines

FILLER = "therefore " * 160
WINDOW = 24


class Server:
    """Answers some requests at a time, in any order, as a server does. Half of the answers are right."""

    batched = False

    def __init__(self) -> None:
        self.asked: list[str] = []

    def generate(self, requests: Iterable[Request]) -> Iterator[Completion]:
        requests, draw = iter(requests), random.Random(0)
        while window := list(islice(requests, WINDOW)):
            draw.shuffle(window)
            for request in window:
                self.asked.append(request.key)
                number = int(request.messages[-1].text.split()[3])
                right = int(request.key.rpartition("#")[2]) % 2 == 0
                text = f"{FILLER} {request.key} {2 * number if right else 2 * number + 1}"
                yield Completion(
                    key=request.key, ids=(), text=text, logprobs=(), finish_reason="stop", counted_tokens=len(text)
                )

    def sync(self, version: int) -> None:
        pass

    def close(self) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    server = Server()
    monkeypatch.setattr(reject_engines, "open_engine", lambda *_: server)
    return server


def asked_of_a_server(folder: Path, num: int) -> RejectStage:
    rows = ({"prompt": f"How much is {n} plus {n}?", "reference": str(2 * n)} for n in range(num))
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    rollout = {"group_size": 4, "batch_size": 8, "max_new_tokens": 1000}
    return stage(folder, functions={}, rollout=rollout, accept={"order": "shortest"})


def resident() -> int:
    """Resident memory of this process in bytes. Linux."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@contextmanager
def watched() -> Iterator[list[int]]:
    """Most resident memory while the block runs, above what there was before, as the only entry."""
    before, growth, done = resident(), [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.005):
            growth[0] = max(growth[0], resident() - before)

    thread = threading.Thread(target=watch)
    thread.start()
    yield growth
    done.set()
    thread.join()


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads Linux's account of memory")
def test_memory_does_not_grow_with_the_prompts(tmp_path: Path, tiny_checkpoint: Path, server: Server) -> None:
    for num in (50, 2000):  # the first is for what stays: imports, caches
        folder = tmp_path / str(num)
        folder.mkdir()
        config = asked_of_a_server(folder, num)
        server.asked.clear()
        with watched() as growth:
            result = run(config, tiny_checkpoint, folder / "out")
        assert result.metrics["num_accepted"] == 2 * num and result.metrics["num_unsolved"] == 0
    size = (folder / "out" / "groups.jsonl").stat().st_size
    assert size > 12_000_000, "there is something to hold"
    assert growth[0] < size / 2, "the texts alone take more, were they held"


def test_killed_with_a_server_no_answer_is_asked_for_twice(
    tmp_path: Path, tiny_checkpoint: Path, server: Server
) -> None:
    config = asked_of_a_server(tmp_path, 30)
    run(config, tiny_checkpoint, tmp_path / "whole")
    expected = contents(tmp_path / "whole")
    for share in (0.1, 0.5, 0.9):
        folder = tmp_path / f"killed{share}"
        folder.mkdir()
        content = expected["rollouts.jsonl"]
        (folder / "rollouts.jsonl").write_bytes(content[: int(share * len(content))])
        stored = {row["key"] for row in read_jsonl(folder / "rollouts.jsonl")}
        server.asked.clear()
        run(config, tiny_checkpoint, folder)
        assert contents(folder) == expected
        assert not stored & set(server.asked) and len(stored) + len(server.asked) == 120


def test_work_ahead_of_who_takes_it() -> None:
    made: list[int] = []

    def items() -> Generator[int, None, None]:
        for number in range(100):
            made.append(number)
            yield number

    taken = ahead(items(), 3)
    assert [next(taken) for _ in range(5)] == [0, 1, 2, 3, 4]
    taken.close()  # type: ignore[attr-defined]
    assert len(made) <= 5 + 3 + 2, "it waits where nobody takes"
    assert list(ahead((number for number in range(50)), 2)) == list(range(50))


def test_what_goes_wrong_ahead_is_raised_where_it_is_taken() -> None:
    def items() -> Generator[int, None, None]:
        yield 1
        raise OSError("the server is gone")

    taken = ahead(items(), 3)
    assert next(taken) == 1
    with pytest.raises(OSError, match="the server is gone"):
        next(taken)
