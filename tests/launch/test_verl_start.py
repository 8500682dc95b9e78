from __future__ import annotations

import stat
from pathlib import Path

import pytest

from whet.config.verl import Verl
from whet.errors import RunError
from whet.launch.verl.start import PYTHON, start


def interpreter(folder: Path, missing: str, gpus: int) -> str:
    """Stands in for an environment's interpreter: says what it lacks, and how many GPUs it sees."""
    path = folder / "python"
    path.write_text(f'#!/bin/sh\necho "{missing}"\necho {gpus}\n')
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def run_script(folder: Path) -> Path:
    (folder / "run.sh").write_text('#!/bin/sh\necho "$PYTHON" > "$(dirname "$0")/started"\nexit 7\n')
    (folder / "run.sh").chmod(0o755)
    return folder


@pytest.mark.parametrize(
    ("missing", "gpus", "words"),
    [
        ("verl,vllm", 8, r"without verl,vllm.*verl\[vllm,verl-core\]==0\.9\.1"),
        ("", 1, r"verl needs GPUs \(found 1 of 2\)"),
    ],
)  # fmt: skip
def test_what_is_missing_is_said(
    missing: str, gpus: int, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(PYTHON, interpreter(tmp_path, missing, gpus))
    with pytest.raises(RunError, match=words):
        start(run_script(tmp_path), Verl(n_gpus_per_node=2))
    assert not (tmp_path / "started").exists()


def test_where_all_is_there_it_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = interpreter(tmp_path, "", 2)
    monkeypatch.setenv(PYTHON, python)
    assert start(run_script(tmp_path), Verl(n_gpus_per_node=2)) == 7
    assert (tmp_path / "started").read_text().strip() == python


def test_no_interpreter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PYTHON, str(tmp_path / "none"))
    with pytest.raises(RunError, match="cannot be started"):
        start(run_script(tmp_path), Verl())
