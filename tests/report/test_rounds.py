"""The page's section on rounds: a row a model, its numbers where they belong, and why the rounds ended."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from whet.report.page import write_report
from whet.report.rounds import RoundsSection, read_rounds
from whet.runs.reader import read_run

NAMES = [[f"{name}-{number}" for name in ("prompts", "prepare", "dpo", "evaluate")] for number in (1, 2, 3)]
STAGES = ["sft", *(name for names in NAMES for name in names)]
STOPPED = "held_out/accuracy of dpo-2 is 0.620, and dpo-1 had 0.600 [0.570, 0.630]: no gain beyond the interval"


def write(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def measure(model: str, task: str, metric: str, value: float, half: float = 0.03) -> dict[str, Any]:
    shown = {"stage": model, "task": task, "metric": metric, "value": value}
    return shown | {"low": value - half, "high": value + half, "num": 600}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Two of three rounds, as the pipeline leaves them."""
    root = tmp_path / "run"
    kinds = {name: name.partition("-")[0] for name in STAGES}
    loop = {"name": "round", "start": "sft", "repeat": 3, "rounds": NAMES, "models": ["dpo-1", "dpo-2", "dpo-3"]}
    plan = {"run": str(root), "stages": [{"name": n, "kind": kinds[n]} for n in STAGES], "loops": [loop]}
    root.mkdir()
    (root / "plan.yaml").write_text(yaml.safe_dump(plan))
    metrics = {
        "prompts": {"num_prompts": 400.0, "distinct_2": 0.25, "self_rouge_l": 0.31},
        "prepare": {"num_pairs": 320.0, "agreement": 0.87, "accuracy": 0.39, "mean_length": 6.6},
    }
    for number, name in enumerate(STAGES[:9], start=1):
        folder, kind = root / "stages" / f"{number:02d}-{name}", kinds[name]
        status = {"name": name, "kind": kind, "status": "done", "seconds": 1.0, "metrics": metrics.get(kind, {})}
        write(folder / "status.json", status)
        if kind == "prepare":
            score = {"edges": [0.0, 2.5, 5.0], "counts": [30, 70]}
            candidates = {"edges": [0, 1, 2], "counts": [0, 4]}
            write(folder / "histograms.json", {"score": score, "candidates": candidates})
        if kind == "evaluate":
            value = {"evaluate-1": 0.60, "evaluate-2": 0.62}[name]
            model = name.replace("evaluate", "dpo")
            write(folder / "evaluation.json", [
                measure(model, "held_out", "accuracy", value),
                measure(model, "held_out", "accuracy/sum", value),
                measure(model, "judging", "agreement", 0.86),
                measure(model, "match", "win_rate", 0.7),
                measure(model, "match", "consistency", 0.9),
            ])  # fmt: skip
    rounds = [
        {"number": 0, "model": "sft", "value": None, "low": None, "high": None, "mean_length": None},
        {"number": 1, "model": "dpo-1", "value": 0.60, "low": 0.57, "high": 0.63, "mean_length": 6.0},
        {"number": 2, "model": "dpo-2", "value": 0.62, "low": 0.59, "high": 0.65, "mean_length": 6.3},
    ]
    states = [{"name": n, "kind": kinds[n], "status": "done" if n in STAGES[:9] else "left out"} for n in STAGES]
    write(root / "summary.json", {"run": str(root), "stages": states, "evaluation": [], "loops": [
        {"name": "round", "rounds": rounds, "done": 2, "of": 3, "stopped": STOPPED, "kept": "dpo-1",
         "metric": "held_out/accuracy"},
    ]})  # fmt: skip
    return root


@pytest.fixture
def section(run: Path) -> RoundsSection:
    (found,) = read_rounds(read_run(run))
    return found


def column(section: RoundsSection, words: str) -> list[tuple[str, str] | None]:
    place = section.columns.index(words)
    return [(cell.text, cell.trend) if (cell := row.cells[place]) else None for row in section.rows]


def test_a_row_a_model(section: RoundsSection) -> None:
    assert [(row.name, row.model, row.kept) for row in section.rows] == [
        ("M0", "sft", False), ("M1", "dpo-1", True), ("M2", "dpo-2", False),
    ]  # fmt: skip
    assert column(section, "held_out accuracy") == [None, ("0.600", ""), ("0.620", "same")]
    assert column(section, "judging agreement") == [None, ("0.860", ""), ("0.860", "same")]
    assert column(section, "match win rate") == [None, ("0.700", "better"), ("0.700", "better")]
    assert column(section, "tokens an answer") == [None, ("6.0", ""), ("6.3", "")]
    assert column(section, "pairs") == [None, ("320", ""), ("320", "")]
    assert column(section, "prompts alike (ROUGE-L)") == [None, ("0.310", ""), ("0.310", "")]
    assert not any("consistency" in words or "sum" in words for words in section.columns)


def test_what_a_judge_said_of_its_own_answers_stands_with_the_model_that_gave_them(section: RoundsSection) -> None:
    assert column(section, "judge on own answers (AUC)") == [("0.870", ""), ("0.870", ""), None]


def test_sentences(section: RoundsSection) -> None:
    texts = [verdict.text for verdict in section.verdicts]
    assert texts[0].startswith("held_out/accuracy: 0.600 [0.570, 0.630] for M1 (dpo-1), 0.620 [0.590, 0.650] for M2")
    assert texts[0].endswith("the intervals overlap.")
    assert "Answers of M2 are 1.05 times as long as those of M1." in texts
    assert f"Stopped after 2 of 3 rounds: {STOPPED}." in texts
    assert texts[-1] == "Later stages go on from dpo-1."


def test_rounds_whose_tasks_differ_are_not_compared(run: Path) -> None:
    for number, place in ((1, "05"), (2, "09")):
        task = {"type": "exact", "name": "held_out", "data": {"files": [f"held_out_{number}.jsonl"]}}
        config = run / "stages" / f"{place}-evaluate-{number}" / "config.yaml"
        config.write_text(yaml.safe_dump({"tasks": [task]}))
    (found,) = read_rounds(read_run(run))
    assert column(found, "held_out accuracy") == [None, ("0.600", ""), ("0.620", "")]
    assert column(found, "judging agreement") == [None, ("0.860", ""), ("0.860", "same")]
    assert not any(verdict.text.startswith("held_out/accuracy") for verdict in found.verdicts)


def test_a_later_stage_with_tasks_of_the_same_name_overwrites_no_round(run: Path) -> None:
    plan = yaml.safe_load((run / "plan.yaml").read_text())
    plan["stages"].append({"name": "after", "kind": "evaluate"})
    (run / "plan.yaml").write_text(yaml.safe_dump(plan))
    after = run / "stages" / f"{len(STAGES) + 1:02d}-after"
    write(after / "evaluation.json", [measure("dpo-1", "held_out", "accuracy", 0.1)])
    (found,) = read_rounds(read_run(run))
    assert column(found, "held_out accuracy") == [None, ("0.600", ""), ("0.620", "same")]


def test_charts(section: RoundsSection) -> None:
    rounds, scores = section.charts
    assert [panel.ylabel.split("\n")[0] for panel in rounds.figure.panels] == ["held_out", "judge", "tokens"]
    (panel,) = scores.figure.panels
    assert [series.label for series in panel.series] == ["M0", "M1"] and panel.series[0].y == [0.3, 0.7]


def test_on_the_page(run: Path) -> None:
    html = write_report(run).read_text()
    assert 'href="#rounds-round"' in html and 'href="#stage-prepare-2"' in html
    assert "no gain beyond the interval" in html
    assert read_run(run).status == "done"
    assert "left out" in html
    assert (run / "report" / "00-round-rounds.png").exists()


def test_a_run_without_rounds_has_no_section(run: Path) -> None:
    summary = json.loads((run / "summary.json").read_text())
    write(run / "summary.json", {name: value for name, value in summary.items() if name != "loops"})
    assert read_rounds(read_run(run)) == []
