"""Two gloo ranks under torchrun give the gradient and the log line of one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from whet.runs.files import read_jsonl

REPOSITORY = Path(__file__).resolve().parents[2]


def launch(kind: str, folder: Path, ranks: int) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(
        [*command, "-m", "tests.train.ranks", kind, str(folder)], cwd=REPOSITORY, env=environment, capture_output=True,
        text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("kind", [pytest.param("sft", marks=pytest.mark.slow), "coupled pairs"])
def test_two_ranks_are_one(kind: str, tmp_path: Path) -> None:
    kind = kind.split()[0]
    for ranks in (1, 2):
        launch(kind, tmp_path, ranks)
    alone = load_file(tmp_path / f"{kind}-1-0.safetensors")
    for rank in (0, 1):
        found = load_file(tmp_path / f"{kind}-2-{rank}.safetensors")
        for name, expected in alone.items():
            assert float((found[name] - expected).norm()) <= 1e-5 * float(expected.norm()) + 1e-9
    (line,), (both,) = (read_jsonl(tmp_path / f"{kind}-{n}-0" / "metrics.jsonl") for n in (1, 2))
    assert both["loss"] == pytest.approx(line["loss"], rel=1e-5)
    assert (both["samples"], both["tokens"]) == (line["samples"], line["tokens"]) == (7, both["tokens"])
