import json
import subprocess
import sys

import pytest

from whet.errors import RunError
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
    run = read_run(half_done_run(tmp_path / "first"))
    assert [(stage.name, stage.kind, stage.status) for stage in run.stages] == [
        ("sft", "sft", "done"),
        ("second", "dpo", "running"),
        ("evaluate", "evaluate", "waiting"),
    ]
    assert (run.name, run.status, run.summary, run.environment) == ("first", "running", None, {"seed": 42})
    assert run.stages[0].steps == [{"step": 1, "loss": 2.0}]
    assert run.stages[0].evaluations == [{"step": 0, "eval/loss": 2.5}]


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
