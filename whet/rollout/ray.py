"""Engines as actors of a Ray cluster: requests are dealt to all of them, answers come back in order.

    engine = RayEngine(config, served, answering)
    engine = RayEngine(config, served, answering, follows=Followed(model=policy, tokenizer=tokenizer), dtype=dtype)
    engine.sync(version=40)

A list of requests is cut into pieces, and whichever actor is free takes the next. What a piece says does not depend on
who takes it: a sample's randomness is a function of its seed and its key. An actor that is lost is started again with
the weights that it had; what it had answered stays, the rest of its piece is asked again.

Weights go through Ray's object store, once for all actors: what trains, so an adapter alone where one does. After every
sync each actor's log-probs of a probe text are compared with the trainer's (`whet.rollout.probe`).
"""

from __future__ import annotations

import os
import sys
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import torch

from whet.config.engine import Native, Ray, Vllm
from whet.errors import ConfigError, RunError
from whet.rollout.answerer import Answerer, Role, Weights
from whet.rollout.build import Answering, Served
from whet.rollout.cluster import answer_of, connect, described, lost_errors, room
from whet.rollout.probe import TEXT, Seen, check_sync, trainer_logprobs
from whet.rollout.vllm import Followed
from whet.schema.rollouts import Completion, Request

FIELD = "rollout.engine"
opened: Counter[tuple[str, str]] = Counter()
"""Engines that this process has opened, by folder and rank."""
SAY_AFTER = 10.0
"""Seconds after which a person is told what the engine waits for."""


@dataclass(slots=True, eq=False)
class Seat:
    """The place of an actor in the cluster, and who sits there."""

    number: int
    actor: Any = None
    seen: Seen | None = None
    """The probe at the last sync."""


@dataclass(slots=True, eq=False)
class Piece:
    """Requests that an actor answers together; those that are answered leave it."""

    asked: dict[str, Request]
    seat: Seat | None = None
    times_lost: int = 0


class RayEngine:
    """An `Engine` over actors that this process starts and ends."""

    batched = True

    def __init__(
        self, config: Ray, served: Served, answering: Answering, *, follows: Followed | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:  # fmt: skip
        """Comes back when every actor has its model. `dtype` is that of the products of the model that is followed.
        Raises UserError where the actors cannot be had, or cannot load the model."""
        self._ray = connect(config.address, f"{FIELD}.address")
        self._config, self._served, self._answering, self._follows = config, served, answering, follows
        self._dtype = dtype if follows is not None else None
        ids = tuple(follows.tokenizer(TEXT).input_ids) if follows is not None else ()
        self._probe_ids: tuple[int, ...] = ids
        self._weights: Any = None
        """A reference to what the actors must have: it stays in the object store for those that are started again."""
        self._trainer: tuple[float, ...] = ()
        self._restarts = self._asked_again = self._answered = 0
        self._seats = [Seat(number) for number in range(config.actors)]
        self._bundle = self._resources()
        self._group = self._placed()
        try:
            self._start(self._seats)
        except BaseException:
            self.close()
            raise

    def generate(self, requests: Iterable[Request]) -> Iterator[Completion]:
        """Yield completions in the order of the requests, as they come. Raises RunError where actors are lost again and
        again, and whatever UserError an actor raises."""
        if self._follows is not None and self._weights is None:
            self.sync(0)
        asked = list(requests)
        waiting = deque(Piece({request.key: request for request in part}) for part in self._pieces(asked))
        running: dict[Any, Piece] = {}
        made: dict[str, Completion] = {}
        told = 0
        while told < len(asked):
            self._deal(waiting, running)
            ready, _ = self._ray.wait(list(running), num_returns=1, fetch_local=True)
            for stream in ready:
                piece = running[stream]
                try:
                    completions = self._next(stream)
                except _Lost as lost:
                    del running[stream]
                    self._again(piece, str(lost))
                    waiting.appendleft(piece)
                    continue
                if completions is None:
                    del running[stream]
                    piece.seat = None
                    continue
                for completion in completions:
                    del piece.asked[completion.key]
                    made[completion.key] = completion
                    self._answered += 1
            while told < len(asked) and asked[told].key in made:
                yield made.pop(asked[told].key)
                told += 1

    def sync(self, version: int) -> None:
        """Give every actor the weights of the model in training. Raises RunError where they do not arrive."""
        if self._follows is None:
            return
        model = self._follows.model
        trained = [(name, value) for name, value in model.named_parameters() if value.requires_grad]
        values = {name: value.detach().cpu().numpy() for name, value in trained}
        self._weights = self._ray.put(Weights(version=version, values=values))
        self._trainer = trainer_logprobs(model, self._probe_ids)
        self._hand_out(self._seats)

    def close(self) -> None:
        """End the actors and give their places back."""
        for seat in self._seats:
            if seat.actor is not None:
                self._ray.kill(seat.actor)
            seat.actor = None
        if self._group is not None:
            self._ray.util.remove_placement_group(self._group)
        self._group = self._weights = None

    @property
    def counts(self) -> Mapping[str, float]:
        """Actors; how many were started again; requests that were asked again for that; requests answered."""
        return {
            "actors": float(len(self._seats)), "restarts": float(self._restarts),
            "asked_again": float(self._asked_again), "answered": float(self._answered),
        }  # fmt: skip

    def _pieces(self, requests: Sequence[Request]) -> Iterator[list[Request]]:
        """Equal shares, no larger than what an actor decodes at once; samples of a prompt stay together."""
        even = -(-len(requests) // len(self._seats)) or 1
        most = min(even, self._answering.batch_size) if isinstance(self._config.serve, Native) else even
        piece: list[Request] = []
        for _, same in groupby(requests, key=lambda request: (request.prompt_ids, request.pictures)):
            group = list(same)
            if piece and len(piece) + len(group) > most:
                yield piece
                piece = []
            piece += group
        if piece:
            yield piece

    def _deal(self, waiting: deque[Piece], running: dict[Any, Piece]) -> None:
        """A piece for every actor that has none."""
        busy = {piece.seat for piece in running.values()}
        for seat in self._seats:
            while seat not in busy and waiting:
                piece = waiting.popleft()
                if not piece.asked:  # its actor was lost after the last answer
                    continue
                if seat.actor is None:
                    self._start([seat])
                piece.seat = seat
                asked = list(piece.asked.values())
                running[seat.actor.generate.options(num_returns="streaming").remote(asked)] = piece
                break

    def _next(self, stream: Any) -> tuple[Completion, ...] | None:
        """What a stream has to say; None at its end. Raises _Lost where its actor is gone."""
        try:
            reference = next(stream)
        except StopIteration:
            return None
        said: tuple[Completion, ...] = self._get(reference)
        return said

    def _get(self, reference: Any) -> Any:
        """What an actor has returned. Raises _Lost, or the UserError that it raised."""
        try:
            return answer_of(self._ray, reference)
        except lost_errors(self._ray) as error:
            raise _Lost(_first_words(error)) from None

    def _again(self, piece: Piece, reason: str) -> None:
        """Take note of a loss: the actor's seat is empty, and its piece waits. Raises RunError for one too many."""
        assert piece.seat is not None
        seat, piece.seat = piece.seat, None
        piece.times_lost += 1
        self._asked_again += len(piece.asked)
        self._empty(seat, reason, what=f"{len(piece.asked)} requests are asked again")
        if piece.times_lost > self._config.max_failures:
            self._give_up(reason)

    def _empty(self, seat: Seat, reason: str, *, what: str) -> None:
        self._ray.kill(seat.actor)  # it may be cut off rather than dead
        seat.actor = None
        self._restarts += 1
        print(f"engine: actor {seat.number} is lost ({reason}) and started again; {what}", file=sys.stderr)

    def _give_up(self, reason: str) -> None:
        raise RunError(
            "actors of the engine are lost again and again", field=f"{FIELD}.max_failures",
            found=f"{self._config.max_failures + 1} times in a row: {reason}",
            fix="if the memory is too small, lower rollout.batch_size; the same command goes on from here",
        )  # fmt: skip

    def _start(self, seats: Sequence[Seat]) -> None:
        """An actor on each of these seats, with the model and the weights that are followed."""
        for attempt in range(self._config.max_failures + 1):
            empty = [seat for seat in seats if seat.actor is None]
            opened = []
            for seat in empty:
                seat.actor, seat.seen = self._actor(seat), None
                opened.append((seat, seat.actor.open.remote(self._role(seat))))
            lost = self._gather(opened, "loading the model")
            if lost is None:
                break
            if attempt == self._config.max_failures:
                self._give_up(lost)
        if self._weights is not None:
            self._hand_out(seats)

    def _hand_out(self, seats: Sequence[Seat]) -> None:
        """The weights to the actors on these seats, and the check that they have them."""
        told = {seat: seat.actor.take.remote(self._weights) for seat in seats if seat.actor is not None}
        for seat, reference in told.items():
            try:
                engine = self._get(reference)
            except _Lost as lost:
                self._empty(seat, str(lost), what="it gets the weights anew")
                self._start([seat])
                continue
            before, seat.seen = seat.seen, Seen(trainer=self._trainer, server=engine)
            check_sync(seat.seen, before, self._config.sync_tolerance)

    def _gather(self, told: Sequence[tuple[Seat, Any]], what: str) -> str | None:
        """Wait for all; the seats of those that are lost become empty, and the reason of one of them comes back."""
        reason = None
        for seat, reference in told:
            try:
                self._get(reference)
            except _Lost as lost:
                reason = str(lost)
                self._empty(seat, reason, what=f"it was {what}")
        return reason

    def _actor(self, seat: Seat) -> Any:
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        place = PlacementGroupSchedulingStrategy(self._group, placement_group_bundle_index=seat.number)
        return self._ray.remote(
            num_cpus=self._bundle["CPU"], num_gpus=self._bundle.get("GPU", 0), scheduling_strategy=place,
            max_restarts=0,
        )(Answerer).remote()  # fmt: skip

    def _role(self, seat: Seat) -> Role:
        serve = self._config.serve
        folder = self._served.folder / f"actor-{seat.number}" if isinstance(serve, Vllm) else self._served.folder
        return Role(
            directory=os.getcwd(), serve=serve, served=replace(self._served, folder=folder), answering=self._answering,
            follows=self._dtype, probe_ids=self._probe_ids,
        )  # fmt: skip

    def _resources(self) -> dict[str, float]:
        """What an actor reserves. An actor without a GPU of its own sees none, so one is asked for where there are any.
        Raises ConfigError where the plan asks for a device that the actor would not see."""
        gpus, device = self._config.gpus, self._served.model.device
        if gpus is None:
            there = self._ray.cluster_resources().get("GPU", 0) > 0
            gpus = 1.0 if there and (device == "auto" or device.startswith("cuda")) else 0.0
        if gpus == 0 and device.startswith("cuda"):
            raise ConfigError(
                "an actor without a GPU sees none", field=f"{FIELD}.gpus", found=f"0 with model.device={device}",
                fix="set gpus=1, or model.device=cpu",
            )  # fmt: skip
        return {"CPU": self._config.cpus} | ({"GPU": gpus} if gpus else {})

    def _name(self) -> str:
        """Of the engine's room: who is started again in its place finds it by this."""
        place = (str(self._served.folder.absolute()), os.environ.get("RANK", "0"))
        opened[place] += 1
        return f"whet-engine {place[0]} rank {place[1]} number {opened[place]}"

    def _placed(self) -> Any:
        """Room for all actors, reserved together: half an engine would hold what another one waits for."""
        config, ray = self._config, self._ray
        strategy = {"pack": "PACK", "spread": "SPREAD"}[config.placement]
        name = self._name()
        with suppress(ValueError):  # Ray keeps the room of an engine whose process was killed, for as long as the job
            ray.util.remove_placement_group(ray.util.get_placement_group(name))
        group = ray.util.placement_group([dict(self._bundle) for _ in self._seats], strategy=strategy, name=name)
        if group.wait(SAY_AFTER):
            return group
        wanted = f"{config.actors} times {described(self._bundle)}"
        found = room(ray)
        print(f"engine: waits for {wanted} on the cluster ({found})", file=sys.stderr)
        if not group.wait(config.start_timeout):
            ray.util.remove_placement_group(group)
            raise ConfigError(
                "the cluster has no room for the engine's actors", field=f"{FIELD}.actors", found=found,
                fix=f"{wanted} are asked for: lower actors, cpus or gpus, or add nodes",
            )  # fmt: skip
        return group


class _Lost(Exception):
    """An actor that will not answer any more, and why."""


def _first_words(error: Exception) -> str:
    """A reason on one line."""
    return " ".join(str(error).split())[:160]
