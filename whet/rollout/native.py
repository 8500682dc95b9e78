"""The engine inside this process: a transformers causal LM, decoded in batches by a loop of our own.

Why not `generate`: a sample must be a function of its request and the weights, and `generate` draws a whole batch from
one global stream. Here every request has its own stream, keyed by (seed, key); see `whet.rollout.sampling`.

    engine = NativeEngine(model, tokenizer, batch_size=64, end_ids=end_ids(tokenizer, model))
    for completion in engine.generate(requests): ...

What remains is arithmetic: a batch of another shape may round its last bits differently, and a draw that falls within
that rounding of a boundary may pick the neighbour. Callers who need the same bytes after a restart ask for the same
lists of requests (`whet.experience.collect` does); batches are a function of the list alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from transformers import PreTrainedTokenizerBase

from whet.models.mode import evaluating
from whet.rollout.decode import Decoder, Row
from whet.schema.rollouts import Completion, Request

WINDOW = 8
"""Batches that are sorted by length together: less padding, while answers still come in the order of the requests."""


class NativeEngine:
    """An `Engine` over a model (plain or with an adapter) that the caller owns."""

    def __init__(
        self,
        model: torch.nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        *,
        batch_size: int,
        end_ids: tuple[int, ...],
    ) -> None:
        self._model, self._tokenizer, self._batch_size, self._end_ids = model, tokenizer, batch_size, end_ids
        self._pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
        self._max_positions = _max_positions(model)

    def generate(self, requests: Sequence[Request]) -> Iterator[Completion]:
        """Yield completions in the order of the requests, window by window."""
        size = WINDOW * self._batch_size
        for start in range(0, len(requests), size):
            window = requests[start : start + size]
            done: dict[int, Completion] = {}
            for batch in self._batches(window):
                done.update(zip(batch, self._complete([window[index] for index in batch]), strict=True))
            for index, request in enumerate(window):
                yield done[index] if index in done else self._refused(request)

    def stream(self, request: Request) -> Iterator[str]:
        """Yield the answer piece by piece; the pieces join to the completion's text.

        Raises ValueError where the prompt does not fit the model.
        """
        if problem := self._problem(request):
            raise ValueError(problem)
        decoder = self._decoder([request])
        ids = decoder.rows[0].ids
        done, read = 0, 0
        while decoder.running:
            with evaluating(self._model):
                decoder.step()
            # The text of a token depends on its neighbours: decode from the last boundary, and wait while the bytes
            # of a character are incomplete.
            whole = self._text(ids[done:])
            if whole.endswith("\N{REPLACEMENT CHARACTER}"):
                continue
            piece = whole[len(self._text(ids[done:read])) :]
            done, read = read, len(ids)
            if piece:
                yield piece
        rest = self._text(ids[done:])[len(self._text(ids[done:read])) :]
        if rest:
            yield rest

    def close(self) -> None:
        """Nothing to free: caches live as long as their batch."""

    def _batches(self, window: Sequence[Request]) -> Iterator[list[int]]:
        """Indices of requests that run together: same settings, neighbours in length, shared prompts side by side."""
        fit = [index for index, request in enumerate(window) if self._problem(request) is None]
        first: dict[tuple[int, ...], int] = {}
        settings: dict[object, list[int]] = {}
        for index in fit:
            first.setdefault(window[index].prompt_ids, index)
            settings.setdefault(window[index].sampling, []).append(index)
        for same in settings.values():
            same.sort(key=lambda index: (-len(window[index].prompt_ids), first[window[index].prompt_ids], index))
            for start in range(0, len(same), self._batch_size):
                yield same[start : start + self._batch_size]

    def _complete(self, requests: Sequence[Request]) -> list[Completion]:
        decoder = self._decoder(requests)
        with evaluating(self._model):
            while decoder.running:
                decoder.step()
        return [self._completion(row) for row in decoder.rows]

    def _decoder(self, requests: Sequence[Request]) -> Decoder:
        rows = [Row(request, self._limit(request)) for request in requests]
        return Decoder(self._model, rows, end_ids=self._end_ids, pad_id=self._pad_id)

    def _completion(self, row: Row) -> Completion:
        return Completion(
            key=row.request.key,
            ids=tuple(row.ids),
            text=self._text(row.ids),
            logprobs=tuple(row.logprobs),
            finish_reason=row.finish or "length",
        )

    def _limit(self, request: Request) -> int:
        """A row ends where the model's positions end, with finish reason `length`."""
        budget = request.sampling.max_new_tokens
        if self._max_positions is None:
            return budget
        return min(budget, self._max_positions - len(request.prompt_ids))

    def _problem(self, request: Request) -> str | None:
        num = len(request.prompt_ids)
        if num == 0:
            return "the prompt has no tokens"
        if self._max_positions is not None and num >= self._max_positions:
            return f"the prompt has {num} tokens and the model {self._max_positions} positions"
        return None

    def _refused(self, request: Request) -> Completion:
        return Completion(
            key=request.key, ids=(), text="", logprobs=(), finish_reason="error", error=self._problem(request)
        )

    def _text(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))


def _max_positions(model: torch.nn.Module) -> int | None:
    """Positions the model has; None where its configuration sets no limit."""
    config = model.config.get_text_config()  # type: ignore[union-attr, operator]
    return getattr(config, "max_position_embeddings", None)
