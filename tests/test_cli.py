"""The command line: quick to answer, and one clear line with exit code 2 for what a user got wrong."""

from __future__ import annotations

import io
import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from whet.cli import INTERRUPTED, main
from whet.cli.output import print_json
from whet.config.stage import STAGE_KINDS
from whet.runs.files import json_line

ROW = {"instruction": "What is the capital of France?", "input": "", "output": "Paris"}
SFT = ("sft", "model.path=m", "data.files=a")
PAIR = {"prompt": "How much is 12 plus 30?", "chosen": "42", "rejected": "1230"}


class Result:
    """Exit code and what was printed."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def error(self) -> str:
        """The one line of complaint. What libraries say on stderr while loading is not it."""
        (line,) = [line for line in self.err.splitlines() if line.startswith("error: ")]
        assert "Traceback" not in self.err
        return line


Whet = Callable[..., Result]


@pytest.fixture
def whet(in_tmp: Path, capfd: pytest.CaptureFixture[str]) -> Whet:
    """Runs a command in an empty directory."""

    def run(*args: str) -> Result:
        capfd.readouterr()
        with pytest.raises(SystemExit) as caught:
            main(args)
        assert isinstance(caught.value.code, int)
        return Result(caught.value.code, *capfd.readouterr())

    return run


@pytest.fixture
def sft(whet: Whet, tiny_checkpoint: Path) -> Whet:
    """`whet sft` on the tiny checkpoint: one step, fp32."""
    Path("rows.json").write_text(json.dumps([ROW, {**ROW, "output": "The capital is Paris."}]))
    model, data = f"model.path={tiny_checkpoint}", "data.files=rows.json"
    return lambda *args: whet("sft", "run=r", model, data, "train.max_steps=1", "train.precision=fp32", *args)


@pytest.mark.parametrize("words", [("run=elsewhere",), ("--vision", "seed=1")])
def test_demo_takes_folder_and_seed_as_options(whet: Whet, words: tuple[str, ...]) -> None:
    result = whet("demo", *words)
    key = words[-1].partition("=")[0]
    assert (result.code, f"--{key} VALUE" in result.error) == (2, True)
    assert not Path("runs").exists()


def test_help_loads_nothing_heavy_and_answers_at_once() -> None:
    code = (
        "import sys\nfrom whet.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit as end:\n    assert end.code == 0\n"
        "print([name for name in ('torch', 'transformers', 'pydantic', 'numpy', 'rich') if name in sys.modules])"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "Usage: whet" in output and output.splitlines()[-1] == "[]"
    assert min(_seconds("--help") for _ in range(3)) < 0.5


def _seconds(*args: str) -> float:
    """Processor time of a command, which a busy machine does not change."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", "whet", *args], capture_output=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def test_commands_without_arguments_say_what_there_is(whet: Whet) -> None:
    assert "sft" in whet().out and whet().code == 0
    assert "preview" in whet("data").out
    assert whet("--version").out.startswith("whet ")
    assert "train.learning_rate" in whet("explain").out


def test_every_kind_of_stage_has_a_verb(whet: Whet) -> None:
    for kind in STAGE_KINDS:
        result = whet(kind)
        assert result.code == 2 and result.error.startswith("error: model: is required"), kind


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["sfft"], "No such command 'sfft'"),
        (["run"], "which plan?; write `whet run PLAN.yaml`"),
        (["run", "nope.yaml"], "nope.yaml: no such plan file"),
        (["run", "train.epochs=2"], "which plan?"),
        (["run", "train.epochs=2", "--until", "sft"], "which plan?"),
        (["sft"], "model: is required; give a checkpoint directory or hub id"),
        (["sft", "model.path=m"], "data.files: is required; name the file to read"),
        ([*SFT, "lora.rank=-1"], "override: lora.rank: unknown key; did you mean model.lora.rank?"),
        ([*SFT, "model.lora.rank=-1"], "override: model.lora.rank: must be at least 1 (found -1)"),
        ([*SFT, "train.epoch=1"], "override: train.epoch: unknown key; did you mean train.epochs?"),
        (["sft", "--fast"], "No such option: --fast"),
        (["evaluate", "model.path=m"], "tasks: the stage measures nothing"),
        (["status", "nope"], "nope: not a run directory"),
        (["report", "nope"], "nope: not a run directory"),
        (["explain", "train.lr"], "train.lr: no plan has this key; did you mean train.learning_rate?"),
        (["chat"], "Missing argument 'MODEL'"),
        (["chat", "m", "--precision", "fp8"], "--precision: must be one of auto, bf16, fp16, fp32 (found 'fp8')"),
        (["chat", "m", "--temperature", "inf"], "--temperature: must be 0, or from 0.001 to 100 (found inf)"),
        (["chat", "m", "--token-env", "KEY"], "--token-env: is the key of a server; add --server URL, or leave it out"),
        (["chat", "m", "--seed", "-1"], "Invalid value for '--seed'"),
        (["estimate", "p.yaml", "--flops", "0"], "--flops: must be above 0, and finite (found '0')"),
        (["estimate", "p.yaml", "--memory", "0GB"], "--memory: must be above 0, and finite (found '0GB')"),
        (["estimate", "p.yaml", "--max-length", "99999999999"], "Invalid value for '--max-length'"),
        (["chat", "m", "--compare"], "--compare: nothing to compare with"),
        (["score", "a.json"], "--model: which reward model?"),
        (["score", "a.json", "--model", "m", "eval_fraction=0.1"], "data.eval_fraction: has no meaning here"),
        (["data", "check", "a.json", "format=alpca"], "override: data.format: must be one of auto, alpaca"),
        (["data", "convert", "a.json"], "--out: where to?"),
        (["data", "convert", "a.json", "--out", "o.jsonl", "system=Hi"], "data.system: has no meaning here: rows of"),
        (["data", "convert", "a.json", "--out", "o.jsonl", "max_length=64"], "data.max_length: has no meaning here"),
        (["data", "check", "a.json", "files=b.json"], "data.files: has no meaning here: every row of FILE is read"),
        (["data", "check", "a.json", "num_samples=3"], "data.num_samples: has no meaning here"),
        (["data", "preview", "a.json", "eval_fraction=0.5"], "data.eval_fraction: has no meaning here"),
        (["data", "check", ""], "which file? an empty name was given"),
        (["data", "pair", "a.jsonl", "", "--out", "o.jsonl"], "which file? an empty name was given"),
        (["data", "pair", "a.jsonl", "b.jsonl", "--also-chosen", "", "--out", "o.jsonl"], "which file? an empty name"),
        (["data", "fetch", "alpaca", "--seed", "-1"], "Invalid value for '--seed'"),
        (["status", ""], "which run? an empty name was given"),
        (["report", ""], "which run? an empty name was given"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_and_exit_code_2(whet: Whet, args: list[str], message: str) -> None:
    result = whet(*args)
    assert result.code == 2
    assert result.error.startswith(f"error: {message}")
    assert result.err.count("\n") == 1 and list(Path.cwd().iterdir()) == []


def test_a_wrong_key_in_a_plan_file_is_named_with_its_line(whet: Whet) -> None:
    Path("plan.yaml").write_text("model: {path: m}\nstages:\n  - kind: sft\n    data: {file: a.json}\n")
    result = whet("run", "plan.yaml")
    assert result.code == 2
    assert result.error == "error: plan.yaml:4: stages.0.data.file: unknown key; did you mean data.files?"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.json", None, "missing.json: sft.data.files: no such file"),
        ("empty.json", "", "empty.json"),
        ("none.json", "[]", "none.json"),
        ("broken.jsonl", json.dumps(ROW) + '\n{"instruction": "a", \n', "broken.jsonl:2"),
        ("broken.json", '[{"instruction": "a",\n "output" "b"}]', "broken.json:2"),
        ("unknown.json", '[{"foo": 1}]', "unknown.json"),
        ("lacks.jsonl", json.dumps(ROW) + '\n{"instruction": "only a question"}\n', "lacks.jsonl:2"),
        ("pairs.jsonl", json.dumps(PAIR) + "\n", "pairs.jsonl"),
    ],
)
def test_an_unusable_file_is_named_before_training(sft: Whet, name: str, content: str | None, message: str) -> None:
    if content is not None:
        Path(name).write_text(content)
    result = sft(f"data.files={name}")
    assert result.code == 2
    assert result.error.startswith(f"error: {message}")
    assert not list(Path("r").glob("stages/*/adapter"))


def test_a_checkpoint_without_weights_or_none_at_all(sft: Whet, tiny_checkpoint: Path) -> None:
    shutil.copytree(tiny_checkpoint, "bare", ignore=shutil.ignore_patterns("*.safetensors"))
    result = sft("model.path=bare")
    assert result.code == 2 and "bare" in result.error and "safetensors" in result.error
    result = sft("model.path=nope/dir", "run=other")
    assert result.code == 2 and "nope/dir" in result.error


def test_a_run_directory_that_cannot_be_written(sft: Whet) -> None:
    Path("taken").write_text("not a directory")
    result = sft("run=taken")
    assert result.code == 2 and result.error.startswith("error: taken: cannot write")
    assert Path("taken").read_text() == "not a directory"


def test_a_verb_trains_skips_what_is_done_and_guards_its_run(sft: Whet, whet: Whet) -> None:
    assert sft().code == 0
    (adapter,) = Path("r").glob("stages/*/adapter/adapter_model.safetensors")
    weights, summary = adapter.read_bytes(), json.loads(Path("r/summary.json").read_text())
    assert [(stage["kind"], stage["status"]) for stage in summary["stages"]] == [("sft", "done")]
    assert sft().code == 0, "the same command again does nothing"

    result = sft("train.learning_rate=1e-2")
    assert result.code == 2 and "another plan" in result.error and "train.learning_rate" in result.error
    assert adapter.read_bytes() == weights, "a refused command overwrites nothing"

    assert whet("status", "r").code == 0
    assert sft("train.learning_rate=1e-2", "--fresh").code == 0
    assert adapter.read_bytes() != weights


def test_run_until_a_stage_leaves_the_rest_waiting(whet: Whet, tiny_checkpoint: Path) -> None:
    Path("rows.json").write_text(json.dumps([ROW]))
    stage = {"kind": "sft", "data": {"files": ["rows.json"]}, "train": {"max_steps": 1, "precision": "fp32"}}
    plan = {"model": {"path": str(tiny_checkpoint)}, "stages": [stage, {**stage, "name": "second"}]}
    Path("plan.json").write_text(json.dumps(plan))
    result = whet("run", "plan.json", "--until", "frist")
    assert result.code == 2 and result.error.startswith("error: --until: the plan has no such stage (found 'frist')")
    assert not Path("runs").exists()
    assert whet("run", "plan.json", "--until", "sft").code == 0
    assert _states("runs/plan") == ["done", "waiting"] and Path("runs/plan/report/index.html").is_file()
    assert whet("run", "plan.json").code == 0
    assert _states("runs/plan") == ["done", "done"]


def _states(run: str) -> list[str]:
    return [stage["status"] for stage in json.loads(Path(run, "summary.json").read_text())["stages"]]


def test_interrupting_says_how_to_go_on(whet: Whet, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("whet.config.load.load_plan", interrupted)
    result = whet("sft")
    assert result.code == INTERRUPTED
    assert result.error == "error: interrupted; what is written stays, and the same command goes on from there"


def test_a_defect_keeps_its_traceback(in_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("whet.config.load.load_plan", broken)
    with pytest.raises(ZeroDivisionError):
        main(["sft"])


def test_data_commands_on_a_small_file(whet: Whet) -> None:
    Path("rows.json").write_text(json.dumps([ROW, {**ROW, "instruction": "Which city?"}]))
    assert "alpaca" in whet("data", "check", "rows.json").out
    checked = json.loads(whet("data", "check", "rows.json", "--json").out)
    assert checked["usable"] is True and checked["rows"] == 2
    assert "Paris" in whet("data", "preview", "rows.json", "--num", "1").out
    assert whet("data", "convert", "rows.json", "--out", "out.jsonl").code == 0
    assert len(Path("out.jsonl").read_text().splitlines()) == 2
    assert whet("data", "convert", "rows.json", "--out", "out.jsonl").code == 2, "nothing is overwritten"
    Path("bad.json").write_text('[{"foo": 1}]')
    assert whet("data", "check", "bad.json").code == 2


def test_what_a_terminal_cannot_write_is_a_question_mark(whet: Whet, monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    Path("rows.jsonl").write_text('{"prompt": "你好", "completion": "好"}\n')
    with monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii", write_through=True))
        assert whet("data", "preview", "rows.jsonl").code == 0
        assert b"??" in written.getvalue()


def under(encoding: str, *words: str) -> bytes:
    """What the command writes where standard output has this encoding."""
    done = subprocess.run(
        [sys.executable, "-m", "whet", *words], capture_output=True, check=True,
        env=os.environ | {"PYTHONIOENCODING": encoding, "PYTHONPATH": str(Path(__file__).parents[1])},
    )  # fmt: skip
    return done.stdout


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "gbk", "utf-8"])
def test_json_loses_no_character_whatever_the_encoding(in_tmp: Path, encoding: str) -> None:
    """`é` is a letter of Latin-1 and `好` one of GBK, and neither is then UTF-8."""
    Path("好é🙂.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    Path("wrong.jsonl").write_text('{"prompt": "a", "completion": "d"}\n')
    checked = under(encoding, "data", "check", "好é🙂.jsonl", "--json")
    assert "好é🙂.jsonl" in json.dumps(json.loads(checked), ensure_ascii=False)
    assert checked.isascii() == (encoding != "utf-8")
    paired = under(encoding, "data", "pair", "好é🙂.jsonl", "wrong.jsonl", "--out", "pairs.jsonl", "--json")
    assert "好é🙂.jsonl" in json.dumps(json.loads(paired), ensure_ascii=False)


def test_json_escapes_what_no_encoding_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of a character is JSON as an escape, and stays what it was."""
    for encoding in ("utf-8", "ascii"):
        out = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(out, encoding=encoding, errors="replace"))
        print_json({"text": "a\ud83d 你🙂"})
        sys.stdout.flush()
        assert json.loads(out.getvalue().decode("utf-8")) == {"text": "a\ud83d 你🙂"}


def test_scores_on_standard_output_are_json_too(whet: Whet, monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.BytesIO()
    monkeypatch.setattr("whet.stages.score.score_file", lambda *_, **__: sys.stdout.write(json_line({"file": "好é"})))
    with monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", io.TextIOWrapper(out, encoding="latin-1", write_through=True))
        assert whet("score", "rows.jsonl", "--model", "owner/name").code == 0
        assert json.loads(out.getvalue().decode("utf-8")) == {"file": "好é"}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
@pytest.mark.parametrize("key", ["train.epochs", "train"])
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_disk_behind_standard_output_is_one_line(key: str, unbuffered: str) -> None:
    """It shows when the last is flushed, or earlier."""
    words, env = [sys.executable, "-m", "whet", "explain", key], os.environ | {"PYTHONUNBUFFERED": unbuffered}
    with open("/dev/full", "w") as full:
        done = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, text=True, check=False, env=env)
    assert done.returncode == 2
    assert done.stderr == "error: cannot write the output (found No space left on device); free space where it goes\n"


def test_a_standard_output_that_is_closed_is_no_mistake() -> None:
    words = ["sh", "-c", f"{sys.executable} -m whet explain train.epochs >&-"]
    done = subprocess.run(words, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_full_disk_elsewhere_is_named_by_its_file(in_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device", "/cache/blob")

    monkeypatch.setattr("whet.config.load.load_plan", full)
    with pytest.raises(OSError, match="/cache/blob"):
        main(["sft"])


def test_an_error_of_the_work_is_no_error_of_standard_output(in_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("whet.config.load.load_plan", broken)
    with pytest.raises(OSError, match="Input/output error"):
        main(["sft"])


def test_a_key_is_explained_as_it_is_written_elsewhere(whet: Whet) -> None:
    plain = whet("explain", "train.epochs").out
    assert plain.startswith("train.epochs")
    for word in (" train.epochs", "train.epochs=3", "train.epochs = 3 "):
        assert whet("explain", word).out == plain


@pytest.mark.parametrize(
    "words", [("data", "check", "\udcff.jsonl"), ("run", "\udcff.yaml"), ("sft", "data.files=\udcff")]
)
def test_a_name_that_is_no_text_is_one_line(whet: Whet, words: tuple[str, ...]) -> None:
    result = whet(*words)
    assert result.code == 2 and "Traceback" not in result.err
    assert result.error.startswith(r"error: not UTF-8 text on the command line (found '") and "udcff" in result.error


def test_an_adapter_that_is_nowhere_asks_no_hub(whet: Whet, tiny_checkpoint: Path) -> None:
    result = whet("chat", str(tiny_checkpoint), "--adapter", "nope")
    assert result.code == 2 and result.err == "error: adapter: no such directory (found 'nope'); check the path\n"


def test_a_stage_that_was_stopped_is_said_to_be(sft: Whet, whet: Whet, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("whet.stages.pipeline.work_on", stopped)
        assert sft().code == INTERRUPTED
    assert "interrupted" in whet("status", "r").out and _states("r") == ["interrupted"]
    assert sft().code == 0 and _states("r") == ["done"]


@pytest.mark.parametrize(
    ("name", "format", "rows"),
    [
        ("alpaca_en_demo.json", "alpaca", 999),
        ("alpaca_zh_demo.json", "alpaca", 1000),
        ("dpo_en_demo.json", None, 300),
        ("kto_en_demo.json", "kto", 300), ("glaive_toolcall_en_demo.json", "sharegpt", 300),
        ("gsm8k_train.jsonl", "gsm8k", None), ("self_instruct_seed_tasks.jsonl", "self_instruct", 175),
    ],
)  # fmt: skip
def test_real_files_are_usable(whet: Whet, real_data: Path, name: str, format: str | None, rows: int | None) -> None:
    result = whet("data", "check", str(real_data / name), "--json")
    found = json.loads(result.out)
    assert result.code == 0 and found["usable"]
    assert format is None or set(found["formats"].values()) == {format}
    assert rows is None or found["rows"] == rows
    assert found["ledger"]["read"] == found["rows"]
    assert whet("data", "preview", str(real_data / name), "--num", "2").code == 0


def test_a_judges_template_becomes_a_file_to_be_changed(whet: Whet) -> None:
    assert "Score: <total points, 0 to 5>" in whet("judge-template", "additive").out
    written = whet("judge-template", "pairwise", "mine.txt")
    assert written.code == 0 and "judge.template=mine.txt" in written.out
    assert "{first}" in Path("mine.txt").read_text() and Path("mine.txt").read_text().endswith("Verdict: tie\n")
    again = whet("judge-template", "pairwise", "mine.txt")
    assert again.code == 2 and "is there already" in again.error
    wrong = whet("judge-template", "pairwize")
    assert wrong.code == 2 and "did you mean pairwise" in wrong.error


def test_deepspeeds_word_for_the_rank_is_let_pass(whet: Whet, monkeypatch: pytest.MonkeyPatch) -> None:
    assert whet("--local_rank=0", "explain", "train.epochs").code == 2
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    assert whet("--local_rank=0", "explain", "train.epochs").code == 0
