"""Completions to read: which are shown, in which order, with which numbers."""

from pathlib import Path

from tests.report.online_run import completion, completions, round_row, step_row
from tests.report.playground import write_lines
from whet.report.completions import ROWS_A_PROMPT, read_browser
from whet.report.words import LONGEST
from whet.runs.layout import StagePaths
from whet.runs.reader import StageView


def browser(folder: Path, rows: list[dict]):
    write_lines(folder / "completions.jsonl", rows)
    steps = (step_row(1) | round_row(1, reward=0.25),)
    return read_browser(StageView(paths=StagePaths(folder), name="grpo", kind="grpo", status="done", rows=steps))


def test_first_middle_and_last_round_with_their_first_prompts(tmp_path):
    found = browser(tmp_path, completions(9))
    assert [shown.title for shown in found.rounds] == ["Step 1 · round 0 · mean reward 0.25", "Step 9 · round 4",
                                                       "Step 17 · round 8"]  # fmt: skip
    assert [one.prompt for one in found.rounds[1].prompts] == [f"What is {n} + 1?" for n in range(4)]
    assert [len(browser(tmp_path, completions(num)).rounds) for num in (1, 2)] == [1, 2]


def test_the_best_comes_first_and_what_has_no_reward_last(tmp_path):
    rows = [
        completion(0, 0, 0, reward=None, parts={}, advantage=None, error="timed out", finish_reason="length"),
        completion(0, 0, 1, reward=-1.0, advantage=-0.75),
        completion(0, 0, 2, reward=2.0, parts={"right": 1.0, "form": 0.25}, advantage=0.75),
    ]
    (shown,) = browser(tmp_path, rows).rounds[0].prompts
    assert shown.columns == ("reward", "right", "short", "form", "advantage", "tokens", "end")
    assert shown.summary == "3 completions, rewards -1 to 2, mean 0.5"
    assert [dict(row.numbers)["reward"] for row in shown.rows] == ["2", "-1", "–"]
    assert [row.trend for row in shown.rows] == ["up", "down", ""]
    assert dict(shown.rows[0].numbers) == {"reward": "2", "right": "1", "short": "–", "form": "0.25",
                                           "advantage": "+0.75", "tokens": "7", "end": "ended"}  # fmt: skip
    assert (shown.rows[2].error, dict(shown.rows[2].numbers)["end"]) == ("timed out", "cut")


def test_large_groups_show_best_and_worst_and_long_texts_their_beginning(tmp_path):
    rows = [completion(0, 0, n, reward=float(n), completion="x" * (LONGEST + 7)) for n in range(20)]
    (shown,) = browser(tmp_path, rows).rounds[0].prompts
    assert [dict(row.numbers)["reward"] for row in shown.rows] == [
        str(n) for n in (*range(19, 13, -1), *range(5, -1, -1))
    ]
    assert shown.num_hidden == 20 - ROWS_A_PROMPT
    assert shown.rows[0].text.endswith("x\n[…7 more characters]")


def test_equal_rewards_and_none_are_said(tmp_path):
    same = [completion(0, 0, n, reward=0.5) for n in range(2)]
    unknown = [completion(0, 1, n, reward=None) for n in range(2)]
    found = browser(tmp_path, [*same, *unknown, completion(0, 2, 0)]).rounds[0].prompts
    assert [one.summary.split(", ")[1] for one in found] == ["reward 0.5 for all", "no reward", "reward 0"]


def test_no_file_no_browser(tmp_path):
    assert browser(tmp_path, []) is None
