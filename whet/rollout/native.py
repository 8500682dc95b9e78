"""The engine inside this process: a transformers causal LM, decoded by a loop of our own.

Why not `generate`: a sample must be a function of its request and the weights, and `generate` draws a whole batch from
one global stream. Here every request has its own stream, keyed by (seed, key); see `whet.rollout.sampling`. And a
prompt is computed and held once for all its samples, rows that have ended make room for waiting ones, and nothing is
padded; see `whet.rollout.decode`.

    engine = NativeEngine(model, tokenizer, batch_size=64, end_ids=end_ids(tokenizer, model))
    for completion in engine.generate(requests): ...

What remains is arithmetic: a batch of another shape may round its last bits differently, and a draw that falls within
that rounding of a boundary may pick the neighbour. On a CPU products of enough rows round alike (`least_rows`);
elsewhere callers who need the same bytes after a restart ask for the same lists of requests
(`whet.experience.collect` does).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby

import torch
from transformers import PreTrainedTokenizerBase

from whet.data.pictures import PictureReader
from whet.models.backbone import Backbone, max_positions, unwrapped
from whet.models.memory import decoding_tokens
from whet.models.mode import evaluating
from whet.models.recorded import Record
from whet.models.snapshot import Snapshot, Whole
from whet.rollout.continuations import continuation_logprobs
from whet.rollout.decode import Decoder
from whet.rollout.padded import PaddedDecoder
from whet.rollout.probe import trainer_logprobs
from whet.rollout.row import Row, before_stop
from whet.schema.rollouts import Completion, Request, Sampling

ENTER_AT = 0.25
"""Waiting groups enter when they fill so much of the batch: a prompt's pass for every row that ends would cost more."""


class NativeEngine:
    """An `Engine` over a model (plain or with an adapter) that the caller owns."""

    def __init__(
        self,
        model: torch.nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        *,
        batch_size: int,
        end_ids: tuple[int, ...],
        dtype: torch.dtype | None = None,
        pack_frozen: bool = False,
        reader: PictureReader | None = None,
        whole: Whole | None = None,
        record: Record | None = None,
    ) -> None:
        """With a `dtype` the engine generates from a copy of what differs from it: adapters folded in, weights cast.
        The copy follows the model at `sync`; `pack_frozen` copies more of it, to be faster (see `Snapshot`).
        Without a `dtype` it generates with the model as it is at every moment. `reader` loads the pictures of requests,
        where the model takes any; `whole` gathers weights that will be in parts (see `Snapshot`); `record` records
        decoding steps (`whet.models.recorded`)."""
        self._snapshot = Snapshot(model, dtype, pack_frozen=pack_frozen, whole=whole) if dtype is not None else None
        self._model = self._snapshot.model if self._snapshot is not None else model
        self._backbone = Backbone(self._model)
        self._tokenizer, self._batch_size, self._end_ids, self._reader = tokenizer, batch_size, end_ids, reader
        self._record = record
        self._pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
        self._max_positions = max_positions(model)
        self._most_tokens = decoding_tokens(self._model)
        self._version = 0

    def answers_with(self, model: torch.nn.Module) -> bool:
        """Whether it is this very model, and no copy, that answers."""
        return unwrapped(model) is unwrapped(self._model)

    def sync(self, version: int) -> None:
        """Generate with the model's weights as they are now; completions carry `version`."""
        if self._snapshot is not None:
            self._snapshot.refresh()
        self._version = version

    batched = True

    def generate(self, requests: Iterable[Request]) -> Iterator[Completion]:
        """Yield completions in the order of the requests, as they come."""
        for measured, part in groupby(requests, key=lambda request: bool(request.continuations)):
            same_kind = list(part)
            yield from self._measure(same_kind) if measured else self._draw(same_kind)

    def _measure(self, requests: Sequence[Request]) -> Iterator[Completion]:
        """Log-probs of the requests' continuations."""
        fit = [request for request in requests if self._problem(request) is None]
        logprobs = continuation_logprobs(self._model, fit, self._reader)
        for request in requests:
            if self._problem(request) is not None:
                yield self._refused(request)
            else:
                yield Completion(
                    key=request.key, ids=(), text="", logprobs=(), finish_reason="stop", policy_version=self._version,
                    continuation_logprobs=next(logprobs),
                )  # fmt: skip

    def _draw(self, requests: Sequence[Request]) -> Iterator[Completion]:
        for sampling, same in groupby(requests, key=lambda request: request.sampling):
            rows = [Row(request, self._limit(request)) for request in same]
            fit = [row for row in rows if self._problem(row.request) is None]
            running = {
                True: self._decode([row for row in fit if self._decodes(row)], sampling),
                False: self._decode_padded([row for row in fit if not self._decodes(row)]),
            }
            for row in rows:
                if self._problem(row.request) is not None:
                    yield self._refused(row.request)
                    continue
                while row.finish is None:
                    next(running[self._decodes(row)])
                yield self._completion(row)

    def stream(self, request: Request) -> Iterator[str]:
        """Yield the answer piece by piece; the pieces join to the completion's text.

        Raises ValueError where the prompt does not fit the model.
        """
        if problem := self._problem(request):
            raise ValueError(problem)
        row = Row(request, self._limit(request))
        running = self._decode([row], request.sampling) if self._decodes(row) else self._decode_padded([row])
        told = ""
        while row.finish is None:
            next(running)
            # The text of a token depends on its neighbours, so all is decoded anew; what may still change is held back:
            # the bytes of a character that is not whole, and a text that may turn out to end the answer.
            whole = self._text(row.ids).rstrip("\N{REPLACEMENT CHARACTER}")
            sure = whole[: len(whole) - _unsure(whole, request.sampling.stop)]
            if row.finish is None and len(sure) > len(told) and sure.startswith(told):
                yield sure[len(told) :]
                told = sure
        rest = before_stop(row, self._text)[len(told) :]
        if rest:
            yield rest

    def logprobs(self, ids: Sequence[int]) -> tuple[float, ...]:
        """Log-probs of a text's ids from the second on, under the weights that this engine answers with."""
        return trainer_logprobs(self._model, ids)

    def close(self) -> None:
        """Nothing to free: memory lives as long as its rows."""

    def _decodes(self, row: Row) -> bool:
        """Whether the model takes the row as it may become without padding."""
        return self._backbone.decodes(len(row.request.prompt_ids) + row.limit)

    def _decode(self, rows: Sequence[Row], sampling: Sampling) -> Iterator[None]:
        """Decode the rows, in their order; a step between two yields."""
        decoder = Decoder(
            self._model, self._backbone, end_ids=self._end_ids, text=self._text, reader=self._reader,
            record=self._record,
        )  # fmt: skip
        waiting = deque(self._groups(rows))
        inside: list[list[Row]] = []
        while waiting or any(row.finish is None for group in inside for row in group):
            inside = [group for group in inside if any(row.finish is None for row in group)]
            entering = self._entering(waiting, inside, decoder.num_running)
            if entering:
                decoder.enter(entering)
                inside += entering
            else:
                decoder.step()
            yield

    def _groups(self, rows: Sequence[Row]) -> Iterator[list[Row]]:
        """Neighbours with the same prompt, no more of them than fit the batch and the memory."""
        for (ids, _), same in groupby(rows, key=lambda row: row.prompt):
            group = list(same)
            room = max(1, (self._most_tokens - len(ids)) // max(row.limit for row in group))
            size = min(self._batch_size, room)
            yield from (group[start : start + size] for start in range(0, len(group), size))

    def _entering(self, waiting: deque[list[Row]], inside: Sequence[Sequence[Row]], running: int) -> list[list[Row]]:
        """Take from the waiting what the batch and the memory have room for; none while it is too little to bother."""
        chosen: list[list[Row]] = []
        for group in waiting:
            fits = (
                running + sum(map(len, chosen)) + len(group) <= self._batch_size
                and _tokens([*inside, *chosen, group]) <= self._most_tokens
            )
            if not fits and (running or chosen):
                break
            chosen.append(group)
        if running and len(chosen) < len(waiting) and sum(map(len, chosen)) < ENTER_AT * self._batch_size:
            return []
        for _ in chosen:
            waiting.popleft()
        return chosen

    def _decode_padded(self, rows: Sequence[Row]) -> Iterator[None]:
        for start in range(0, len(rows), self._batch_size):
            batch = rows[start : start + self._batch_size]
            decoder = PaddedDecoder(
                self._model, self._backbone, batch, end_ids=self._end_ids, pad_id=self._pad_id, text=self._text,
                reader=self._reader,
            )  # fmt: skip
            while decoder.running:
                with evaluating(self._model):
                    decoder.step()
                yield

    def _completion(self, row: Row) -> Completion:
        return Completion(
            key=row.request.key,
            ids=tuple(row.ids),
            text=before_stop(row, self._text),
            logprobs=tuple(row.logprobs),
            policy_logprobs=tuple(row.policy_logprobs),
            finish_reason=row.finish or "length",
            policy_version=self._version,
        )

    def _limit(self, request: Request) -> int:
        """A row ends where the model's positions end, with finish reason `length`."""
        budget = request.sampling.max_new_tokens
        if self._max_positions is None:
            return budget
        return min(budget, self._max_positions - len(request.prompt_ids))

    def _problem(self, request: Request) -> str | None:
        num = len(request.prompt_ids) + max(map(len, request.continuations), default=0)
        if num == 0:
            return "the prompt has no tokens"
        if request.pictures and self._reader is None:
            return "the prompt has pictures, and the model takes none"
        if self._max_positions is not None and num >= self._max_positions:
            return f"the prompt has {num} tokens and the model {self._max_positions} positions"
        return None

    def _refused(self, request: Request) -> Completion:
        return Completion(
            key=request.key, ids=(), text="", logprobs=(), finish_reason="error", error=self._problem(request),
            policy_version=self._version,
        )  # fmt: skip

    def _text(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))


def _unsure(text: str, stop: Sequence[str]) -> int:
    """Length of the longest end of the text with which a stop text begins."""
    return max((n for end in stop for n in range(1, len(end)) if text.endswith(end[:n])), default=0)


def _tokens(groups: Sequence[Sequence[Row]]) -> int:
    """Keys and values the groups may come to hold: every prompt and every row takes as much room as the longest."""
    prompts = max(len(group[0].request.prompt_ids) for group in groups)
    answers = max(row.limit for group in groups for row in group)
    return len(groups) * prompts + sum(map(len, groups)) * answers
