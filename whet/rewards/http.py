"""Scores from a server of the user's.

    POST url   {"prompts": ["2+3?"], "messages": [[{"role": "user", "content": "2+3?"}]],
                "completions": ["5"], "columns": [{"reference": "5"}]}
    200        {"scores": [1.0]}           a number, null (no score) or {"score": 1.0, "form": 0.5} for each completion

Without an answer in time, or after 408, 429 and 5xx, the request is made again after a pause that doubles, at least as
long as Retry-After says, within a minute. What fails in the end leaves its completions without a score. A redirect is
followed by nobody: the token and the completions are for this server.
"""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from whet.config.rewards import Http
from whet.data.picture_files import sent
from whet.rewards.reward import columns_of, no_answer, question
from whet.rewards.value import read_value
from whet.rollout.bearer import bearer
from whet.rollout.retry import AGAIN, pause, retry_after
from whet.schema.records import Message, Part, Prompt
from whet.schema.rollouts import Completion, Score

CHUNK_BYTES, LARGEST_BYTES = 1 << 16, 1 << 26
Pair = tuple[Prompt, Completion]


class NoReply(Exception):
    """A request that failed: why, and whether it may be made again, after how many seconds at least."""

    def __init__(self, reason: str, *, again: bool, after: float = 0.0) -> None:
        super().__init__(reason)
        self.again, self.after = again, after


class HttpReward:
    """Asks the server, some completions a request and some requests at a time."""

    def __init__(self, config: Http) -> None:
        """Raises ConfigError where the token's variable is not set."""
        self.config = config
        self._headers = {"Content-Type": "application/json", "Accept": "application/json"}
        self._headers |= bearer(config.token_env, "reward.token_env")
        self._opener = urllib.request.build_opener(_NoRedirect, _Http, _Https)

    def score(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[Score]:
        scores = [no_answer(completion) for completion in completions]
        pairs: list[Pair] = [
            (prompt, completion)
            for prompt, completion, failed in zip(prompts, completions, scores, strict=True)
            if failed is None
        ]
        batches = [pairs[start : start + self.config.batch] for start in range(0, len(pairs), self.config.batch)]
        with ThreadPoolExecutor(max_workers=self.config.concurrency) as pool:
            rest = iter([score for scored in pool.map(self._batch, batches) for score in scored])
        return [next(rest) if score is None else score for score in scores]

    def _batch(self, pairs: Sequence[Pair]) -> list[Score]:
        """The scores of one request; where it fails, each says why."""
        body = json.dumps(payload(pairs), ensure_ascii=False, default=str).encode()
        for attempt in range(self.config.retries + 1):
            try:
                return read_scores(self._post(body), len(pairs))
            except NoReply as error:
                reason = f"{self.config.url}: {error}"
                if not error.again or attempt == self.config.retries:
                    break
                time.sleep(max(pause(attempt, pairs[0][1].key), error.after))
        return [Score(value=None, error=reason) for _ in pairs]

    def _post(self, body: bytes) -> bytes:
        """The body of the reply. Raises NoReply."""
        request = urllib.request.Request(self.config.url, data=body, headers=self._headers, method="POST")
        deadline = time.monotonic() + self.config.timeout
        try:
            with self._opener.open(request, timeout=self.config.timeout) as reply:
                return _read(reply, deadline)
        except urllib.error.HTTPError as error:
            with error:
                again, after = error.code in AGAIN, retry_after(error.headers.get("Retry-After"))
                raise NoReply(f"status {error.code}", again=again, after=after) from None
        except (OSError, http.client.HTTPException) as error:
            raise NoReply(f"{type(error).__name__}: {error}", again=True) from None


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Leaves a redirect what it is: a status that is not 200."""

    def redirect_request(self, *args: Any, **named: Any) -> None:
        return None


class _Timed(http.client.HTTPConnection):
    """Gives headers that trickle no longer than the timeout, which by itself is for each byte."""

    late = False

    def getresponse(self) -> http.client.HTTPResponse:
        timer = threading.Timer(self.timeout or 0.0, self._give_up)
        timer.start()
        try:
            return super().getresponse()
        finally:
            timer.cancel()
            if self.late:  # headers that were cut pass for whole ones
                raise TimeoutError("timed out: the headers did not end") from None

    def _give_up(self) -> None:
        self.late = True
        with suppress(OSError, AttributeError):  # the reply may be there by now
            self.sock.shutdown(socket.SHUT_RDWR)


class _TimedTls(_Timed, http.client.HTTPSConnection):
    pass


class _Http(urllib.request.HTTPHandler):
    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_Timed, req)


class _Https(urllib.request.HTTPSHandler):
    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_TimedTls, req)


def payload(pairs: Sequence[Pair]) -> dict[str, list[Any]]:
    """What is sent: four lists of the same length."""
    return {
        "prompts": [question(prompt) for prompt, _ in pairs],
        "messages": [[_turn(turn) for turn in prompt.messages] for prompt, _ in pairs],
        "completions": [completion.text for _, completion in pairs],
        "columns": [columns_of(prompt) for prompt, _ in pairs],
    }


def _turn(turn: Message) -> dict[str, Any]:
    """In OpenAI's form: pictures go along, since the server may be elsewhere."""
    if isinstance(turn.content, str):
        return {"role": turn.role, "content": turn.content}
    return {"role": turn.role, "content": [_part(part) for part in turn.content]}


def _part(part: Part) -> dict[str, Any]:
    if part.type == "text":
        return {"type": "text", "text": part.value}
    return {"type": "image_url", "image_url": {"url": sent(part.value)}}


def read_scores(body: bytes, num: int) -> list[Score]:
    """One score a completion. Raises NoReply for a body of another form."""
    try:
        reply = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise NoReply(f"the reply is no JSON: {error}", again=False) from None
    values = reply.get("scores") if isinstance(reply, dict) else None
    if not isinstance(values, list) or len(values) != num:
        found = f"{len(values)} scores" if isinstance(values, list) else "no list `scores`"
        raise NoReply(f"the reply must hold {num} scores (found {found})", again=False)
    return [_score(value) for value in values]


def _score(value: object) -> Score:
    said = read_value(value)
    if "error" in said:
        return Score(value=None, error=f"the server {said['error']}")
    return Score(value=said["value"], parts=said["parts"])


def _read(reply: http.client.HTTPResponse, deadline: float) -> bytes:
    """The whole body. Raises TimeoutError for one that trickles, OSError for one without end."""
    pieces: list[bytes] = []
    size = 0
    while piece := reply.read1(CHUNK_BYTES):
        pieces.append(piece)
        size += len(piece)
        if time.monotonic() > deadline:
            raise TimeoutError("the reply did not end in time")
        if size > LARGEST_BYTES:
            raise OSError(f"the reply is larger than {LARGEST_BYTES:,} bytes")
    return b"".join(pieces)

