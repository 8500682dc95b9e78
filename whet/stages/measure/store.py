"""Replies as they come, so that a killed evaluation asks for none of them twice.

One line of `replies.jsonl`: {"owner", "task", "key", "digest", "text", "num_tokens", "finish_reason", "error"}.
`owner` is the model that spoke. The digest covers prompt ids, pictures, sampling and seed: a reply to another question
is not taken for this one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import IO

from whet.rollout.engine import Engine
from whet.runs.files import appending, json_line, read_jsonl
from whet.runs.sinks import Progress
from whet.schema.rollouts import FinishReason, Request


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What of a completion an evaluation keeps."""

    owner: str
    task: str
    key: str
    digest: str
    text: str
    num_tokens: int
    finish_reason: FinishReason
    error: str | None = None


class ReplyStore:
    """Replies by owner, task and key; kept in a file, or only in memory where `path` is None."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        rows = read_jsonl(path) if path is not None else []
        self._replies = {(row["owner"], row["task"], row["key"]): Reply(**row) for row in rows}

    def find(self, owner: str, task: str, request: Request) -> Reply | None:
        reply = self._replies.get((owner, task, request.key))
        return reply if reply is not None and reply.digest == digest(request) else None

    def answer(
        self,
        owner: str,
        task: str,
        requests: Sequence[Request],
        open_engine: Callable[[], Engine],
        *,
        round_size: int,
    ) -> list[Reply]:
        """Replies to all requests, in their order, drawn in fixed rounds of `round_size`.

        A round that a kill cut short is drawn again as a whole and what is stored of it stays: a batched engine then
        sees the same lists of requests, so the same batches, so the same bytes. Others are asked for what is missing.
        The engine is opened only where something is.
        """
        unknown = [request for request in requests if self.find(owner, task, request) is None]
        if unknown:
            engine = open_engine()
            if engine.batched:
                rounds = [requests[start : start + round_size] for start in range(0, len(requests), round_size)]
                missing = [part for part in rounds if any(self.find(owner, task, request) is None for request in part)]
            else:
                missing = [unknown]
            done = len(requests) - sum(map(len, missing))
            with self._lines() as lines, Progress(f"{owner} · {task}", len(requests), done=done) as progress:
                for part in missing:
                    for reply in _draw(owner, task, part, engine):
                        self._keep(reply, lines)
                        progress.update()
        return [self._replies[owner, task, request.key] for request in requests]

    def _keep(self, reply: Reply, lines: IO[str] | None) -> None:
        known = self._replies.get((reply.owner, reply.task, reply.key))
        if known is not None and known.digest == reply.digest:
            return
        self._replies[reply.owner, reply.task, reply.key] = reply
        if lines is not None:
            lines.write(json_line(asdict(reply)))
            lines.flush()

    def counts(self) -> dict[str, float]:
        """How many replies there are, how long they were together, how many failed or hit their limit."""
        replies = self._replies.values()
        return {
            "replies": len(replies),
            "reply_tokens": sum(reply.num_tokens for reply in replies),
            "replies_cut": sum(reply.finish_reason == "length" for reply in replies),
            "replies_failed": sum(reply.finish_reason == "error" for reply in replies),
        }

    def _lines(self) -> AbstractContextManager[IO[str] | None]:
        return appending(self.path) if self.path is not None else nullcontext()


def _draw(owner: str, task: str, requests: Sequence[Request], engine: Engine) -> Iterator[Reply]:
    asked = {request.key: request for request in requests}
    for completion in engine.generate(requests):
        yield Reply(
            owner=owner,
            task=task,
            key=completion.key,
            digest=digest(asked[completion.key]),
            text=completion.text,
            num_tokens=completion.num_tokens,
            finish_reason=completion.finish_reason,
            error=completion.error,
        )


def digest(request: Request) -> str:
    """Names what was asked: prompt ids, sampling, seed, and what the pictures show."""
    pictures = (picture.digest for picture in request.pictures)
    asked = repr((request.prompt_ids, astuple(request.sampling), request.seed, *pictures))
    return hashlib.sha256(asked.encode()).hexdigest()[:16]
