"""judgement: agreement with stored labels, its interval, and what a judge left without a score."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import whet.rollout.build as build
from whet.config.evaluate import JudgementTask
from whet.config.model import Model
from whet.config.stage import EvaluateStage
from whet.data.ledger import Ledger
from whet.errors import DataError
from whet.rollout.native import NativeEngine
from whet.runs.files import read_jsonl
from whet.runs.layout import StagePaths
from whet.schema.artifacts import Measure, ModelRef
from whet.schema.records import Message, Rating
from whet.stages import evaluate
from whet.stages.context import Context
from whet.stages.measure.judgement import agreement
from whet.stages.measure.ready import ReadyTask


def ready(labels: Sequence[bool]) -> ReadyTask:
    turn = (Message("assistant", "yes"),)
    ratings = tuple(Rating(prompt=(Message("user", "?"),), response=turn, label=label) for label in labels)
    return ReadyTask(name="judging", task=JudgementTask(), ratings=ratings, ledger=Ledger())


def test_agreement_counts_pairs_won_and_halves_ties() -> None:
    value, low, high = agreement([5.0, 4.0, 3.0, None, 3.0, 1.0], ready([True, True, True, True, False, False]))
    assert value == pytest.approx((2 + 2 + 1.5) / 6) and low < value < high <= 1.0


def test_a_judge_that_tosses_a_coin_has_an_interval_around_one_half() -> None:
    rng = np.random.default_rng(0)
    labels = [bool(x) for x in rng.integers(0, 2, 400)]
    value, low, high = agreement([float(x) for x in rng.integers(0, 6, 400)], ready(labels))
    assert low < 0.5 < high and 0.08 < high - low < 0.16 and value == pytest.approx(0.5, abs=0.06)


@pytest.mark.parametrize(
    ("scores", "value"), [([2.0, 2.0, 1.0, 1.0], 1.0), ([1.0, 1.0, 2.0, 2.0], 0.0), ([3.0] * 4, 0.5)]
)
def test_four_answers_are_never_sure(scores: list[float], value: float) -> None:
    """All apart, all the wrong way round, all tied: their own spread is 0, and the interval is not."""
    found, low, high = agreement(scores, ready([True, True, False, False]))
    assert found == value and low <= value <= high and high - low > 0.4


def test_one_label_alone_says_nothing() -> None:
    with pytest.raises(DataError, match=r"needs two good and two bad answers with a score.*3 good, 0 bad"):
        agreement([1.0, 2.0, 3.0], ready([True] * 3))


class Scoring(NativeEngine):
    """The real engine, but an answer that says so is judged well, and every ninth judgement is unreadable."""

    asked = 0

    def generate(self, requests: Sequence[object]) -> Iterator[object]:
        for request, completion in zip(requests, super().generate(requests), strict=True):  # type: ignore[arg-type]
            Scoring.asked += 1
            asked = self._tokenizer.decode(request.prompt_ids)  # type: ignore[attr-defined]
            text = "Score: 5" if "right" in asked else "Score: 1"
            said = "hm" if Scoring.asked % 9 == 0 else text
            yield replace(completion, text=said, finish_reason="stop")


def test_a_stage_measures_it(tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "NativeEngine", Scoring)
    said = ("wrong", "right")
    rows = [{"prompt": f"Add {n}.", "completion": said[n % 2], "label": n % 4 != 0} for n in range(40)]
    file = tmp_path / "judged.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "judge.txt").write_text("{instruction} {response}")
    judge = {"template": str(tmp_path / "judge.txt"), "votes": 1, "max_new_tokens": 2, "temperature": 0.0}
    task = {"type": "judgement", "data": {"files": [str(file)]}, "judge": judge, "batch_size": 8}
    stage = EvaluateStage.model_validate({"name": "evaluate", "models": ["base"], "tasks": [task]})
    ref, paths = ModelRef(path=str(tiny_checkpoint)), StagePaths(tmp_path / "out")
    context = Context(
        model=Model(path=str(tiny_checkpoint), device="cpu"), start=ref, models={"base": ref, "previous": ref},
        paths=paths, folders={}, stage=stage,
    )  # fmt: skip
    found: dict[str, Measure] = {m.metric: m for m in evaluate.run(stage, context).evaluation}
    assert set(found) == {"agreement", "unscored"}
    assert found["unscored"].value == pytest.approx(4 / 40) and found["agreement"].num == 36
    assert 0.7 < found["agreement"].value < 1.0
    assert len(read_jsonl(paths.file("replies.jsonl"))) == 40
