"""The memory benchmark trains what it says, for every way of holding weights, in processes of their own."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from benchmarks.memory import Peak, Setting, build, line, main, measure, random_batches
from benchmarks.shapes import SHAPES


def setting(folder: Path, **changes: object) -> Setting:
    made: dict[str, object] = {
        "checkpoint": str(folder), "weights": "fp32", "optimizer": "adamw", "device": "cpu", "tokens": 600,
        "micro_batches": 2, "recompute": False,
    }  # fmt: skip
    return Setting(**{**made, **changes})  # type: ignore[arg-type]


def test_micro_batches_have_the_tokens_asked_for(tmp_path: Path) -> None:
    """600 tokens are rows of 512 and 88, of which all but the first token is a target."""
    batches = random_batches(setting(tmp_path), 2048)
    assert [(batch.num_tokens, batch.num_samples, len(batch.weights)) for batch in batches] == [(600, 2, 598)] * 2


def test_every_way_trains_the_same_model(tmp_path: Path) -> None:
    build("tiny", tmp_path, "cpu")
    ways = [{"weights": w} for w in ("fp32", "bf16_master", "bf16_stochastic")] + [{"recompute": True}]
    peaks = [measure(setting(tmp_path, tokens=64, **way)) for way in ways]
    assert {peak.parameters for peak in peaks} == {SHAPES["tiny"].parameters}
    assert all(peak.loss == pytest.approx(peaks[0].loss, rel=0.01) for peak in peaks)
    assert peaks[0].loss == pytest.approx(math.log(2048), rel=0.1)
    assert all(peak.peak_bytes >= peak.imported_bytes > 0 for peak in peaks)


def test_figures_by_hand(tmp_path: Path) -> None:
    peak = Peak(peak_bytes=3 * 10**9, imported_bytes=4 * 10**8, step_seconds=1.5, loss=2.0, parameters=130_000_000)
    assert peak.bytes_per_weight == 20.0
    assert line(setting(tmp_path), peak).split() == ["fp32", "adamw", "3.00", "2.60", "20.0", "1.50", "2.0000"]


@pytest.mark.slow
def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--model", "tiny", "--tokens", "64"]) == 0
    rows = capsys.readouterr().out.splitlines()[2:]
    assert {row.split()[0] for row in rows} == {"fp32", "bf16_master", "bf16_stochastic"}
