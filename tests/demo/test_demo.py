"""The demo from end to end: minutes long, so it is left out of `make test`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from whet.demo.plan import run_demo


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_every_stage_gains_and_online_rl_nearly_solves_the_playground(seed: int, tmp_path: Path) -> None:
    """Held-out exact accuracy, sampled at temperature 1: self-rewarded DPO beats SFT, GRPO reaches 0.9."""
    run_demo(tmp_path / "run", seed)
    measures = json.loads((tmp_path / "run" / "summary.json").read_text())["evaluation"]
    sampled = {m["stage"]: m for m in measures if m["task"] == "sampled" and m["metric"] == "accuracy"}
    assert sampled["dpo"]["low"] > sampled["sft"]["high"]
    assert sampled["grpo"]["value"] >= 0.90
