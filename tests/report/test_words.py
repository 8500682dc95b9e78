"""Long texts are cut wherever the page shows them, and said so."""

from __future__ import annotations

import json
from pathlib import Path

from tests.report.playground import write_lines
from whet.report.answers import side_by_side
from whet.report.judging import read_judging
from whet.report.rejection import read_rejection
from whet.report.words import LONGEST, cut
from whet.runs.layout import StagePaths
from whet.runs.reader import SampleRow, StageView

LONG = "x" * (LONGEST + 1234)
SHORT = "x" * LONGEST + "\n[…1,234 more characters]"


def stage(folder: Path, kind: str) -> StageView:
    return StageView(paths=StagePaths(folder), name=kind, kind=kind, status="done")


def test_a_text_of_the_length_stays_whole() -> None:
    assert (cut("x" * LONGEST), cut(LONG)) == ("x" * LONGEST, SHORT)


def test_answers() -> None:
    row = SampleRow(model="m", task="t", key="k", prompt=LONG, completion=LONG, reference=LONG, score=1.0)
    (found,) = side_by_side([row], ["m"])[0].comparisons
    assert (found.prompt, found.reference, found.answers[0].text) == (SHORT, SHORT, SHORT)


def test_judging(tmp_path: Path) -> None:
    """Who is chosen is told by the whole text."""
    other = LONG + "y"
    row = {
        "instruction": LONG, "chosen": LONG, "rejected": other,
        "candidates": [{"response": text, "score": 1.0, "judge_output": LONG} for text in (other, LONG)],
        "judgements": [{"shown": [0, 1], "reply": LONG, "reading": None}],
    }  # fmt: skip
    counts = {"edges": [0, 1], "counts": [2]}
    (tmp_path / "histograms.json").write_text(json.dumps({"score": counts, "candidates": counts}))
    write_lines(tmp_path / "self_reward_samples.jsonl", [row])
    found = read_judging(stage(tmp_path, "prepare"))
    assert found is not None
    (group,) = found.groups
    assert [one.role for one in group.candidates] == ["rejected", "chosen"]
    assert {group.prompt, group.candidates[1].text, group.compared[0].judge} == {SHORT}
    assert {one.judge for one in group.candidates} == {SHORT}


def test_rejection(tmp_path: Path) -> None:
    fates = dict.fromkeys(("accepted", "over_limit", "cut", "unscored", "failed"), 0)
    found = {"fates": fates, "prompts": {"solved": 1, "unsolved": 0}, "reasons": {}, "pass_at_k": [], "files": []}
    found |= {"lengths": {"edges": [0, 1], "right": [0], "wrong": [0]}}
    (tmp_path / "reject.json").write_text(json.dumps(found))
    answer = {"text": LONG, "score": None, "fate": "failed", "error": LONG}
    messages = [{"role": "user", "content": LONG}]
    write_lines(tmp_path / "reject_samples.jsonl", [{"messages": messages, "reference": LONG, "answers": [answer]}])
    read = read_rejection(stage(tmp_path, "reject"))
    assert read is not None
    (group,) = read.groups
    assert {group.prompt, group.reference, group.answers[0].text, group.answers[0].error} == {SHORT}
