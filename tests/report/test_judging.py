"""What the page says of a judge: its numbers, its red flags, and its words where it compared answers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.report.playground import NASTY, build_run, write_lines
from whet.report import alarms
from whet.report.judging import Judging, read_judging, verdicts
from whet.report.page import write_report
from whet.runs.reader import read_run

COMPARED = [
    {"shown": [0, 1], "reply": "The first rambles. Verdict: second", "reading": [0.0, 1.0]},
    {"shown": [1, 0], "reply": "Much the same. Verdict: tie", "reading": [0.5, 0.5]},
    {"shown": [2, 1], "reply": NASTY, "reading": None},
    {"shown": [2, 0, 1], "reply": "Ranking: 3 > 1 = 2", "reading": [2.5, 2.5, 1.0]},
    {"shown": [0, 2], "reply": "", "reading": None, "error": "the server is gone"},
]
ROW = {
    "instruction": "Name a city.",
    "candidates": [
        {"response": "city", "score": 0.25, "judge_output": ""},
        {"response": "Rome", "score": 0.75, "judge_output": ""},
        {"response": "Oslo", "score": -1.5, "judge_output": ""},
        {"response": "", "score": None, "judge_output": ""},
    ],
    "chosen": "Rome", "rejected": "Oslo", "chosen_score": 0.75, "rejected_score": -1.5, "judgements": COMPARED,
}  # fmt: skip
NUMBERS = {
    "num_comparisons": 1200.0, "swap_inconsistency_rate": 0.46, "comparison_tie_rate": 0.05, "first_place_share": 0.71,
    "vote_disagreement": 0.12, "judge_error_rate": 0.03, "num_judge_pairs": 91.0, "meta_score_shift": 0.4,
    "human_agreement": 0.81, "human_agreement_num": 300.0, "human_same_order": 0.5,
}  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = build_run(tmp_path_factory.mktemp("judging") / "run")
    folder = run / "stages" / "02-prepare"
    write_lines(folder / "self_reward_samples.jsonl", [ROW])
    status = json.loads((folder / "status.json").read_text())
    status["metrics"] |= NUMBERS
    (folder / "status.json").write_text(json.dumps(status))
    return run


def judging(run: Path) -> Judging:
    (found,) = [one for stage in read_run(run).stages if (one := read_judging(stage)) is not None]
    return found


def test_candidates_stand_best_first_whatever_the_scale(run: Path) -> None:
    (group,) = judging(run).groups
    assert [(one.text, one.role) for one in group.candidates] == [
        ("Rome", "chosen"), ("city", ""), ("Oslo", "rejected"), ("", ""),
    ]  # fmt: skip


def test_comparisons_name_candidates_by_their_place_on_the_page(run: Path) -> None:
    (group,) = judging(run).groups
    assert [one.title for one in group.compared] == [
        "shown #2, #1: #1 is better",
        "shown #1, #2: a tie",
        "shown #3, #1: could not be read",
        "shown #3, #2, #1: ranked 2.5, 2.5, 1",
        "shown #2, #3: could not be read",
    ]
    assert [one.judge for one in group.compared][-1] == "the server is gone"


def test_the_judges_numbers_stand_there_and_its_flags_at_the_head(run: Path) -> None:
    html = write_report(run).read_text()
    for words in ("verdicts that did not survive the swap", "pairs of judgements", "judge agrees with people", "+0.40"):
        assert words in html
    head = html.split('id="evaluation"')[0]
    assert "46% of the comparisons turn round when the answers change places; 71% of its verdicts" in head
    assert "3.0% of the judgements never came" in head
    assert "<script>console.error" not in html and "The first rambles." in html


def test_people_come_before_the_checker(run: Path) -> None:
    (people, checker) = [one for one in verdicts(read_run(run).stages) if one.text.startswith("prepare")]
    assert "people told apart" in people.text and "0.81 (300 pairs" in people.text and people.trend == "better"
    assert "right answer above a wrong one" in checker.text


def test_flags() -> None:
    assert alarms.swapped_verdicts({"swap_inconsistency_rate": 0.3}) is None
    assert alarms.judge_errors({"judge_error_rate": 0.0}) is None and alarms.judge_errors({}) is None
    assert alarms.little_mass({"score_mass": 0.9}) is None
    assert "12%" in (alarms.little_mass({"score_mass": 0.12}) or "")
