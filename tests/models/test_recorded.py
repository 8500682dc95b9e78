"""Recorded steps against steps that run. A trace stands for a CUDA graph: it too keeps what Python told it."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from tests.models.packed import VOCABULARY, build
from whet.models.backbone import Backbone
from whet.models.decoding import KeyValues
from whet.models.lean_step import LeanStep
from whet.models.recorded import Layers, Recorded, Replay, cuda_graph
from whet.models.rows import from_trees
from whet.schema.packed import Tree


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


def test_what_cannot_be_recorded_is_said_once_and_runs_as_before() -> None:
    backbone = Backbone(build("qwen3").double().eval())
    layers = LeanStep(backbone._whole)

    def refuse(compute: Callable[[], Tensor]) -> tuple[Replay, Tensor]:
        raise RuntimeError("operation not permitted when stream is capturing\nand much more")

    with torch.no_grad(), warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        expected = list(steps(backbone, layers, recordable=False))
        found = list(steps(backbone, Recorded(layers, refuse), recordable=True))
    torch.testing.assert_close(torch.cat(found), torch.cat(expected), rtol=0, atol=1e-9)
    messages = [str(warning.message) for warning in told if "kernel by kernel" in str(warning.message)]
    assert messages == [
        "decoding steps of this model are launched kernel by kernel: operation not permitted when stream is capturing"
    ]


@pytest.mark.gpu
def test_cuda_graphs_are_the_steps() -> None:
    backbone = Backbone(build("qwen3").eval().cuda())
    layers, recorded = LeanStep(backbone._whole), list[int]()

    def record(compute: Callable[[], Tensor]) -> tuple[Replay, Tensor]:
        recorded.append(1)
        return cuda_graph(compute)

    with torch.inference_mode():
        expected = list(steps(backbone, layers, recordable=True))
        found = list(steps(backbone, Recorded(layers, record), recordable=True))
    torch.testing.assert_close(torch.cat(found), torch.cat(expected), rtol=0, atol=1e-4)
    assert recorded
