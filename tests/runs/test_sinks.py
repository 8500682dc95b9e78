import io
import math

import pytest

from whet.errors import RunError
from whet.runs import sinks
from whet.runs.files import read_jsonl
from whet.runs.sinks import MetricsFile, Progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Clock:
    def __init__(self):
        self.now = 100.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(sinks, "time", clock)
    return clock


def test_a_log_gets_few_plain_lines_with_rate_and_time_left(clock):
    log = io.StringIO()
    with Progress("sft", 100, stream=log) as progress:
        for step in range(1, 101):
            clock.now += 0.5
            progress.update(note=f"loss {step}")
    lines = log.getvalue().splitlines()
    assert lines[0] == "sft  30/100  30%  2.0/s  35 s left  loss 30"
    assert lines[-1] == "sft  100/100 100%  in 50 s  2.0/s  loss 100"
    assert len(lines) == 4
    assert "\r" not in log.getvalue()


def test_work_done_before_a_restart_does_not_raise_the_rate(clock):
    log = io.StringIO()
    with Progress("sft", 100, done=80, stream=log) as progress:
        for _ in range(20):
            clock.now += 1.0
            progress.update()
    assert log.getvalue().splitlines()[-1] == "sft  100/100 100%  in 20 s  1.0/s"


def test_a_terminal_line_is_redrawn_in_place_and_fits(clock, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    screen = Terminal()
    with Progress("prepare", 4, stream=screen) as progress:
        for _ in range(4):
            clock.now += 8.0
            progress.update(note="x" * 200)
    assert screen.getvalue().count("\n") == 1
    shown = [piece.split("\x1b")[0] for piece in screen.getvalue().split("\r")[1:]]
    assert max(map(len, shown)) <= 79
    assert "2/4  50%  8.0 s each  16 s left" in shown[2]


def test_a_failure_inside_is_said_and_passed_on(clock):
    log = io.StringIO()
    with pytest.raises(ValueError, match="boom"), Progress("dpo", None, stream=log) as progress:
        progress.update(3)
        raise ValueError("boom")
    assert log.getvalue() == "dpo  3  stopped after 0 s\n"


def test_lines_are_on_disk_at_once_and_not_finite_is_null(tmp_path):
    metrics = MetricsFile(tmp_path / "metrics.jsonl")
    metrics.write({"step": 1, "loss": math.nan})
    assert read_jsonl(metrics.path) == [{"step": 1, "loss": None}]
    metrics.close()


def test_resume_forgets_later_steps_and_a_torn_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"st')
    with MetricsFile(path) as metrics:
        metrics.truncate_after(2)
        metrics.write({"step": 3, "again": True})
    assert read_jsonl(path) == [{"step": 1}, {"step": 2}, {"step": 3, "again": True}]


def test_going_on_without_truncating_cuts_only_the_torn_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"st')
    with MetricsFile(path) as metrics:
        metrics.write({"step": 2})
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'


def test_an_unwritable_place_is_the_users_to_mend(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot write"), MetricsFile(tmp_path / "file" / "metrics.jsonl") as metrics:
        metrics.write({"step": 1})
