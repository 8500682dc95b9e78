"""The section of a reject stage, from the very file that the stage writes."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import yaml

from whet.config.reject import Accept
from whet.experience.accept import FATES as WORDS
from whet.experience.accept import sort_group
from whet.experience.reject_counts import RejectCounts
from whet.experience.sampled import Answer, Sampled
from whet.report.page import write_report
from whet.report.rejection import FATES, MARKS, read_rejection
from whet.runs.files import write_json, write_jsonl
from whet.runs.layout import StagePaths
from whet.runs.reader import read_stage
from whet.schema.records import Message, Origin, Prompt
from whet.stages.reject_account import account, metrics

NASTY = "<script>console.error('run')</script>"


def build_stage(folder: Path, num: int = 60, *, chance: float = 0.4) -> dict[str, Any]:
    """A stage over two files, one easier than the other, whose right answers are shorter; returns reject.json."""
    draw, accept = random.Random(1), Accept(max_per_prompt=2)
    counts = RejectCounts(group_size=8, max_new_tokens=64, num_logged=6, seed=0)
    for number in range(num):
        easy = number % 3 == 0
        answers = []
        for sample in range(8):
            right = draw.random() < (0.9 if easy else chance)
            length = round(draw.uniform(5, 30) if right else draw.uniform(15, 60))
            answers.append(
                Answer(text=f"{'yes' if right else 'no'} {sample % 5} {NASTY}", num_tokens=length,
                       finish_reason="length" if length > 58 else "stop", score=float(right))
            )  # fmt: skip
        if number % 10 == 9:
            answers[0] = Answer(
                text="", num_tokens=0, finish_reason="error", score=None, error="no answer: status 500 (found x)"
            )
            answers[1] = Answer(text=" ", num_tokens=1, finish_reason="stop", score=0.0)
        origin = Origin(file="easy.jsonl" if easy else "data/a_long_way_down/hard.jsonl", line=number + 1)
        prompt = Prompt(messages=(Message("user", f"Is it so? {number} {NASTY}"),), reference="yes", origin=origin)
        group = Sampled(key=f"k{number}", prompt=prompt, answers=tuple(answers))
        counts.add(group, sort_group(group, accept))
    found = account(counts, {"accepted.jsonl": 90, "rejected.jsonl": 200, "preference.jsonl": 55})
    folder.mkdir(parents=True)
    write_json(folder / "reject.json", found)
    write_jsonl(folder / "reject_samples.jsonl", counts.sampled_rows())
    status = {
        "name": "reject", "kind": "reject", "status": "done", "config": {}, "inputs": {}, "seconds": 41.0,
        "metrics": metrics(counts, found), "started": "2026-11-21T09:14:03+00:00", "finished": None, "model": None,
        "evaluation": [], "error": None,
    }  # fmt: skip
    (folder / "status.json").write_text(json.dumps(status))
    return found


def build_run(root: Path) -> Path:
    build_stage(root / "stages" / "01-reject")
    stages = [{"kind": "reject", "name": "reject"}]
    (root / "plan.yaml").write_text(yaml.safe_dump({"run": str(root), "model": {"path": "m"}, "stages": stages}))
    return root


def test_the_numbers_add_up(tmp_path: Path) -> None:
    found = build_stage(tmp_path / "reject")
    shown = read_rejection(read_stage(StagePaths(tmp_path / "reject"), "reject"))
    assert shown is not None
    assert sum(count for _, count, _ in shown.outcomes) == sum(found["fates"].values()) == 480
    assert sum(percent for *_, percent in shown.outcomes) == pytest.approx(100)
    assert shown.reasons == (("no answer: status 500", 6),)
    assert [chart.name for chart in shown.charts] == ["pass_at_k", "accept_rate", "lengths"]
    rates = [one["value"] for one in found["pass_at_k"]]
    assert rates == sorted(rates) and rates[0] == found["accept_rate"]["value"], "pass@1 is the accept rate"
    easy, hard = (next(one for one in found["files"] if name in one["file"]) for name in ("easy", "hard"))
    assert easy["value"] > hard["value"] and easy["low"] < easy["value"] < easy["high"]
    assert easy["prompts"] + hard["prompts"] == found["prompts"]["all"] == 60
    assert sum(found["lengths"]["right"]) + sum(found["lengths"]["wrong"]) == 480 - 6
    assert len(shown.groups) == 6 and all(len(group.answers) == 8 for group in shown.groups)
    assert set(FATES) == set(WORDS) == set(MARKS), "every fate has its words on the page"


def test_red_flags(tmp_path: Path) -> None:
    found = build_stage(tmp_path / "reject")
    assert read_rejection(read_stage(StagePaths(tmp_path / "reject"))).alarms == ()  # type: ignore[union-attr]
    fates = dict.fromkeys(found["fates"], 0) | {"cut": 9, "accepted": 2, "failed": 9, "rejected": 5}
    changed = found | {"fates": fates, "prompts": {"all": 9, "solved": 0, "unsolved": 9, "unknown": 0}}
    write_json(tmp_path / "reject" / "reject.json", changed)
    said = " ".join(read_rejection(read_stage(StagePaths(tmp_path / "reject"))).alarms)  # type: ignore[union-attr]
    for words in ("9 of 25 answers have no score", "were cut at the limit", "No prompt was solved"):
        assert words in said


def test_on_the_page(tmp_path: Path) -> None:
    page = write_report(build_run(tmp_path / "run"))
    html = page.read_text()
    for text in ("What became of the answers", "right and kept", "pass@k", "Length of right and of wrong answers",
                 "prompts with all answers", "no answer: status 500", "&lt;script&gt;"):  # fmt: skip
        assert text in html, text
    assert "<script>" not in html and 'id="stage-reject"' in html
    assert {path.name for path in page.parent.glob("*.png")} == {
        "01-reject-pass_at_k.png", "01-reject-accept_rate.png", "01-reject-lengths.png"
    }  # fmt: skip


def test_a_stage_that_rejects_nothing_has_no_section(tmp_path: Path) -> None:
    (tmp_path / "sft").mkdir()
    assert read_rejection(read_stage(StagePaths(tmp_path / "sft"), "sft")) is None
