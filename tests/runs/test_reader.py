import json
import re
import subprocess
import sys

import pytest

from whet.errors import RunError
from whet.report.status import print_status
from whet.runs.layout import RunPaths
from whet.runs.lock import only_one_process
from whet.runs.reader import read_run

PLAN = """
run: runs/first
model: {path: tiny}
stages:
- {kind: sft, name: sft}
- {kind: dpo, name: second}
- {kind: evaluate}
"""


def half_done_run(root):
    sft = root / "stages" / "01-sft"
    sft.mkdir(parents=True)
    (root / "plan.yaml").write_text(PLAN)
    (root / "environment.json").write_text('{"seed": 42}')
    (sft / "config.yaml").write_text("kind: sft\nname: sft\n")
    (sft / "status.json").write_text(
        json.dumps({"name": "sft", "kind": "sft", "status": "done", "seconds": 3.5, "metrics": {"loss": 1.5}})
    )
    (sft / "metrics.jsonl").write_text('{"step": 0, "eval/loss": 2.5}\n{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
    second = root / "stages" / "02-second"
    second.mkdir()
    (second / "status.json").write_text(json.dumps({"name": "second", "kind": "dpo", "status": "running"}))
    return root


def test_a_run_that_stopped_half_way(tmp_path):
    root = half_done_run(tmp_path / "first")
    with only_one_process(RunPaths(root)):
        run = read_run(root)
    assert [(stage.name, stage.kind, stage.status) for stage in run.stages] == [
        ("sft", "sft", "done"),
        ("second", "dpo", "running"),
        ("evaluate", "evaluate", "waiting"),
    ]
    assert (run.name, run.status, run.summary, run.environment) == ("first", "running", None, {"seed": 42})
    assert run.stages[0].steps == [{"step": 1, "loss": 2.0}]
    assert run.stages[0].evaluations == [{"step": 0, "eval/loss": 2.5}]


def test_a_run_that_nobody_holds_does_not_run(tmp_path):
    """Killed, it could not say so itself."""
    root = half_done_run(tmp_path / "first")
    assert [stage.status for stage in read_run(root).stages] == ["done", "interrupted", "waiting"]
    (root / ".lock").touch()
    run = read_run(root)
    assert (run.stages[1].status, run.status) == ("interrupted", "interrupted")
    with only_one_process(RunPaths(root)):
        assert read_run(root).status == "running"


def test_where_nobody_can_know_it_runs(tmp_path, monkeypatch):
    root = half_done_run(tmp_path / "first")
    monkeypatch.setattr("whet.runs.reader.is_held", lambda paths: None)
    assert read_run(root).status == "running"


def test_a_folder_that_the_plan_does_not_name_is_left_over(tmp_path, capsys):
    root = half_done_run(tmp_path / "first")
    for number, name in ((2, "second"), (3, "evaluate")):
        folder = root / "stages" / f"{number:02d}-{name}"
        folder.mkdir(exist_ok=True)
        (folder / "status.json").write_text(json.dumps({"name": name, "kind": "dpo", "status": "done"}))
    old = root / "stages" / "02-renamed-since"
    old.mkdir()
    (old / "status.json").write_text(json.dumps({"name": "renamed-since", "kind": "dpo", "status": "running"}))
    with only_one_process(RunPaths(root)):
        run = read_run(root)
    assert [(stage.name, stage.planned) for stage in run.stages][-1] == ("renamed-since", False)
    assert (run.stages[-1].status, run.status) == ("interrupted", "done")
    print_status(root)
    assert re.search(r"renamed-since.*leftover.*the plan names no such stage", capsys.readouterr().out)
    (root / "plan.yaml").unlink()
    assert read_run(root).status == "interrupted", "without a plan nothing is left over"


MEASURE = {"stage": "sft", "task": "exact", "metric": "accuracy", "value": 0.5, "low": 0.4, "high": 0.6, "num": 90}
SAMPLE = {"model": "m", "task": "t", "key": "k", "prompt": "p", "completion": "c", "reference": None, "score": None}


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("evaluation.json", [{"stage": "base"}], r"evaluation\.json: is damaged \(found without task, metric"),
        ("evaluation.json", {"stage": "base"}, r"evaluation\.json: is damaged \(found no list but dict"),
        ("evaluation.json", [MEASURE | {"new": 1}], r"has keys that this .* \(found new\); a newer one"),
        ("samples.jsonl", {"model": "x"}, r"samples\.jsonl:1: is damaged \(found without task, key"),
        ("samples.jsonl", 3, r"samples\.jsonl:1: is damaged \(found no keys and values but int"),
        ("samples.jsonl", SAMPLE | {"zzz": 1}, r"samples\.jsonl:1: has keys .* \(found zzz\); a newer"),
        ("metrics.jsonl", {"loss": 1}, r"metrics\.jsonl: is damaged \(found line 1 without step"),
        *(
            ("metrics.jsonl", {"step": step, "loss": 1}, r"metrics\.jsonl: is damaged \(found line 1 without step")
            for step in (None, "3", True)
        ),
        ("metrics.jsonl", 3, r"metrics\.jsonl: is damaged \(found line 1 without step"),
        ("status.json", [], r"status\.json: is damaged \(found no keys and values but list"),
        ("data.json", 3, r"data\.json: is damaged"),
        ("../../summary.json", [], r"summary\.json: is damaged"),
        ("../../summary.json", {"stages": [{}]}, r"summary\.json: is damaged"),
        ("../../environment.json", 1, r"environment\.json: is damaged"),
        ("../../plan.yaml", {"stages": [{"name": "a"}]}, r"plan\.yaml: is damaged"),
    ],
)  # fmt: skip
def test_what_parses_and_is_not_what_was_written_is_one_line(tmp_path, name, content, says):
    root = half_done_run(tmp_path / "first")
    (root / "stages" / "01-sft" / name).write_text(json.dumps(content) + "\n")
    with pytest.raises(RunError, match=says) as caught:
        read_run(root)
    assert "\n" not in str(caught.value)


def test_measures_and_samples_are_typed(tmp_path):
    root = half_done_run(tmp_path / "first")
    folder = root / "stages" / "03-evaluate"
    folder.mkdir()
    measure = {"stage": "sft", "task": "exact", "metric": "accuracy", "value": 0.5, "low": 0.4, "high": 0.6, "num": 90}
    sample = {"model": "sft", "task": "exact", "key": "a:1#0", "prompt": "p", "completion": "c"}
    sample |= {"reference": None, "score": 1.0}
    (folder / "evaluation.json").write_text(json.dumps([measure]))
    (folder / "samples.jsonl").write_text(json.dumps(sample) + "\n")
    run = read_run(root)
    assert run.evaluation[0].high == 0.6
    assert run.stages[2].samples[0].completion == "c"


def test_a_directory_that_is_no_run_is_one_clear_line(tmp_path):
    with pytest.raises(RunError, match="not a run directory"):
        read_run(tmp_path)


def test_reading_needs_no_torch():
    code = "import sys, whet.runs.reader, whet.runs.sinks, whet.report; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
