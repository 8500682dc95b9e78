"""The benchmark of engines: what it asks for, what it computes, and that both engines here do it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import generate
from benchmarks.__main__ import main, parser
from benchmarks.generate import describe, prepare, sides_of, summarise
from benchmarks.generate_job import (
    PRECISIONS,
    Generated,
    Generation,
    Precision,
    Side,
    read_generated,
    read_job,
    write_generated,
    write_job,
)
from benchmarks.generate_side import children_bytes, measure
from benchmarks.memory import build
from benchmarks.shapes import SHAPES
from benchmarks.table import BEGIN, END, save, write_readme
from whet.errors import RunError, UserError


def generated(seconds: list[float], peak: int = 2_000_000_000) -> Generated:
    return Generated(
        seconds=seconds, lengths=[4, 4], load_seconds=3.0, peak_bytes=peak, imported_bytes=400_000_000, threads=2,
        version="",
    )  # fmt: skip


def generation(folder: Path, precision: Precision = "bf16") -> Generation:
    return Generation(
        checkpoint=str(folder), device="cpu", precision=precision, prompts=[[5, 6, 7], [8] * 9], samples=3,
        new_tokens=4, repeats=2,
    )  # fmt: skip


def test_jobs_and_outcomes_survive_their_files(tmp_path: Path) -> None:
    job, outcome = tmp_path / "job.json", tmp_path / "out.json"
    write_job(job, "vllm", generation(tmp_path))
    assert read_job(job) == ("vllm", generation(tmp_path))
    write_generated(outcome, generated([1.0]))
    assert read_generated(outcome) == generated([1.0])


@pytest.mark.parametrize("precision", PRECISIONS)
def test_both_engines_here_give_as_many_tokens_as_asked(tmp_path: Path, precision: Precision) -> None:
    build("tiny", tmp_path, "cpu")
    sides: list[Side] = ["whet", "transformers"]
    for side in sides:
        measured = measure(side, generation(tmp_path, precision))
        assert measured.lengths == [4] * 6
        assert len(measured.seconds) == 2 and all(second > 0 for second in measured.seconds)
        assert measured.peak_bytes >= measured.imported_bytes > 0


def test_prompts_are_the_same_each_time_and_as_long_as_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model-tiny").mkdir()
    options = parser().parse_args(["generate", "--model", "tiny", "--prompts", "50", "--prompt-tokens", "20"])
    made = prepare(options, tmp_path)
    assert made == prepare(options, tmp_path)
    assert {len(prompt) for prompt in made.prompts} == set(range(15, 26))
    assert all(0 < token < SHAPES["tiny"].vocabulary for prompt in made.prompts for token in prompt)
    assert made.tokens == 50 * 8 * 64


def test_figures_by_hand() -> None:
    fast, slow = [generated([1.0, 3.0, 2.0]), generated([2.0])], [generated([6.0], 8_000_000_000), generated([10.0])]
    first, second = summarise({"whet": fast, "transformers": slow}, tokens=100)
    assert (first.tokens_per_second, second.tokens_per_second) == (50.0, 12.5)
    assert first.time_ratio is None and second.time_ratio is not None and second.memory_ratio is not None
    assert (second.time_ratio.low, second.time_ratio.median, second.time_ratio.high) == (3.0, 4.0, 5.0)
    assert (second.memory_ratio.low, second.memory_ratio.high) == (0.25, 1.0)
    assert "4.00x (3.00-5.00)" in describe([first, second])


def test_a_side_without_its_interpreter_is_left_out_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    options = parser().parse_args(["generate"])
    assert sides_of(options) == ("whet", "transformers")
    assert "vllm is left out" in capsys.readouterr().out
    assert sides_of(parser().parse_args(["generate", "--vllm-python", "x"])) == ("whet", "transformers", "vllm")
    with pytest.raises(UserError, match="vllm has no interpreter"):
        sides_of(parser().parse_args(["generate", "--sides", "whet,vllm"]))
    assert main(["generate", "--sides", "vlm"]) == 2
    assert "no such side" in capsys.readouterr().err


def test_short_answers_are_not_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = replace(generation(tmp_path), samples=1)

    def answered(command: list[str], _: Path) -> None:
        write_generated(Path(command[-1]), replace(generated([1.0]), lengths=[4, 3]))

    monkeypatch.setattr(generate, "call", answered)
    with pytest.raises(RunError, match="other answers than asked for"):
        generate.in_a_process_of_its_own("whet", asked, tmp_path, "python")


def test_started_processes_count_as_memory() -> None:
    import subprocess
    import sys

    before = children_bytes()
    held = subprocess.Popen(
        [sys.executable, "-c", "x = bytearray(50_000_000); print(1, flush=True); input()"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert held.stdout is not None
    held.stdout.readline()
    assert children_bytes() - before > 50_000_000
    held.communicate(b"\n")


def test_kept_results_become_a_table_of_their_own(tmp_path: Path) -> None:
    side = {"version": "", "threads": 2, "load_seconds": 0.3, "memory_ratio": None, "time_ratio": None}
    entry = {
        "date": "2026-01-31", "task": "generate", "model": "103m", "prompts": 4, "samples": 8, "new_tokens": 64,
        "precision": "fp32", "device_name": None,
        "machine": {"processor": "P", "cores": 2, "flags": [], "memory_gb": 25.2, "python": "3.11.4", "packages": {}},
        "sides": [
            {"side": "whet", "tokens_per_second": 868.4, "peak_gb": 0.88} | side,
            {"side": "vllm", "tokens_per_second": 434.2, "peak_gb": 1.76} | side
            | {"version": "0.32", "time_ratio": {"median": 2.0, "low": 1.9, "high": 2.1}},
        ],
    }  # fmt: skip
    save("machine", entry, tmp_path)
    assert len(json.loads((tmp_path / "machine.json").read_text(encoding="utf-8"))) == 1
    readme = tmp_path / "README.md"
    readme.write_text(f"{BEGIN}\n{END}\n", encoding="utf-8")
    write_readme(readme, tmp_path)
    text = readme.read_text(encoding="utf-8")
    assert "| generate | 103m | 4 | 8 | 64 | fp32 | 2 | whet | 868 | 0.3 | 0.88 |  |  | 2026-01-31 |" in text
    assert "| vllm 0.32 | 434 | 0.3 | 1.76 | 2.00 (1.90 to 2.10) |" in text
    assert "records a step" not in text
