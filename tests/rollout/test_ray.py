"""The engine of actors on a cluster of plain objects; on a real one: `tests/integration/test_ray.py`."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from whet.config.engine import Ray, Vllm
from whet.config.model import Model
from whet.errors import ConfigError, ModelError, RunError
from whet.rollout import ray as ray_engine
from whet.rollout.build import Answering, Served
from whet.rollout.cluster import connect, environment
from whet.rollout.ray import RayEngine
from whet.schema.artifacts import ModelRef
from whet.schema.rollouts import Completion, Request, Sampling


class RayTaskError(Exception):
    def __init__(self, cause: Exception) -> None:
        super().__init__("a traceback of many lines")
        self.cause = cause


class RayActorError(Exception):
    pass


class Other(Exception):
    pass


@dataclass(eq=False)
class Actor:
    """Answers with the request's key in capitals, two at a time, until it has said `lives` things."""

    lives: float
    problem: Exception | None = None
    asked: list[str] = field(default_factory=list)
    killed: bool = False

    @property
    def open(self) -> Any:
        return SimpleNamespace(remote=lambda role: self.problem)

    @property
    def generate(self) -> Any:
        return SimpleNamespace(options=lambda num_returns: SimpleNamespace(remote=self._stream))

    def _stream(self, requests: Sequence[Request]) -> Iterator[Any]:
        self.asked += [request.key for request in requests]
        for start in range(0, len(requests), 2):
            if self.lives <= 0:
                yield RayActorError("the actor died\nbecause of a signal")
                return
            self.lives -= 1
            yield tuple(said(request.key) for request in requests[start : start + 2])


def said(key: str) -> Completion:
    return Completion(key=key, ids=(1,), text=key.upper(), logprobs=(0.0,), finish_reason="stop")


class Cluster:
    """As much of Ray as the engine uses. `lives`: of the actors in the order in which they are made."""

    exceptions = SimpleNamespace(
        RayTaskError=RayTaskError, RayActorError=RayActorError, NodeDiedError=Other, LocalRayletDiedError=Other,
        WorkerCrashedError=Other, OutOfMemoryError=Other, ObjectLostError=Other,
    )  # fmt: skip

    def __init__(self, lives: Sequence[float], problem: Exception | None = None, room: bool = True) -> None:
        self._lives, self._problem, self._turn = list(lives), problem, 0
        self.actors: list[Actor] = []
        self.removed: list[Any] = []
        group = SimpleNamespace(wait=lambda seconds: room)
        self.named: dict[str, Any] = {}

        def place(bundles: Any, strategy: str, name: str) -> Any:
            self.named[name] = group
            return group

        self.util = SimpleNamespace(
            placement_group=place, remove_placement_group=self.removed.append, get_placement_group=self._find
        )

    def _find(self, name: str) -> Any:
        if name not in self.named:
            raise ValueError(name)
        return self.named.pop(name)

    def make(self, seat: Any) -> Actor:
        self.actors.append(Actor(self._lives.pop(0) if self._lives else float("inf"), self._problem))
        return self.actors[-1]

    def get(self, value: Any) -> Any:
        if isinstance(value, Exception):
            raise value
        return value

    def wait(self, streams: Sequence[Any], num_returns: int, fetch_local: bool) -> tuple[list[Any], list[Any]]:
        self._turn += 1
        return [streams[self._turn % len(streams)]], []

    def kill(self, actor: Actor) -> None:
        actor.killed = True

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 2.0}

    available_resources = cluster_resources


def opened(monkeypatch: pytest.MonkeyPatch, cluster: Cluster, config: Ray, *, batch_size: int = 64) -> RayEngine:
    monkeypatch.setattr(ray_engine, "connect", lambda address, field: cluster)
    monkeypatch.setattr(RayEngine, "_actor", lambda self, seat: cluster.make(seat))
    served = Served(ref=ModelRef(path="model"), model=Model(path="model"), folder=Path("folder"))
    answering = Answering(tokenizer=SimpleNamespace(), end_id=0, batch_size=batch_size)  # type: ignore[arg-type]
    return RayEngine(config, served, answering)


def requests(prompts: int, samples: int) -> list[Request]:
    sampling = Sampling(max_new_tokens=4)
    return [
        Request(key=f"p{prompt}#{sample}", prompt_ids=(prompt, 7), sampling=sampling, seed=0)
        for prompt in range(prompts)
        for sample in range(samples)
    ]


@pytest.mark.parametrize("actors", [1, 2, 5])
def test_answers_come_in_order_however_many_actors(actors: int, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster([])
    engine = opened(monkeypatch, cluster, Ray(actors=actors))
    asked = requests(7, 3)
    assert [completion.text for completion in engine.generate(asked)] == [request.key.upper() for request in asked]
    assert all(actor.asked for actor in cluster.actors)
    assert engine.counts == {"actors": float(actors), "restarts": 0.0, "asked_again": 0.0, "answered": 21.0}


def test_pieces_keep_the_samples_of_a_prompt_together_and_fit_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = opened(monkeypatch, Cluster([]), Ray(actors=2), batch_size=8)
    pieces = [[request.key for request in piece] for piece in engine._pieces(requests(6, 3))]
    assert [len(piece) for piece in pieces] == [6, 6, 6]
    assert [key for piece in pieces for key in piece] == [request.key for request in requests(6, 3)]
    served = opened(monkeypatch, Cluster([]), Ray(actors=2, serve=Vllm()), batch_size=8)
    assert [len(piece) for piece in served._pieces(requests(6, 3))] == [9, 9]


def test_a_lost_actor_is_replaced_and_only_what_it_left_open_is_asked_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster = Cluster([1, float("inf")])
    engine = opened(monkeypatch, cluster, Ray(actors=2))
    asked = requests(4, 3)
    assert [completion.key for completion in engine.generate(asked)] == [request.key for request in asked]
    first, _, third = cluster.actors
    assert first.killed and first.asked == [request.key for request in asked[:6]]
    again = third.asked[:4]
    assert again == [request.key for request in asked[2:6]]
    assert engine.counts == {"actors": 2.0, "restarts": 1.0, "asked_again": 4.0, "answered": 12.0}
    assert "actor 0 is lost (the actor died because of a signal) and started again" in capsys.readouterr().err


def test_requests_that_kill_every_actor_stop_the_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = opened(monkeypatch, Cluster([0] * 9), Ray(actors=1, max_failures=2))
    with pytest.raises(RunError, match=r"max_failures: actors .* lost again and again \(found 3 times in a row: the"):
        list(engine.generate(requests(1, 2)))


def test_what_an_actor_says_is_wrong_reaches_the_user_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = ModelError("no such directory", field="model.path", found="'gone'")
    cluster = Cluster([], problem=RayTaskError(problem))
    with pytest.raises(ModelError) as raised:
        opened(monkeypatch, cluster, Ray(actors=2))
    assert str(raised.value) == str(problem)
    assert all(actor.killed for actor in cluster.actors) and cluster.removed


def test_the_room_of_a_killed_predecessor_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster([])
    ray_engine.opened.clear()
    opened(monkeypatch, cluster, Ray())  # and never closed, as by a process that was killed
    ray_engine.opened.clear()
    assert not cluster.removed
    opened(monkeypatch, cluster, Ray())
    assert len(cluster.removed) == 1 and len(cluster.named) == 1
    opened(monkeypatch, cluster, Ray())
    assert len(cluster.removed) == 1 and len(cluster.named) == 2, "another engine of the same process has its own"


def test_a_cluster_without_room_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"no room for the engine's actors \(found 2 CPU free of 2 CPU\); 9 times"):
        opened(monkeypatch, Cluster([], room=False), Ray(actors=9))


def test_a_gpu_that_an_actor_would_not_see_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = opened(monkeypatch, Cluster([]), Ray())
    assert engine._resources() == {"CPU": 1.0}
    engine._served = replace(engine._served, model=Model(path="model", device="cuda"))
    with pytest.raises(ConfigError, match=r"an actor without a GPU sees none \(found 0 with model.device=cuda\)"):
        engine._resources()


def test_a_missing_ray_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"^engine: Ray is not installed .*; pip install 'whet\[ray\]'$"):
        connect(None, "engine")


def test_processes_of_the_cluster_import_what_this_one_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    places = environment()["PYTHONPATH"].split(":")
    assert str(Path(ray_engine.__file__).parents[2]) in places and str(tmp_path.resolve()) in places
    assert not any(place.endswith("site-packages") for place in places)


def test_a_server_each() -> None:
    with pytest.raises(ValueError, match=r"serve\.url names one server, and every actor has its own"):
        Ray(serve=Vllm(url="http://127.0.0.1:8000/v1"))
