"""The engine behind an API: requests go out as they are pulled, answers come back in any order.

    engine = ServerEngine(urls, wire, concurrency=16, timeout=600, retries=6)
    for completion in engine.generate(requests): ...

One thread runs an event loop with all open connections; the caller's thread pulls requests and takes completions, so
nothing above needs to know of either. What fails is made again; what fails for ever is a completion with its reason.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from queue import SimpleQueue
from typing import Any, Literal, TypeVar

import aiohttp

from whet.errors import ConfigError, DataError, RunError
from whet.ranks.pulse import beat
from whet.rollout.endpoints import Endpoint, Endpoints
from whet.rollout.retry import AGAIN, pause, retry_after
from whet.rollout.running import Running
from whet.rollout.wire import NotReadable, Usage, complaint, failed, read_last_logprobs, read_reply
from whet.schema.rollouts import Completion, Request

T = TypeVar("T")
Reader = Callable[[bytes], tuple[T, Usage]]
Arrived = tuple[int, Completion | BaseException, bool]
"""A request's number, what has come of it, and whether the server did not take it."""

AHEAD = 2
"""Requests that are pulled at a time, in multiples of those that wait for an answer: none of these then waits for the
caller."""
WINDOW = 16
"""How far the newest request may be from the oldest unanswered one, in the same multiples."""
MOST_IN_A_ROW = 8
"""Requests that may fail one after another, each in a way of its own, before the server is what fails."""
ACCOUNT = (401, 402, 403, 404)
"""A key, money or a model that is not there: no request to come has a better chance."""
SLOW = (408, 500, 504)
"""May be a request's own fault, like no answer in time: others may be answered."""
GO_ON = "mend it; the same command goes on with the answers that are there"
CANNOT_MEASURE = "this server does not tell the log-probs of given continuations"


@dataclass(frozen=True, slots=True, kw_only=True)
class Manner:
    """How a kind of server is talked to."""

    written: Callable[[Request], tuple[str, Mapping[str, Any]]]
    """The path behind the base URL, `/chat/completions`, and the body."""
    headers: Mapping[str, str]
    local: bool = False
    """On this machine: proxies of the environment are not asked."""
    field: str = "rollout.engine"
    """What to name in an error."""
    prices: tuple[float, float] = (0.0, 0.0)
    """Of a million prompt tokens and of a million generated ones."""
    problem: Callable[[Request], str | None] = lambda request: None
    """What is wrong with a request that need not be sent."""
    same_prompt: bool = False
    """The server has our tokenizer and template: an answer to other ids than ours is an error."""
    measures: Callable[[Request], Sequence[tuple[str, Mapping[str, Any]]]] | None = None
    """As `written`, for each of a request's continuations; None where the server cannot say how likely they are."""


class _Again(Exception):
    """An attempt that failed and may be made again, after some seconds at least. `blames` says what failed if it never
    succeeds: this request, a server that is down, or one that no longer serves us."""

    def __init__(
        self, reason: str, *, after: float = 0.0, blames: Literal["request", "server", "account"] = "request"
    ) -> None:
        super().__init__(reason)
        self.after, self.blames = after, blames


class _Refused(Exception):
    """An answer that will not change: this request has no completion. `by_server`: it was sent, and not taken."""

    def __init__(self, reason: str, *, by_server: bool = False) -> None:
        super().__init__(reason)
        self.by_server = by_server


class ServerEngine:
    """An `Engine` over one or several servers of the same model."""

    batched = False

    def __init__(
        self, urls: tuple[str, ...], manner: Manner, *, concurrency: int, timeout: float, retries: int
    ) -> None:
        self.manner, self.version = manner, 0
        self._endpoints = Endpoints(urls)
        self._concurrency, self._timeout, self._retries = concurrency, timeout, retries
        self._counts = {"answered": 0.0, "failed": 0.0, "retries": 0.0, "prompt_tokens": 0.0, "completion_tokens": 0.0}
        self._running: Running | None = None
        self._lost, self._lost_at = 0, 0
        """Requests given up since the last answer, and how many answers there were then."""
        self._refused = 0
        """Requests of earlier calls that were refused while nothing was ever answered."""

    def generate(self, requests: Iterable[Request]) -> Iterator[Completion]:
        """Yield completions as they come. Raises ConfigError where the server refuses the key or the model, and
        RunError where it does not answer, not any more, or with refusals alone: what it has answered is yielded
        first."""
        if self._running is None:
            self._running = Running(self._concurrency, local=self.manner.local)
        running, arrived = self._running, SimpleQueue[Arrived]()
        rest, ended, pulled = iter(requests), False, 0
        tasks: dict[int, asyncio.Future[None]] = {}
        refused, held = set[int](), list[Completion]()
        try:
            while True:
                while not ended and self._may_pull(tasks, pulled):
                    request = next(rest, None)
                    if request is None:
                        ended = True
                    else:
                        tasks[pulled] = running.start(self._complete(request, pulled, arrived))
                        pulled += 1
                if not tasks:
                    self._refused += len(refused)
                    yield from held
                    return
                number, result, not_taken = arrived.get()
                del tasks[number]
                if isinstance(result, BaseException):
                    yield from _answered(arrived)
                    raise result
                beat()
                held.append(result)
                if not_taken and not self._counts["answered"]:
                    refused.add(number)
                    # Whose fault it is shows once the oldest are through: a refusal comes sooner than an answer.
                    oldest = next(iter(tasks), pulled)
                    if self._refused + sum(one < oldest for one in refused) >= MOST_IN_A_ROW:
                        raise RunError(
                            "the server refuses all requests", field=self.manner.field, found=result.error, fix=GO_ON
                        )
                    continue
                yield from held
                held.clear()
        finally:
            running.cancel(tasks.values())

    def _may_pull(self, tasks: Mapping[int, object], pulled: int) -> bool:
        if not tasks:
            return True
        oldest = next(iter(tasks))  # they are put in by number
        return len(tasks) < AHEAD * self._concurrency and pulled - oldest < WINDOW * self._concurrency

    def sync(self, version: int) -> None:
        """The servers' weights are their own."""
        self.version = version

    def close(self) -> None:
        if self._running is not None:
            self._running.stop()
        self._running = None

    @property
    def counts(self) -> Mapping[str, float]:
        """Of this process: requests answered and failed, attempts made again, tokens as the servers counted them, and
        what they cost where that is known."""
        prompt, completion = self.manner.prices
        cost = (self._counts["prompt_tokens"] * prompt + self._counts["completion_tokens"] * completion) / 1e6
        return self._counts | ({"cost": round(cost, 6)} if prompt or completion else {})

    async def _complete(self, request: Request, number: int, arrived: SimpleQueue[Arrived]) -> None:
        try:
            arrived.put((number, await self._answer(request), False))
        except _Refused as error:
            self._counts["failed"] += 1
            arrived.put((number, failed(request, str(error)), error.by_server))
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # whatever it is, the caller's thread must hear of it
            arrived.put((number, error, False))

    async def _answer(self, request: Request) -> Completion:
        assert self._running is not None
        unmeasured = request.continuations and self.manner.measures is None
        if problem := CANNOT_MEASURE if unmeasured else self.manner.problem(request):
            raise _Refused(problem)
        async with self._running.places:
            completion = await (self._measured(request) if request.continuations else self._drawn(request))
        self._counts["answered"] += 1
        self._counts["failed"] += completion.finish_reason == "error"
        return replace(completion, policy_version=self.version)

    async def _drawn(self, request: Request) -> Completion:
        try:
            if request.pictures:  # they are read and encoded, for which other requests need not wait
                path, body = await asyncio.to_thread(self.manner.written, request)
            else:
                path, body = self.manner.written(request)
        except DataError as error:
            raise _Refused(str(error)) from None
        read = partial(read_reply, request, same_prompt=self.manner.same_prompt)
        return await self._ask_until(request.key, path, body, read)

    async def _measured(self, request: Request) -> Completion:
        assert self.manner.measures is not None
        logprobs = [
            await self._ask_until(request.key, path, body, partial(read_last_logprobs, len(ids)))
            for ids, (path, body) in zip(request.continuations, self.manner.measures(request), strict=True)
        ]
        return Completion(
            key=request.key, ids=(), text="", logprobs=(), finish_reason="stop", continuation_logprobs=tuple(logprobs)
        )

    async def _ask_until(self, name: str, path: str, body: Mapping[str, Any], read: Reader[T]) -> T:
        """Ask, again where that may help. Raises _Refused with the last reason where it did not, and RunError where the
        server is what fails: then no request shall pass for one that cannot be answered."""
        answered, last = self._endpoints.num_answered, _Again("")
        for attempt in range(self._retries + 1):
            try:
                said, usage = await self._ask(path, body, read)
            except _Again as error:
                last = error
                if attempt < self._retries:
                    self._counts["retries"] += 1
                    answered = self._endpoints.num_answered
                    await asyncio.sleep(max(pause(attempt, name), error.after))
                continue
            self._counts["prompt_tokens"] += usage.prompt_tokens
            self._counts["completion_tokens"] += usage.completion_tokens
            return said
        self._give_up(last, answered)
        raise _Refused(str(last))

    def _give_up(self, last: _Again, answered: int) -> None:
        """Raises RunError where no other request fares better. `answered` were there before the last and longest
        pause."""
        found, field, now = str(last), self.manner.field, self._endpoints.num_answered
        if not now:
            raise RunError("the server does not answer", field=field, found=found)
        if last.blames == "account":
            raise RunError("the server refuses all requests by now", field=field, found=found, fix=GO_ON)
        self._lost = self._lost + 1 if self._lost_at == now else 1
        self._lost_at = now
        if (last.blames == "server" and now == answered) or self._lost >= MOST_IN_A_ROW:
            raise RunError("the server does not answer any more", field=field, found=found, fix=GO_ON)

    async def _ask(self, path: str, asked: Mapping[str, Any], read: Reader[T]) -> tuple[T, Usage]:
        endpoint = self._endpoints.take()
        done = False
        try:
            status, headers, body = await self._post(endpoint, path, asked)
            if status in AGAIN:
                raise _Again(
                    f"{endpoint.url}: status {status} {complaint(body)}".rstrip(),
                    after=retry_after(headers.get("retry-after")), blames="request" if status in SLOW else "server",
                )  # fmt: skip
            if status != 200:
                self._refuse(endpoint, status, body)
            read_whole = read(body)
            done = True
        except NotReadable as error:
            raise _Again(f"{endpoint.url}: {error}") from None
        except _Refused:
            done = True
            raise
        finally:
            (self._endpoints.answered if done else self._endpoints.failed)(endpoint)
        return read_whole

    async def _post(
        self, endpoint: Endpoint, path: str, body: Mapping[str, Any]
    ) -> tuple[int, Mapping[str, str], bytes]:
        assert self._running is not None
        try:
            async with (
                asyncio.timeout(self._timeout),
                self._running.session.post(
                    endpoint.url + path, json=body, headers=self.manner.headers, allow_redirects=False
                ) as reply,
            ):
                return reply.status, reply.headers, await reply.read()
        except TimeoutError:
            raise _Again(f"{endpoint.url}: no answer in {self._timeout:g} s") from None
        except aiohttp.InvalidURL as error:
            raise ConfigError("is no URL", field=self.manner.field, found=f"{endpoint.url}: {error}") from None
        except (aiohttp.ClientError, OSError) as error:
            reason = f"{endpoint.url}: {type(error).__name__} {error}".rstrip()
            raise _Again(reason, blames="server") from None

    def _refuse(self, endpoint: Endpoint, status: int, body: bytes) -> None:
        """Raises UserError for what stands in the plan, _Refused for what is in the request alone, and _Again for what
        has been otherwise before."""
        said = complaint(body)
        found = f"{endpoint.url}: status {status} {said}".rstrip()
        if endpoint.num_answered:
            raise _Again(found, blames="account") if status in ACCOUNT else _Refused(found, by_server=True)
        raise_for(status, found, self.manner.field)
        raise _Refused(found, by_server=True)


def _answered(arrived: SimpleQueue[Arrived]) -> Iterator[Completion]:
    """What has come already."""
    while not arrived.empty():
        _, result, _ = arrived.get()
        if isinstance(result, Completion):
            yield result


def raise_for(status: int, found: str, field: str) -> None:
    """Raises ConfigError for what no request to this server can mend."""
    if status in (401, 403):
        raise ConfigError(
            "the server refuses the key", field=field, found=found, fix="name the variable that holds one: token_env"
        )
    if status == 402:
        raise ConfigError("the account has no money", field=field, found=found, fix="fill it, or take another key")
    if status in (404, 405):
        raise ConfigError(
            "the server has no such model or path", field=field, found=found,
            fix="check the model's name, and that the URL ends in /v1",
        )  # fmt: skip
