"""The pipeline: what is skipped, what is made again and why, what is refused, and what it leaves for others to read.

Most tests put a stand-in where a stage would train; what stages do inside is tested with them.
"""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from whet.config.load import dump_plan
from whet.config.plan import Plan
from whet.errors import ConfigError, DataError, RunError
from whet.ranks.group import Ended, Ranks
from whet.ranks.pulse import pulse
from whet.runs.files import read_json, read_jsonl, write_text
from whet.runs.layout import RunPaths
from whet.runs.reader import read_run
from whet.schema.artifacts import Measure, ModelRef, StageResult
from whet.stages import pipeline
from whet.stages.claim import archive
from whet.stages.context import Context
from whet.stages.pipeline import run_plan

Dispatch = Callable[[Any, Context], StageResult]


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A folder with data files and something that stands for a checkpoint."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "sft.json").write_text("[1]")
    (tmp_path / "dpo.json").write_text("[2]")
    return tmp_path


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Replaces every stage; lists the names of those that ran. An adapter holds the data of all stages up to it."""
    names: list[str] = []

    def stand_in(stage: Any, context: Context) -> StageResult:
        names.append(stage.name)
        if stage.kind == "evaluate":
            measure = Measure(stage="dpo", task="exact", metric="accuracy", value=0.5, low=0.4, high=0.6, num=96)
            return StageResult(metrics={"tasks": 1.0}, evaluation=(measure,))
        file = Path(stage.data.files[0])
        if not file.exists():
            raise DataError("no such file", file=str(file))
        before = Path(context.start.adapter, "weights").read_text() if context.start.adapter else ""
        write_text(context.paths.adapter / "weights", before + file.read_text())
        return StageResult(
            metrics={"loss": 1.0}, model=ModelRef(path=context.start.path, adapter=str(context.paths.adapter))
        )

    monkeypatch.setattr(pipeline, "dispatch", stand_in)
    return names


def plan(work: Path, **changes: Any) -> Plan:
    values: dict[str, Any] = {
        "run": str(work / "run"),
        "model": {"path": str(work / "model")},
        "stages": [
            {"kind": "sft", "name": "sft", "data": {"files": [str(work / "sft.json")]}},
            {"kind": "dpo", "name": "dpo", "data": {"files": [str(work / "dpo.json")]}},
            {"kind": "evaluate", "name": "evaluate", "models": ["base", "dpo"]},
        ],
    }
    return Plan.model_validate(values | changes)


def events(work: Path) -> list[tuple[str, str]]:
    return [(row["event"], row["stage"]) for row in read_jsonl(work / "run" / "ledger.jsonl") if "stage" in row]


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_summary(work: Path, ran: list[str]) -> None:
    summary = run_plan(plan(work))
    assert ran == ["sft", "dpo", "evaluate"]
    assert read_json(work / "run" / "summary.json") == summary
    assert list(summary) == ["run", "stages", "evaluation"]
    assert summary["run"] == str(work / "run")
    assert [list(stage) for stage in summary["stages"]] == [["name", "kind", "status", "seconds", "metrics"]] * 3
    assert [(s["name"], s["kind"], s["status"]) for s in summary["stages"]] == [
        ("sft", "sft", "done"), ("dpo", "dpo", "done"), ("evaluate", "evaluate", "done"),
    ]  # fmt: skip
    assert summary["stages"][0]["metrics"] == {"loss": 1.0}
    assert summary["evaluation"] == [
        {"stage": "dpo", "task": "exact", "metric": "accuracy", "value": 0.5, "low": 0.4, "high": 0.6, "num": 96}
    ]


def test_what_is_done_is_skipped(work: Path, ran: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    first = run_plan(plan(work))
    before = tree(work / "run" / "stages")
    ran.clear()
    assert run_plan(plan(work)) == first
    assert ran == []
    assert tree(work / "run" / "stages") == before
    assert "sft: done before, inputs unchanged" in capsys.readouterr().out


def test_until_stops_behind_a_stage_and_a_later_call_goes_on(work: Path, ran: list[str]) -> None:
    summary = run_plan(plan(work), until="dpo")
    assert ran == ["sft", "dpo"]
    assert [stage["status"] for stage in summary["stages"]] == ["done", "done", "waiting"]
    ran.clear()
    summary = run_plan(plan(work))
    assert ran == ["evaluate"]
    assert [stage["status"] for stage in summary["stages"]] == ["done"] * 3
    ran.clear()
    summary = run_plan(plan(work), until="sft")
    assert ran == [] and [stage["status"] for stage in summary["stages"]] == ["done"] * 3


def test_the_summary_keeps_values_of_stages_behind_the_last_that_was_done(work: Path, ran: list[str]) -> None:
    whole = run_plan(plan(work))
    assert len(whole["evaluation"]) == 1
    part = run_plan(plan(work), until="sft")
    assert [stage["status"] for stage in part["stages"]] == ["done"] * 3
    assert part["evaluation"] == whole["evaluation"] == read_json(work / "run" / "summary.json")["evaluation"]


def test_the_summary_keeps_values_that_an_earlier_stage_made_again_leaves_valid(
    work: Path, ran: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(f"2026-01-01T00:00:{second:02}" for second in range(60))
    monkeypatch.setattr(pipeline, "now", lambda: next(clock))
    evaluate = {"kind": "evaluate", "name": "evaluate", "start": "base", "models": ["base"]}
    stages = [*plan(work).model_dump(mode="json")["stages"][:1], evaluate]
    whole = run_plan(plan(work, stages=stages))
    (work / "sft.json").write_text("[11]")
    ran.clear()
    again = run_plan(plan(work, stages=stages))
    assert ran == ["sft"], "the evaluation is of the base"
    assert again["evaluation"] == whole["evaluation"] != []


def test_an_evaluation_of_two_choices_is_refused_before_anything_is_trained(work: Path, ran: list[str]) -> None:
    stages = [*plan(work).model_dump(mode="json")["stages"][:2], {
        "kind": "evaluate", "name": "evaluate", "start": "sft", "models": ["base"],
    }]  # fmt: skip
    with pytest.raises(ConfigError, match=r"evaluate\.start: `start` and `models` name different models") as caught:
        run_plan(plan(work, stages=stages))
    assert "\n" not in str(caught.value) and ran == [] and not (work / "run").exists()


def test_until_a_stage_that_is_not_there_makes_nothing(work: Path, ran: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"--until: the plan has no such stage \(found 'dpoo'\); did you mean dpo\?"):
        run_plan(plan(work), until="dpoo")
    with pytest.raises(ConfigError, match="its stages are sft, dpo, evaluate"):
        run_plan(plan(work), until="reward")
    assert ran == [] and not (work / "run").exists()


def test_a_file_touched_but_not_changed_is_the_same_file(work: Path, ran: list[str]) -> None:
    run_plan(plan(work))
    ran.clear()
    (work / "sft.json").write_text("[1]")
    run_plan(plan(work))
    assert ran == []


def test_changed_data_makes_its_stage_and_what_follows_again(
    work: Path, ran: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    run_plan(plan(work))
    earlier = tree(work / "run" / "stages" / "01-sft")
    ran.clear()
    (work / "sft.json").write_text("[1, 1]")
    run_plan(plan(work))
    assert ran == ["sft", "dpo", "evaluate"]
    out = capsys.readouterr().out
    assert f"sft: made again, changed: {work / 'sft.json'}; the earlier result is in" in out
    assert "dpo: made again, changed: adapter start" in out
    assert "evaluate: made again, changed: adapter dpo" in out
    assert tree(work / "run" / "archive" / "001-01-sft") == earlier
    assert events(work)[-9:] == [
        (event, stage) for stage in ("sft", "dpo", "evaluate") for event in ("stale", "started", "done")
    ]


def test_changed_data_of_a_later_stage_leaves_the_earlier_one(work: Path, ran: list[str]) -> None:
    run_plan(plan(work))
    ran.clear()
    (work / "dpo.json").write_text("[3]")
    run_plan(plan(work))
    assert ran == ["dpo", "evaluate"]


def test_changed_weights_of_the_base_make_everything_again(work: Path, ran: list[str]) -> None:
    run_plan(plan(work))
    ran.clear()
    (work / "model" / "model.safetensors").write_bytes(b"other")
    run_plan(plan(work))
    assert ran == ["sft", "dpo", "evaluate"]


@pytest.mark.parametrize("named", ["data.registry", "a judge's template", "a checker", "the rival of a win rate"])
def test_files_named_in_odd_places_count_too(named: str, work: Path, ran: list[str]) -> None:
    (work / "check.py").write_text("def f(p, c): return 1.0")
    (work / "rival").mkdir()
    (work / "rival" / "weights").write_text("1")
    (work / "pair.txt").write_text("{instruction} {first} {second}")
    (work / "dataset_info.json").write_text(json.dumps({"mine": {"file_name": "sft.json"}}))
    tasks = [
        {"type": "exact", "checker": {"type": "custom", "path": f"{work / 'check.py'}:f"}},
        {"type": "win_rate", "against": str(work / "rival"), "template": str(work / "pair.txt")},
    ]
    stages: list[dict[str, Any]] = [{"kind": "evaluate", "name": "evaluate", "models": ["base"], "tasks": tasks}]
    stages[0]["tasks"][0]["data"] = {"files": ["mine"], "registry": str(work / "dataset_info.json")}
    run_plan(plan(work, stages=stages))
    run_plan(plan(work, stages=stages))
    assert ran == ["evaluate"]
    match named:
        case "data.registry":
            (work / "sft.json").write_text("[5]")
        case "a judge's template":
            (work / "pair.txt").write_text("{instruction} {first} or {second}")
        case "a checker":
            (work / "check.py").write_text("def f(p, c): return 0.0")
        case "the rival of a win rate":
            (work / "rival" / "weights").write_text("2")
    run_plan(plan(work, stages=stages))
    assert ran == ["evaluate", "evaluate"]


def test_a_result_that_was_removed_is_made_again(work: Path, ran: list[str]) -> None:
    run_plan(plan(work))
    ran.clear()
    (work / "run/stages/01-sft/adapter/weights").unlink()
    (work / "run/stages/01-sft/adapter").rmdir()
    run_plan(plan(work))
    assert ran == ["sft"], "and the same bytes again leave what follows alone"


def test_another_plan_is_refused_and_nothing_is_touched(work: Path, ran: list[str]) -> None:
    run_plan(plan(work))
    before = tree(work / "run")
    other = plan(work, model={"path": str(work / "model"), "lora": {"rank": 3}})
    with pytest.raises(RunError, match=r"belongs to another plan \(found model.lora.rank \(16 -> 3\)\); .*--fresh"):
        run_plan(other)
    assert tree(work / "run") == before


@pytest.mark.parametrize("name", ["plan.yaml", "stages/01-sft/status.json"])
@pytest.mark.parametrize("text", ["{", "[]", ""])
def test_a_damaged_run_is_one_line_and_can_be_begun_anew(name: str, text: str, work: Path, ran: list[str]) -> None:
    run_plan(plan(work))
    (work / "run" / name).write_text(text)
    ran.clear()
    with pytest.raises(RunError, match=rf"{name}: is damaged .*--fresh") as caught:
        run_plan(plan(work))
    assert "\n" not in str(caught.value) and ran == []
    run_plan(plan(work), fresh=True)
    assert ran == ["sft", "dpo", "evaluate"]


def test_fresh_archives_and_starts_over(work: Path, ran: list[str]) -> None:
    run_plan(plan(work))
    before = tree(work / "run")
    ran.clear()
    run_plan(plan(work, model={"path": str(work / "model"), "lora": {"rank": 3}}), fresh=True)
    assert ran == ["sft", "dpo", "evaluate"]
    kept = tree(work / "run" / "archive")
    for name in ("plan.yaml", "summary.json", "stages/01-sft/adapter/weights"):
        assert before[name] in kept.values(), name


@pytest.mark.parametrize("foreign", ["stacks", "notes.txt", "thesis"])
def test_fresh_leaves_what_is_not_the_runs_where_it_is(foreign: str, work: Path, ran: list[str]) -> None:
    """What the watchdog wrote, or a person put there, is no obstacle: neither to --fresh nor to any start after it."""
    run_plan(plan(work))
    place = work / "run" / foreign
    place.write_text("precious") if place.suffix else write_text(place / "rank-0.txt", "precious")
    ran.clear()
    other = plan(work, model={"path": str(work / "model"), "lora": {"rank": 3}})
    run_plan(other, fresh=True)
    assert ran == ["sft", "dpo", "evaluate"]
    assert place.exists() and not list((work / "run" / "archive").glob(f"*-{foreign}"))
    assert len(run_plan(other)["stages"]) == 3 and len(ran) == 3
    run_plan(plan(work), fresh=True)
    assert len(ran) == 6


def test_killed_after_the_old_plan_was_archived_the_directory_is_still_the_runs(work: Path, ran: list[str]) -> None:
    run_plan(plan(work))
    write_text(work / "run" / "notes.txt", "precious")
    archive(RunPaths(work / "run"), work / "run" / "stages")
    archive(RunPaths(work / "run"), work / "run" / "plan.yaml")
    run_plan(plan(work))
    assert len(ran) == 6


def killed_where(name: str, monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]) -> None:
    """Do something in which the process is killed as a file is about to get this name."""

    class Killed(BaseException):
        pass

    def replace(path: Path, target: Any) -> Path:
        if Path(target).name.endswith(name):
            raise Killed
        return rename(path, target)

    rename = Path.replace
    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", replace)
        with pytest.raises(Killed):
            act()


@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize("name", ["environment.json", "plan.yaml"])
def test_killed_as_it_took_the_directory(
    name: str, fresh: bool, work: Path, ran: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the files that say whose it is some are not there yet, or went to the archive."""
    if fresh:
        run_plan(plan(work))
        write_text(work / "run" / "notes.txt", "precious")
        (work / "run" / "ledger.jsonl").unlink()
    killed_where(name, monkeypatch, lambda: run_plan(plan(work), fresh=fresh))
    assert not list((work / "run").glob("*-plan.yaml"))
    ran.clear()
    run_plan(plan(work), fresh=fresh)
    assert ran == ["sft", "dpo", "evaluate"]


@pytest.mark.parametrize("last", ["001-stages", "002-summary.json", "003-plan.yaml", "004-environment.json"])
def test_killed_between_two_parts_that_go_to_the_archive(
    last: str, work: Path, ran: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run_plan(plan(work))
    write_text(work / "run" / "notes.txt", "precious")
    (work / "run" / "ledger.jsonl").unlink()  # a run killed as it began has none
    killed_where(last, monkeypatch, lambda: run_plan(plan(work), fresh=True))
    run_plan(plan(work), fresh=True)
    assert len(ran) == 6


OWN = "# mine, with a comment\nrun: .\n"


@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize("beside", [{}, {"ledger.jsonl": '{"amount": 3}\n', "environment.json": '{"values": []}'}])
def test_a_plan_alone_makes_no_run_directory(
    beside: dict[str, str], fresh: bool, work: Path, ran: list[str]
) -> None:  # fmt: skip
    """The user's own, in the directory that it names: neither it nor what lies beside it is touched."""
    files = {"plan.yaml": OWN, "report/index.html": "mine", "data.jsonl": "[1]", **beside}
    for name, text in files.items():
        write_text(work / "run" / name, text)
    with pytest.raises(RunError, match=r"in use, but not by a run \(found \S+\); choose another `run`"):
        run_plan(plan(work), fresh=fresh)
    assert ran == [] and tree(work / "run") == {".lock": b"", **{name: text.encode() for name, text in files.items()}}


@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize("text", [OWN, "run: .\nstages:\n- kind: sft\n", "steps: [a, b]\n"])
def test_a_plan_that_whet_did_not_write_stays_as_it_is(text: str, fresh: bool, work: Path, ran: list[str]) -> None:
    """Put where a run has begun, by a person."""
    root = work / "run"
    write_text(root / "environment.json", '{"packages": {}}')
    write_text(root / "plan.yaml", text)
    with pytest.raises(RunError, match=r"plan.yaml: was not written by whet, and .*; choose another `run`"):
        run_plan(plan(work), fresh=fresh)
    assert ran == [] and (root / "plan.yaml").read_text() == text and not (root / "archive").exists()


def test_this_very_plan_alone_is_a_run_that_was_killed_as_it_began(work: Path, ran: list[str]) -> None:
    """Or one that somebody copied."""
    write_text(work / "run" / "plan.yaml", dump_plan(plan(work)))
    run_plan(plan(work))
    assert ran


def test_comments_in_the_plan_of_a_run_are_kept(work: Path, ran: list[str]) -> None:
    run_plan(plan(work))
    file = work / "run" / "plan.yaml"
    file.write_text("# the good one\n" + file.read_text())
    (work / "sft.json").write_text("[4]")
    run_plan(plan(work))
    assert len(ran) == 6 and file.read_text().startswith("# the good one\n")


def test_fresh_leaves_a_report_folder_that_is_not_whets(work: Path, ran: list[str]) -> None:
    run_plan(plan(work))
    write_text(work / "run/report/paper.tex", "precious")
    run_plan(plan(work), fresh=True)
    assert (work / "run/report/paper.tex").read_text() == "precious"


def test_stacks_alone_make_no_directory_anothers(work: Path, ran: list[str]) -> None:
    """The watchdog of a run that hung before it wrote its plan."""
    write_text(work / "run" / "stacks" / "rank-0.txt", "")
    run_plan(plan(work))
    assert ran == ["sft", "dpo", "evaluate"]


def test_archives_never_collide(work: Path, ran: list[str]) -> None:
    for number in range(3):
        (work / "sft.json").write_text(f"[{number}]")
        run_plan(plan(work))
    (first, *_) = sorted((work / "run" / "archive").iterdir())
    for path in sorted(first.rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    first.rmdir()
    (work / "sft.json").write_text("[9]")
    run_plan(plan(work))
    assert len(list((work / "run" / "archive").iterdir())) == 8


def test_a_failed_stage_is_said_and_goes_on_once_mended(
    work: Path, ran: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "check_ahead", lambda *_, **__: None)  # as if it vanished while sft ran
    (work / "dpo.json").unlink()
    with pytest.raises(DataError, match="no such file"):
        run_plan(plan(work))
    summary = read_json(work / "run" / "summary.json")
    assert [stage["status"] for stage in summary["stages"]] == ["done", "failed", "waiting"]
    status = read_json(work / "run" / "stages" / "02-dpo" / "status.json")
    assert status["error"].endswith("no such file")
    (work / "dpo.json").write_text("[2]")
    ran.clear()
    assert [stage["status"] for stage in run_plan(plan(work))["stages"]] == ["done"] * 3
    assert ran == ["dpo", "evaluate"]


def break_dpo(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    good = pipeline.dispatch

    def broken(stage: Any, context: Context) -> StageResult:
        if stage.name == "dpo":
            raise error
        return good(stage, context)

    monkeypatch.setattr(pipeline, "dispatch", broken)


def test_a_defect_keeps_its_traceback_and_can_be_resumed(
    work: Path, ran: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as broken, pytest.raises(ZeroDivisionError):
        break_dpo(broken, ZeroDivisionError())
        run_plan(plan(work))
    run_plan(plan(work))
    assert ran == ["sft", "dpo", "evaluate"]
    assert ("resumed", "dpo") in events(work)


@pytest.mark.parametrize(
    ("error", "state", "says"),
    [
        (ZeroDivisionError("no\nmore"), "failed", "ZeroDivisionError: no"),
        (KeyboardInterrupt(), "interrupted", None),
        (SystemExit(143), "interrupted", None),
    ],
)
def test_whatever_ends_a_stage_is_written_down(
    error: BaseException, state: str, says: str | None, work: Path, ran: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as broken, pytest.raises(type(error)):
        break_dpo(broken, error)
        run_plan(plan(work))
    status = read_json(work / "run/stages/02-dpo/status.json")
    assert (status["status"], status["error"]) == (state, says) and status["finished"] and status["seconds"] is not None
    assert [s["status"] for s in read_json(work / "run/summary.json")["stages"]] == ["done", state, "waiting"]
    assert events(work)[-1] == (state, "dpo")
    assert read_run(work / "run").status == state
    assert [s["status"] for s in run_plan(plan(work))["stages"]] == ["done"] * 3
    assert events(work)[-4:-2] == [("resumed", "dpo"), ("done", "dpo")]


def test_what_another_rank_says_is_not_said_again(monkeypatch: pytest.MonkeyPatch) -> None:
    state_after, first, second = pipeline.state_after, Ranks(rank=0, world=2), Ranks(rank=1, world=2)
    assert state_after(Ended(), first) is None
    assert state_after(ZeroDivisionError(), second) == "failed"
    assert (state_after(KeyboardInterrupt(), first), state_after(KeyboardInterrupt(), second)) == ("interrupted", None)
    monkeypatch.setattr(pulse, "lost", "the gradients")
    assert state_after(RuntimeError("connection closed by peer"), first) is None
    assert state_after(DataError("no such file"), second) == "failed"


def test_seconds_are_those_of_all_processes(work: Path, ran: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    good, clock = pipeline.dispatch, [0.0]
    monkeypatch.setattr(pipeline.time, "perf_counter", lambda: clock[0])

    def stopped(stage: Any, context: Context) -> StageResult:
        clock[0] += 100.0
        raise KeyboardInterrupt

    def slow(stage: Any, context: Context) -> StageResult:
        clock[0] += 7.0
        return good(stage, context)

    monkeypatch.setattr(pipeline, "dispatch", stopped)
    for seconds in (100.0, 200.0):
        with pytest.raises(KeyboardInterrupt):
            run_plan(plan(work))
        assert read_json(work / "run/stages/01-sft/status.json")["seconds"] == seconds
    monkeypatch.setattr(pipeline, "dispatch", slow)
    summary = run_plan(plan(work))
    assert [stage["seconds"] for stage in summary["stages"]] == [207.0, 7.0, 7.0]
    assert next(row["seconds"] for row in read_jsonl(work / "run/ledger.jsonl") if row["event"] == "done") == 207.0
    (work / "sft.json").write_text("[6]")
    assert run_plan(plan(work))["stages"][0]["seconds"] == 7.0, "made again, it is another"


def test_seconds_of_a_killed_process_count(work: Path, ran: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """It says nothing itself; its last line does."""

    def killed(stage: Any, context: Context) -> StageResult:
        write_text(context.paths.metrics, "")
        os.utime(context.paths.status, (1000, 1000))
        os.utime(context.paths.metrics, (1050, 1050))
        monkeypatch.setattr(pipeline, "state_after", lambda *_: None)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(pipeline, "dispatch", killed)
        with pytest.raises(KeyboardInterrupt):
            run_plan(plan(work))
    assert read_json(work / "run/stages/01-sft/status.json")["status"] == "running"
    assert 50.0 <= run_plan(plan(work))["stages"][0]["seconds"] < 60.0


def test_a_stage_renamed_before_it_made_anything_leaves_nothing_behind(
    work: Path, ran: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    good = pipeline.dispatch

    def broken(stage: Any, context: Context) -> StageResult:
        raise DataError("no such file")

    monkeypatch.setattr(pipeline, "dispatch", broken)
    with pytest.raises(DataError):
        run_plan(plan(work))
    write_text(work / "run/stages/01-sft/notes.txt", "precious")
    write_text(work / "run/stages/9-mine/notes.txt", "not whet's")
    monkeypatch.setattr(pipeline, "dispatch", good)
    first, *_ = plan(work).model_dump(mode="json")["stages"]
    run_plan(plan(work, stages=[{**first, "name": "renamed"}]))
    run = read_run(work / "run")
    assert run.status == "done" and {p.name for p in (work / "run/stages").iterdir()} == {"01-renamed", "9-mine"}
    assert (work / "run/archive/001-01-sft/notes.txt").read_text() == "precious"
    assert "sft: the plan does not name it any more; its folder is in" in capsys.readouterr().out
    assert ("stale", "sft") in events(work)


def test_a_directory_of_something_else_is_left_alone(work: Path, ran: list[str]) -> None:
    (work / "run").mkdir()
    (work / "run" / "thesis.tex").write_text("precious")
    for fresh in (False, True):
        with pytest.raises(RunError, match="in use, but not by a run"):
            run_plan(plan(work), fresh=fresh)
    assert ran == []
    assert {p.name for p in (work / "run").iterdir()} == {"thesis.tex", ".lock"}


@pytest.mark.parametrize("left", [[".plan.yaml.tmp123"], ["ledger.jsonl", "archive", ".x.tmp9"], []])
def test_what_a_kill_leaves_before_the_plan_is_written(left: list[str], work: Path, ran: list[str]) -> None:
    (work / "run").mkdir()
    for name in left:
        (work / "run" / name).mkdir() if name == "archive" else (work / "run" / name).write_text("")
    run_plan(plan(work))
    assert ran == ["sft", "dpo", "evaluate"]
    assert (work / "run" / "environment.json").is_file()


def test_killed_between_the_plan_and_the_environment(work: Path, ran: list[str]) -> None:
    run_plan(plan(work))
    (work / "run" / "environment.json").unlink()
    run_plan(plan(work))
    assert "packages" in read_json(work / "run" / "environment.json")


def test_two_processes_in_one_directory(work: Path, ran: list[str]) -> None:
    (work / "run").mkdir()
    with (work / "run" / ".lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(RunError, match="another process is working in this run directory"):
            run_plan(plan(work))
    assert ran == []
    run_plan(plan(work))
    assert len(ran) == 3


@pytest.mark.parametrize("place", ["file/run", "file", "/proc/run", "/dev/null/run"])
def test_a_place_that_cannot_be_written(place: str, work: Path, ran: list[str]) -> None:
    """Also true for root: below a file, in /proc, below a device."""
    (work / "file").write_text("precious")
    with pytest.raises(RunError, match="cannot write") as caught:
        run_plan(plan(work, run=place if place.startswith("/") else str(work / place)))
    assert "\n" not in str(caught.value)
    assert ran == [] and (work / "file").read_text() == "precious"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 200 kB, where mounting is allowed."""
    place = tmp_path / "disk"
    place.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(place)], capture_output=True, check=False
    )
    if done.returncode:
        pytest.skip("mounting a small file system needs root")
    yield place
    subprocess.run(["umount", str(place)], check=True)


@pytest.mark.parametrize("lora", [{"rank": 4}, None])
def test_a_full_disk_is_one_line(lora: object, work: Path, small_disk: Path, tiny_checkpoint: Path) -> None:
    """Whatever library was writing when it filled up."""
    rows = [{"instruction": f"Say {n}.", "input": "", "output": str(n)} for n in range(8)]
    (work / "rows.json").write_text(json.dumps(rows))
    stage = {"kind": "sft", "name": "sft", "data": {"files": [str(work / "rows.json")]}, "train": {"save_every": 1}}
    full = plan(
        work, run=str(small_disk / "run"), stages=[stage],
        model={"path": str(tiny_checkpoint), "lora": lora, "device": "cpu"},
    )  # fmt: skip
    with pytest.raises(RunError, match=r"cannot write .*No space left on device") as caught:
        run_plan(full)
    assert "\n" not in str(caught.value)


# --- the real stages --------------------------------------------------------------------------------------------------


@pytest.fixture
def real(work: Path, tiny_checkpoint: Path) -> Callable[..., Plan]:
    """A short SFT on a few rows, then whatever follows."""
    rows = [{"instruction": f"Say {n}.", "input": "", "output": f"{n}!"} for n in range(12)]
    (work / "sft.json").write_text(json.dumps(rows))

    def make(*stages: dict[str, Any], **train: Any) -> Plan:
        settings = {
            "batch_size": 4,
            "max_steps": 4,
            "learning_rate": 0.05,
            "save_every": 1,
            "keep_checkpoints": 9,
        } | train
        data = {"files": [str(work / "sft.json")], "eval_fraction": 0.3, "max_length": 96}
        first = {"kind": "sft", "name": "sft", "data": data, "train": settings}
        model = {"path": str(tiny_checkpoint), "lora": {"rank": 4}, "device": "cpu"}
        return plan(work, stages=[first, *stages], model=model)

    return make


@pytest.mark.parametrize("keep", ["best", "last"])
def test_which_checkpoint_becomes_the_model(keep: str, real: Callable[..., Plan], work: Path) -> None:
    """A rate so high that the held-out loss is best somewhere before the end."""
    metric = {"best_metric": "eval/loss", "best_mode": "max"}  # the worst: never the last of a falling loss
    summary = run_plan(real(eval_every=1, keep=keep, **metric))
    stage = work / "run/stages/01-sft"
    losses = {r["step"]: r["eval/loss"] for r in read_jsonl(stage / "metrics.jsonl") if "eval/loss" in r and r["step"]}
    step = max(losses, key=lambda s: losses[s]) if keep == "best" else 4
    assert step != 4 or keep == "last"
    metrics = summary["stages"][0]["metrics"]
    assert metrics["kept_step"] == step
    assert metrics["eval/loss"] == losses[step]
    kept = (stage / f"checkpoints/step-{step:06d}/adapter/adapter_model.safetensors").read_bytes()
    assert (stage / "adapter/adapter_model.safetensors").read_bytes() == kept


def test_merge_is_checked_and_reads_as_a_checkpoint(real: Callable[..., Plan], work: Path) -> None:
    import torch

    from whet.config.model import Model
    from whet.models.load import load_model

    merge = {"kind": "merge", "name": "merge", "dtype": "fp32", "tolerance": 1e-3}
    summary = run_plan(real(merge))
    assert summary["stages"][1]["metrics"]["max_logprob_difference"] < 1e-3
    status = read_json(work / "run/stages/01-sft/status.json")["model"]
    config, ids = Model(path=status["path"], device="cpu"), torch.tensor([[5, 6, 7, 8]])
    refs = (ModelRef(**status), ModelRef(path=str(work / "run/stages/02-merge/model")), ModelRef(path=status["path"]))
    with torch.no_grad():
        adapted, merged, base = (load_model(ref, config, dtype=torch.float32)(input_ids=ids).logits for ref in refs)
    torch.testing.assert_close(merged, adapted, rtol=1e-4, atol=1e-4)
    assert (base - adapted).abs().max() > 1e-2


def test_a_broken_merge_leaves_no_model(real: Callable[..., Plan], work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from peft import PeftModel

    from whet.errors import ModelError

    monkeypatch.setattr(PeftModel, "merge_and_unload", lambda self, safe_merge: self.unload(), raising=False)
    with pytest.raises(ModelError, match="merged model differs from its adapter"):
        run_plan(real({"kind": "merge", "name": "merge", "dtype": "fp32", "tolerance": 1e-4}))
    assert not (work / "run/stages/02-merge/model").exists()
    assert read_json(work / "run/summary.json")["stages"][1]["status"] == "failed"


def test_merging_without_an_adapter_says_so(real: Callable[..., Plan], work: Path) -> None:
    with pytest.raises(RunError, match="nothing to merge"):
        run_plan(real({"kind": "merge", "name": "merge", "start": "base"}))


@pytest.mark.parametrize("lora", [{"rank": 4}, None])
def test_recomputing_activations_changes_nothing(lora: object, real: Callable[..., Plan], work: Path) -> None:
    logs = []
    for recompute in (False, True):
        made = real(gradient_checkpointing=recompute, max_steps=2, precision="fp32").model_dump()
        made["model"]["lora"] = lora
        run_plan(Plan.model_validate({**made, "run": str(work / str(recompute))}))
        logs.append([row for row in read_jsonl(work / str(recompute) / "stages/01-sft/metrics.jsonl") if "loss" in row])
    for plainly, again in zip(*logs, strict=True):
        assert again["loss"] == pytest.approx(plainly["loss"], rel=1e-5)
        assert again["grad_norm"] == pytest.approx(plainly["grad_norm"], rel=1e-4)


def test_all_weights_through_two_stages(real: Callable[..., Plan], work: Path) -> None:
    """Without LoRA each stage hands on a whole checkpoint, and DPO starts at its own reference."""
    import math

    pairs = [{"prompt": f"Say {n}.", "chosen": f"{n}!", "rejected": "no"} for n in range(8)]
    (work / "dpo.json").write_text(json.dumps(pairs))
    data = {"files": [str(work / "dpo.json")], "max_length": 96}
    dpo = {"kind": "dpo", "name": "dpo", "data": data, "train": {"max_steps": 2, "precision": "fp32"}}
    made = real(dpo, max_steps=2, keep_checkpoints=1).model_dump()
    made["model"]["lora"] = None
    run_plan(Plan.model_validate(made))
    for stage in ("01-sft", "02-dpo"):
        folder = work / "run/stages" / stage
        assert not (folder / "adapter").exists()
        assert (folder / "model/model.safetensors").is_file() and (folder / "model/tokenizer.json").is_file()
        assert read_json(folder / "status.json")["model"] == {"path": str(folder / "model"), "adapter": None}
    first = read_jsonl(work / "run/stages/02-dpo/metrics.jsonl")[0]
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert first["rewards/margins"] == pytest.approx(0, abs=1e-5)
