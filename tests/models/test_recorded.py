"""Recorded steps against steps that run. A trace stands for a CUDA graph: it too keeps what Python told it."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from tests.models.packed import VOCABULARY, build
from tests.rollout.test_decode import Letters
from whet.errors import RunError
from whet.models.backbone import Backbone
from whet.models.decoding import KeyValues
from whet.models.lean_step import LeanStep
from whet.models.recorded import Layers, Recorded, Replay, cuda_graph
from whet.models.rows import from_trees
from whet.rollout.native import NativeEngine
from whet.schema.packed import Tree
from whet.schema.rollouts import Request, Sampling


class Traced:
    """Records the operators; a replay reads the very tensors that were read, and numbers as they were."""

    def __init__(self) -> None:
        self.recorded = self.replayed = 0

    def __call__(self, compute: Callable[[], Tensor]) -> tuple[Replay, Tensor]:
        self.recorded += 1
        trace = make_fx(compute)()
        out = torch.full_like(trace(), torch.nan)

        def replay() -> None:
            self.replayed += 1
            out.copy_(trace())

        return replay, out


def steps(backbone: Backbone, layers: Layers, *, recordable: bool, num: int = 60) -> Iterator[Tensor]:
    """Hidden states while random groups come and go, the same ones whatever computes them."""
    memory, draw, device = KeyValues(recordable=recordable), random.Random(3), next(backbone._whole.parameters()).device
    for _ in range(num):
        if memory.num_rows < 2 or (memory.num_rows < 9 and draw.random() < 0.05):
            first, second = draw.randint(1, 40), draw.randint(1, 40)
            ids = torch.tensor(draw.choices(range(1, VOCABULARY), k=first + second))
            row = from_trees(ids, (Tree(0, first), Tree(first, second)))
            memory.enter(backbone.prompts(row.to(device))[1], [draw.randint(1, 3), 2])
        elif draw.random() < 0.05:
            memory.keep(sorted(draw.sample(range(memory.num_rows), memory.num_rows - 1)))
        else:
            newest = [draw.randrange(1, VOCABULARY) for _ in range(memory.num_rows)]
            filling = [0] * max(0, backbone.least_rows - len(newest))
            positions = [*memory.positions, *filling]
            memory.begin()
            hidden = layers(
                torch.tensor(newest + filling, device=device), torch.tensor(positions, device=device), memory
            )
            memory.end()
            yield hidden[: len(newest)].clone()


@pytest.mark.parametrize(("name", "lean"), [("qwen3", True), ("gemma2", False), ("gpt2", False)])
def test_replayed_steps_are_the_steps(name: str, lean: bool) -> None:
    backbone, record = Backbone(build(name).double().eval()), Traced()
    layers: Layers = LeanStep(backbone._whole) if lean else backbone._step
    with torch.no_grad():
        expected = list(steps(backbone, layers, recordable=False))
        found = list(steps(backbone, Recorded(layers, record), recordable=True))
    assert len(found) == len(expected) > 45
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-9)
    assert 3 <= record.recorded < record.replayed / 4, "few shapes, and each of them for many steps"


@pytest.mark.parametrize("recordable", [False, True])
def test_a_step_that_failed_is_made_again(recordable: bool) -> None:
    """What it wrote is written over, and no key is seen that is not there."""
    backbone = Backbone(build("qwen3").double().eval())
    layers, calls = LeanStep(backbone._whole), list[int]()

    def failing(ids: Tensor, positions: Tensor, memory: KeyValues) -> Tensor:
        calls.append(1)
        hidden = layers(ids, positions, memory)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return hidden

    found = []
    with torch.no_grad():
        for computing in (layers, failing):
            memory = KeyValues(recordable=recordable)
            memory.enter(backbone.prompts(from_trees(torch.arange(1, 12), (Tree(0, 11),)))[1], [2])
            for _ in range(4):
                try:
                    hidden = one(backbone, computing, memory)
                except KeyboardInterrupt:
                    hidden = one(backbone, computing, memory)
            found.append(hidden)
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-12)


def one(backbone: Backbone, layers: Layers, memory: KeyValues) -> Tensor:
    ids, positions = torch.zeros(2, 8, dtype=torch.int64)
    positions[: memory.num_rows] = torch.tensor(memory.positions)
    memory.begin()
    hidden = layers(ids + 5, positions, memory)
    memory.end()
    return hidden[: memory.num_rows]


def test_the_engine_answers_the_same_from_recordings() -> None:
    model, record = build("qwen3").eval(), Traced()
    sampling = Sampling(max_new_tokens=40)
    asked = [
        Request(key=f"{prompt}#{sample}", prompt_ids=tuple(range(1, 6 + prompt)), sampling=sampling, seed=7)
        for prompt in range(3)
        for sample in range(3)
    ]
    answers = [
        [
            (answer.ids, answer.logprobs)
            for answer in NativeEngine(
                model, Letters(), batch_size=6, end_ids=(5, 6), dtype=None, record=how  # type: ignore[arg-type]
            ).generate(asked)
        ]
        for how in (None, record)
    ]
    assert answers[0] == answers[1]
    assert record.recorded and record.replayed > 3 * record.recorded


@pytest.mark.gpu
def test_cuda_graphs_are_the_steps() -> None:
    backbone, made = Backbone(build("qwen3").eval().cuda()), list[int]()
    layers, replays = LeanStep(backbone._whole), list[int]()

    def record(compute: Callable[[], Tensor]) -> tuple[Replay, Tensor]:
        replay, hidden = cuda_graph(compute)
        made.append(1)

        def counted() -> None:
            replays.append(1)
            replay()

        return counted, hidden

    with torch.inference_mode():
        expected = list(steps(backbone, layers, recordable=True))
        found = list(steps(backbone, Recorded(layers, record), recordable=True))
    torch.testing.assert_close(torch.cat(found), torch.cat(expected), rtol=0, atol=1e-4)
    assert made and len(replays) > 3 * len(made)


@pytest.mark.gpu
def test_what_waits_for_the_host_cannot_be_recorded() -> None:
    x, before = torch.ones(3, device="cuda"), torch.cuda.current_stream()
    with pytest.raises(RunError, match="cannot be recorded"):
        cuda_graph(lambda: x * float(x.sum()))
    assert torch.cuda.current_stream() == before and float(x.sum()) == 3.0
