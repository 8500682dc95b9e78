"""Recorded steps against steps that run. A trace stands for a CUDA graph: it too keeps what Python told it."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from tests.models.packed import VOCABULARY, build
from tests.rollout.test_decode import Letters
from whet.config.engine import Native
from whet.config.model import Model
from whet.errors import RunError
from whet.models.backbone import Backbone
from whet.models.decoding import KeyValues
from whet.models.lean_step import LeanStep
from whet.models.recorded import Record, Replay, cuda_graph
from whet.models.rows import from_trees
from whet.rollout.build import Answering, Served
from whet.rollout.native import NativeEngine
from whet.schema.artifacts import ModelRef
from whet.schema.packed import Tree
from whet.schema.rollouts import Request, Sampling
from whet.stages.measure.subject import Called


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


def steps(backbone: Backbone, record: Record | None, *, recordable: bool, num: int = 60) -> Iterator[Tensor]:
    """Hidden states while random groups come and go, the same ones whatever computes them."""
    step, memory, draw = backbone.stepper(record), KeyValues(recordable=recordable), random.Random(3)
    device = backbone.embeddings.weight.device
    for _ in range(num):
        if memory.num_rows < 2 or (memory.num_rows < 9 and draw.random() < 0.05):
            first, second = draw.randint(1, 40), draw.randint(1, 40)
            ids = torch.tensor(draw.choices(range(1, VOCABULARY), k=first + second))
            row = from_trees(ids, (Tree(0, first), Tree(first, second)))
            memory.enter(backbone.prompts(row.to(device))[1], [draw.randint(1, 3), 2])
        elif draw.random() < 0.05:
            memory.keep(sorted(draw.sample(range(memory.num_rows), memory.num_rows - 1)))
        else:
            newest = torch.tensor([draw.randrange(1, VOCABULARY) for _ in range(memory.num_rows)], device=device)
            yield step(newest, memory)[: len(newest)].clone()


@pytest.mark.parametrize(("name", "lean"), [("qwen3", True), ("gemma2", False), ("gpt2", False)])
def test_replayed_steps_are_the_steps(name: str, lean: bool) -> None:
    backbone, record = Backbone(build(name).double().eval()), Traced()
    with torch.no_grad():
        expected = list(steps(backbone, None, recordable=False))
        found = list(steps(backbone, record, recordable=True))
    assert backbone._is_lean == lean
    assert len(found) == len(expected) > 45
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-9)
    assert 3 <= record.recorded < record.replayed / 4, "few shapes, and each of them for many steps"


@pytest.mark.parametrize("recordable", [False, True])
def test_a_step_that_failed_is_made_again(recordable: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it wrote is written over, and no key is seen that is not there."""
    backbone, layers, failing = Backbone(build("qwen3").double().eval()), LeanStep.__call__, list[bool]()

    def interrupted(self: LeanStep, ids: Tensor, positions: Tensor, memory: KeyValues) -> Tensor:
        hidden = layers(self, ids, positions, memory)
        if failing.pop():
            raise KeyboardInterrupt
        return hidden

    found = []
    with torch.no_grad():
        assert backbone._is_lean
        monkeypatch.setattr(LeanStep, "__call__", interrupted)
        for failures in ([False] * 4, [False, False, True, False, False]):
            failing[:] = reversed(failures)
            step, memory = backbone.stepper(), KeyValues(recordable=recordable)
            memory.enter(backbone.prompts(from_trees(torch.arange(1, 12), (Tree(0, 11),)))[1], [2])
            while failing:
                with suppress(KeyboardInterrupt):
                    hidden = step(torch.tensor([5, 6]), memory)[:2]
            found.append(hidden)
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-12)


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


@pytest.mark.parametrize("graphs", [False, True])
def test_a_model_that_is_measured_is_recorded_where_its_engine_says_so(
    graphs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def asked_for(config: Native, model: torch.nn.Module) -> Record | None:
        return cuda_graph if config.graphs else None

    monkeypatch.setattr("whet.rollout.build._record", asked_for)
    monkeypatch.setattr("whet.rollout.build.end_ids", lambda *_: (5,))
    monkeypatch.setattr("whet.stages.measure.subject.load_for_generation", lambda *_: build("qwen3"))
    served = Served(ref=ModelRef(path="model"), model=Model(path="model"), folder=Path())
    answering = Answering(tokenizer=Letters(), end_id=5, batch_size=1)  # type: ignore[arg-type]
    engine = Called(Native(graphs=graphs), served, answering).engine(4)
    assert isinstance(engine, NativeEngine) and engine._record is (cuda_graph if graphs else None)


@pytest.mark.gpu
def test_cuda_graphs_are_the_steps() -> None:
    backbone, made = Backbone(build("qwen3").eval().cuda()), list[int]()
    replays = list[int]()

    def record(compute: Callable[[], Tensor]) -> tuple[Replay, Tensor]:
        replay, hidden = cuda_graph(compute)
        made.append(1)

        def counted() -> None:
            replays.append(1)
            replay()

        return counted, hidden

    with torch.inference_mode():
        expected = list(steps(backbone, None, recordable=False))
        found = list(steps(backbone, record, recordable=True))
    torch.testing.assert_close(torch.cat(found), torch.cat(expected), rtol=0, atol=1e-4)
    assert made and len(replays) > 3 * len(made)


@pytest.mark.gpu
def test_what_waits_for_the_host_cannot_be_recorded() -> None:
    x, before = torch.ones(3, device="cuda"), torch.cuda.current_stream()
    with pytest.raises(RunError, match="cannot be recorded"):
        cuda_graph(lambda: x * float(x.sum()))
    assert torch.cuda.current_stream() == before and float(x.sum()) == 3.0
