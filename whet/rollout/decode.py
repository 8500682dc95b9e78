"""Decoding with shared prompts: a token for every row at each step, rows leaving when they end, groups entering.

A group is the samples of one prompt. Its prompt goes through the model once, packed with others without padding, and
its keys and values are held once for all samples. Nothing a row gets depends on which others it runs with.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from transformers import PreTrainedModel

from whet.data.pack import media_of
from whet.data.pictures import PictureReader
from whet.models.backbone import Backbone
from whet.models.decoding import KeyValues
from whet.models.mode import evaluating
from whet.models.recorded import Record
from whet.models.rows import from_trees
from whet.models.scoring import logits_function
from whet.ranks.pulse import beat
from whet.rollout.row import LEAVE_AT, Row, Text, streams, take
from whet.rollout.sampling import Scratch, draw
from whet.schema.packed import Packed, Tree
from whet.schema.rollouts import Request

PREFILL_TOKENS = 2048
"""Tokens of prompts that go through the model at once."""


class Decoder:
    """A changing batch of rows that share their sampling settings."""

    def __init__(
        self, model: PreTrainedModel, backbone: Backbone, *, end_ids: tuple[int, ...], text: Text,
        reader: PictureReader | None = None, record: Record | None = None,
    ) -> None:  # fmt: skip
        """`reader` loads the pictures of prompts; `record` records steps (`whet.models.recorded`)."""
        self._model, self._backbone, self._end_ids, self._text, self._reader = model, backbone, end_ids, text, reader
        self._device = next(model.parameters()).device
        if not model.training:
            model.eval()  # its parts too; from here on the model's own flag tells
        self._logits, self._forward = logits_function(model), backbone.stepper(record)
        self._memory = KeyValues(recordable=record is not None)
        self._rows: list[Row] = []
        """In the order of the memory's rows, ended ones that have not left among them."""
        self._numbers = torch.zeros(0, 0, dtype=torch.float64)
        """[rows, most tokens] uniform numbers."""
        self._scratch = Scratch()

    @property
    def num_running(self) -> int:
        return sum(row.finish is None for row in self._rows)

    @torch.inference_mode()
    def enter(self, groups: Sequence[Sequence[Row]]) -> None:
        """Take groups in and draw the first token of their rows."""
        self._leave()
        batch: list[Sequence[Row]] = []
        for group in groups:
            tokens = sum(len(other[0].request.prompt_ids) for other in [*batch, group])
            if batch and tokens > PREFILL_TOKENS:
                self._prefill(batch)
                batch = []
            batch.append(group)
        if batch:
            self._prefill(batch)

    @torch.inference_mode()
    def step(self) -> None:
        """One more token for every row that runs."""
        beat()
        if self.num_running <= LEAVE_AT * len(self._rows):
            self._leave()
        if not self._rows:
            return
        newest = torch.tensor([row.ids[-1] for row in self._rows], device=self._device)
        with self._evaluating():
            hidden = self._forward(newest, self._memory)
            logits = self._logits(hidden)[: len(self._rows)]
        self._draw(self._rows, logits, self._numbers)

    def _prefill(self, groups: Sequence[Sequence[Row]]) -> None:
        packed = pack_prompts([group[0].request for group in groups], self._reader)
        trees = packed.trees
        with self._evaluating():
            hidden, captured = self._backbone.prompts(packed.to(self._device))
            ends = torch.tensor([tree.start + tree.prompt - 1 for tree in trees], device=self._device)
            ends = torch.cat([ends, ends.new_zeros(max(0, self._backbone.least_rows - len(ends)))])
            logits = self._logits(hidden[ends])
        self._memory.enter(captured, [len(group) for group in groups])
        rows = [row for group in groups for row in group]
        which = torch.tensor([number for number, group in enumerate(groups) for _ in group], device=self._device)
        numbers = streams(rows, self._device)
        self._draw(rows, logits[which], numbers)
        self._rows += rows
        width = max(numbers.shape[1], self._numbers.shape[1])
        self._numbers = torch.cat([_wide(self._numbers.to(self._device), width), _wide(numbers, width)])

    def _draw(self, rows: Sequence[Row], logits: torch.Tensor, numbers: torch.Tensor) -> None:
        sampling = rows[0].request.sampling
        # An ended row gets a token like the others, which nobody takes.
        places = torch.tensor([min(len(row.ids), row.limit - 1) for row in rows], device=self._device)
        uniform = numbers.gather(1, places[:, None]).squeeze(1)
        banned = self._end_ids if sampling.min_new_tokens else ()
        drawn = draw(logits, sampling, uniform, banned, places < sampling.min_new_tokens, self._scratch)
        take(rows, drawn, self._end_ids, self._text)

    def _evaluating(self) -> AbstractContextManager[None]:
        return evaluating(self._model) if self._model.training else nullcontext()

    def _leave(self) -> None:
        stay = [place for place, row in enumerate(self._rows) if row.finish is None]
        if len(stay) == len(self._rows):
            return
        self._memory.keep(stay)
        self._numbers = self._numbers[torch.tensor(stay, dtype=torch.int64, device=self._device)]
        self._rows = [self._rows[place] for place in stay]


def pack_prompts(requests: Sequence[Request], reader: PictureReader | None) -> Packed:
    """The prompts of requests end to end."""
    prompts = [request.prompt_ids for request in requests]
    trees, start = list[Tree](), 0
    for size in map(len, prompts):
        trees.append(Tree(start, size))
        start += size
    ids = torch.tensor([token for prompt in prompts for token in prompt])
    shown = [(request.prompt_ids, request.pictures) for request in requests]
    return from_trees(ids, tuple(trees), media_of(trees, shown, reader))


def _wide(numbers: torch.Tensor, width: int) -> torch.Tensor:
    return torch.nn.functional.pad(numbers, (0, width - numbers.shape[1]))
