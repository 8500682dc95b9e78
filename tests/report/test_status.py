"""`whet status`: what a run's files say is text, whatever stands in it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from whet.report.status import print_status


@pytest.mark.parametrize("said", ["[/INST]", "[image]", "[bold]", "C:\\", ":smile:"])
def test_an_error_that_quotes_data_is_only_text(said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "stages" / "01-sft"
    folder.mkdir(parents=True)
    status = {"name": "sft", "kind": "sft", "status": "failed", "seconds": None, "error": f"bad <{said}>"}
    (folder / "status.json").write_text(json.dumps(status))
    print_status(tmp_path)
    shown = capsys.readouterr().out
    assert f"<{said}>" in shown and "failed" in shown
