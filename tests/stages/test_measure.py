"""Measuring: which reply is taken for which question, and what has no number, or nobody who would give one."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from tests.stages.test_evaluate import context
from whet.config.evaluate import PerplexityTask, WinRateTask
from whet.config.stage import EvaluateStage
from whet.errors import ModelError
from whet.schema.pictures import Picture
from whet.schema.rollouts import Request, Sampling
from whet.stages import evaluate
from whet.stages.measure.store import digest


def test_an_answer_to_another_picture_is_asked_for_again():
    picture = Picture(source="a.png", digest="1", num_tokens=2)
    asked = Request(key="k", prompt_ids=(1, 2), sampling=Sampling(max_new_tokens=1), seed=0, pictures=(picture,))
    assert digest(asked) != digest(replace(asked, pictures=(replace(picture, digest="2"),)))
    assert digest(asked) != digest(replace(asked, pictures=()))


def test_a_judge_may_be_a_model_of_the_hub(tiny_checkpoint, tmp_path):
    (tmp_path / "prompts.txt").write_text("one\ntwo\n")
    data = {"files": str(tmp_path / "prompts.txt")}
    task = WinRateTask(data=data, max_new_tokens=2, against=str(tiny_checkpoint), judge={"model": "nobody/nothing"})
    stage = EvaluateStage(name="evaluate", models=("base",), tasks=(task,))
    with pytest.raises(ModelError, match="nobody/nothing"):
        evaluate.run(stage, context(tiny_checkpoint, tmp_path / "out", stage))


def test_a_perplexity_beyond_all_numbers_is_one_clear_line(tiny_checkpoint, tmp_path, monkeypatch):
    file = tmp_path / "chats.jsonl"
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
    file.write_text((json.dumps({"messages": turns}) + "\n") * 2)
    stage = EvaluateStage(name="evaluate", models=("base",), tasks=(PerplexityTask(data={"files": str(file)}),))
    monkeypatch.setattr("whet.stages.measure.perplexity.ratio", lambda totals, weights: (800.0, 790.0, 810.0))
    with pytest.raises(ModelError, match=r"tasks\.perplexity: base has no perplexity.*found 800 nats"):
        evaluate.run(stage, context(tiny_checkpoint, tmp_path / "out", stage))
