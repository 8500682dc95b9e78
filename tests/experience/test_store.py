"""Completions on disk: killed at any byte, nothing answered is asked again, and the files end the same."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.experience.groups import FakeEngine
from whet.errors import RunError
from whet.experience import store as module
from whet.experience.store import RolloutStore
from whet.schema.rollouts import Completion, Request, Sampling

CHUNK = 2


def requests(num: int) -> list[Request]:
    sampling = Sampling(max_new_tokens=1)
    return [Request(key=f"p#{n}", prompt_ids=(1,), sampling=sampling, seed=0) for n in range(num)]


class Server:
    """Answers out of order, as `order` says, a few requests ahead; dies after some answers."""

    batched = False

    def __init__(self, order: Iterable[int] = (), *, window: int = 4, dies_after: int | None = None) -> None:
        self._order, self._window, self._left = iter(order), window, dies_after
        self.asked: list[str] = []
        self.answered: list[str] = []

    def generate(self, requests: Iterable[Request]) -> Iterator[Completion]:
        waiting: list[tuple[int, Request]] = []
        rest = enumerate(requests)
        ended = False
        pulled = 0
        while True:
            while not ended and (not waiting or pulled - waiting[0][0] < self._window):
                place, request = next(rest, (0, None))
                if request is None:
                    ended = True
                    break
                pulled = place + 1
                waiting.append((place, request))
                self.asked.append(request.key)
            if not waiting:
                return
            if self._left == len(self.answered):
                raise KeyboardInterrupt
            _, request = waiting.pop(next(self._order, 0) % len(waiting))
            self.answered.append(request.key)
            yield answer(request)

    def sync(self, version: int) -> None:
        pass

    def close(self) -> None:
        pass


def answer(request: Request) -> Completion:
    return Completion(key=request.key, ids=(3,), text=f"é\u2028{request.key}", logprobs=(-0.5,), finish_reason="stop")


def stored(path: Path) -> list[str]:
    return [json.loads(line)["key"] for line in path.read_bytes().split(b"\n")[:-1]]


@pytest.mark.parametrize("batched", [True, False])
def test_killed_at_every_byte(tmp_path: Path, batched: bool) -> None:
    asked, path = requests(5), tmp_path / "rollouts.jsonl"
    engine = FakeEngine(batched=batched)
    expected = list(RolloutStore(path).stream(engine, asked, chunk=CHUNK))
    assert [completion.key for completion in expected] == engine.asked == [request.key for request in asked]
    content = path.read_bytes()
    for offset in range(len(content) + 1):
        path.write_bytes(content[:offset])
        whole = len(stored(path))
        engine, store = FakeEngine(batched=batched), RolloutStore(path)
        assert store.num_stored == whole
        told: list[int] = []
        assert list(store.stream(engine, asked, chunk=CHUNK, tell=told.append)) == expected
        assert path.read_bytes() == content and whole + sum(told) == len(asked)
        kept = whole if not batched or whole == len(asked) else whole // CHUNK * CHUNK
        assert engine.asked == [request.key for request in asked[kept:]]


@given(order=st.lists(st.integers(0, 9), max_size=40), deaths=st.lists(st.integers(0, 12), max_size=4))
def test_answers_in_any_order_and_any_number_of_deaths(
    tmp_path_factory: pytest.TempPathFactory, order: list[int], deaths: list[int]
) -> None:
    """What a server had answered is never asked again, and the file is that of an engine that keeps the order."""
    folder, asked = tmp_path_factory.mktemp("store"), requests(20)
    list(RolloutStore(folder / "plain.jsonl").stream(FakeAnswers(), asked, chunk=CHUNK))
    path, answered = folder / "rollouts.jsonl", set[str]()
    for death in [*deaths, None]:
        engine, store = Server(order, dies_after=death), RolloutStore(path)
        assert store.num_stored == len(answered)
        try:
            completions = list(store.stream(engine, asked, chunk=CHUNK))
        except KeyboardInterrupt:
            completions = []
        assert not answered & set(engine.asked)
        answered |= set(engine.answered)
    assert completions == [module._as_stored(answer(request)) for request in asked]
    assert path.read_bytes() == (folder / "plain.jsonl").read_bytes()
    assert sorted(other.name for other in folder.iterdir()) == ["plain.jsonl", "rollouts.jsonl"]


class FakeAnswers(Server):
    batched = True


def test_the_second_file_stays_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STALE_LINES", 8)
    path, asked, largest = tmp_path / "rollouts.jsonl", requests(200), 0
    for _ in RolloutStore(path).stream(Server([1, 2, 3, 0] * 100), asked, chunk=CHUNK):
        early = tmp_path / "rollouts.early.jsonl"
        largest = max(largest, len(stored(early)) if early.exists() else 0)
    assert 0 < largest <= 8 + 2 * 4
    assert len(stored(path)) == 200


def test_requests_are_pulled_as_they_are_needed(tmp_path: Path) -> None:
    pulled: list[str] = []

    def endless() -> Iterator[Request]:
        for number in range(10**9):
            request = Request(key=f"p#{number}", prompt_ids=(1,), sampling=Sampling(max_new_tokens=1), seed=0)
            pulled.append(request.key)
            yield request

    completions = RolloutStore(tmp_path / "rollouts.jsonl").stream(Server(), endless(), chunk=CHUNK)
    for _ in range(10):
        next(completions)
    assert len(pulled) <= 10 + 4


def test_answers_to_other_requests_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "rollouts.jsonl"
    list(RolloutStore(path).stream(Server(), requests(3), chunk=CHUNK))
    before, others = path.read_bytes(), requests(4)[1:]
    for engine in (Server(), FakeEngine()):
        with pytest.raises(RunError, match="holds answers to other requests"):
            list(RolloutStore(path).stream(engine, others, chunk=CHUNK))
        assert path.read_bytes() == before


def test_an_unwritable_place_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot write"):
        RolloutStore(tmp_path / "file" / "rollouts.jsonl")


def test_what_the_engine_raises_is_no_failure_to_write(tmp_path: Path) -> None:
    class Broken(Server):
        def generate(self, requests: Iterable[Request]) -> Iterator[Completion]:
            raise ConnectionResetError
            yield

    with pytest.raises(ConnectionResetError):
        list(RolloutStore(tmp_path / "rollouts.jsonl").stream(Broken(), requests(1), chunk=CHUNK))
