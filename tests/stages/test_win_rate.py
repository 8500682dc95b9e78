"""Pairwise judging: orders swapped, disagreements are ties, templates and verdicts read."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from transformers import AutoTokenizer

from whet.config.evaluate import JudgementTask, WinRateTask
from whet.data.render import Renderer
from whet.rewards.pairwise import Comparison, majority
from whet.rollout.build import Answering
from whet.schema.rollouts import Completion
from whet.stages.measure.ready import ready_task
from whet.stages.measure.store import ReplyStore
from whet.stages.measure.subject import Present, Subject
from whet.stages.measure.win_rate import measure_win_rate


@pytest.fixture
def subject(tiny_checkpoint):
    tokenizer = AutoTokenizer.from_pretrained(tiny_checkpoint)
    answering = Answering(tokenizer=tokenizer, end_id=0, batch_size=1)
    voice = Present(torch.nn.Linear(1, 1), answering)
    return Subject(label="dpo", voice=voice, tokenizer=tokenizer, renderer=Renderer(tokenizer))


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"Question {n}?"}) + "\n" for n in range(4)))
    return str(path)


class Speaker:
    """Answers `<label> n`; as a judge it says what `verdict(first, second)` says."""

    batched = True

    def __init__(self, subject, verdict):
        self.subject, self.verdict, self.asked = subject, verdict, 0

    def generate(self, requests):
        for request in requests:
            self.asked += 1
            prompt = self.subject.tokenizer.decode(list(request.prompt_ids))
            if "<first>" in prompt:
                first, second = (prompt.split(f"<{tag}>\n")[1].split("\n")[0] for tag in ("first", "second"))
                text = f"Because. Verdict: {self.verdict(first, second)}"
            else:
                text = f"{self.subject.label} {prompt.split('Question ')[1][0]}"
            yield Completion(key=request.key, ids=(1,), text=text, logprobs=(0.0,), finish_reason="stop")

    def close(self):
        pass


def judged(monkeypatch, subject, prompts, verdict, **changes):
    monkeypatch.setattr(Subject, "engine", lambda self, batch_size: Speaker(self, verdict))
    task = WinRateTask(data={"files": prompts}, **changes)
    load = lambda name, engine: replace(subject, label=name)  # noqa: E731
    measured = measure_win_rate(ready_task(task, folders={}), task, subject, ReplyStore(), 2, load)
    return {measure.metric: measure for measure in measured.measures}, measured.samples


def test_a_judge_that_knows_gives_the_share_of_wins(monkeypatch, subject, prompts):
    def verdict(first, second):
        ours = first if first.startswith("dpo") else second
        won = ours.split()[1] in "012"
        return "first" if won == (ours == first) else "second"

    values, samples = judged(monkeypatch, subject, prompts, verdict)
    assert {name: measure.value for name, measure in values.items()} == {
        "win_rate": 0.75, "win": 0.75, "tie": 0.0, "loss": 0.25, "consistency": 1.0, "unreadable": 0.0,
    }  # fmt: skip
    assert (values["win_rate"].num, len(samples)) == (4, 2)
    assert values["win_rate"].low < 0.5 < values["win_rate"].high


def test_a_judge_that_prefers_a_place_decides_nothing(monkeypatch, subject, prompts):
    values, _ = judged(monkeypatch, subject, prompts, lambda first, second: "first")
    assert (values["win_rate"].value, values["tie"].value, values["consistency"].value) == (0.5, 1.0, 0.0)


def test_unreadable_verdicts_are_ties_and_counted(monkeypatch, subject, prompts):
    values, _ = judged(monkeypatch, subject, prompts, lambda first, second: "hmm", judge={"votes": 3})
    assert (values["win_rate"].value, values["unreadable"].value, values["consistency"].value) == (0.5, 1.0, 0.0)


def test_a_checker_decides_without_a_judge(monkeypatch, subject, prompts, tmp_path):
    rule = tmp_path / "rule.py"
    right = "float(completion in ('dpo 0', 'dpo 1', 'base 1'))"
    rule.write_text(f"def right(prompt, completion, **_):\n    return {right}\n")
    values, samples = judged(monkeypatch, subject, prompts, None, checker={"type": "custom", "path": f"{rule}:right"})
    assert {name: measure.value for name, measure in values.items()} == {
        "win_rate": 0.625, "win": 0.25, "tie": 0.75, "loss": 0.0,
    }  # fmt: skip
    assert len(samples) == 2


def test_verdict_arithmetic():
    assert [Comparison("first", "first").points, Comparison("second", "second").points] == [1.0, 0.0]
    assert (
        Comparison("tie", "tie").points
        == Comparison("first", "second").points
        == Comparison("first", None).points
        == 0.5
    )
    assert majority(["first", "second", "first", None]) == "first"
    assert majority(["first", "second"]) == "tie"
    assert majority([None, None]) is None


def test_one_key_of_the_judge_leaves_the_others_at_this_tasks_defaults():
    judge = WinRateTask(judge={"max_new_tokens": 8}).judge
    assert (judge.model, judge.votes, judge.temperature) == ("base", 1, 0.0)
    judge = JudgementTask(judge={"max_new_tokens": 8}).judge
    assert (judge.model, judge.votes, judge.temperature) == ("self", 1, 0.0)
