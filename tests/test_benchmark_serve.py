"""The benchmark of clients of a server: what it asks, what it computes, and that the stage's answers are counted."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import serve
from benchmarks.__main__ import parser
from benchmarks.serve import TOKEN, by_reject, describe, entry, requests, summarise
from benchmarks.table import render_results, save
from whet.config.plan import Plan
from whet.demo.plan import BASE
from whet.errors import RunError


def options(*words: str) -> Any:
    return parser().parse_args(["serve", "--python", "there/python", *words])


def test_every_prompt_is_asked_as_often_and_for_as_many_tokens() -> None:
    asked = requests(str(BASE), ["How much is 1 plus 1?", "And 2 plus 2?"], options("--samples", "3", "--tokens", "5"))
    assert [request.key for request in asked] == ["0#0", "0#1", "0#2", "1#0", "1#1", "1#2"]
    how = {request.sampling for request in asked}
    assert {(one.min_new_tokens, one.max_new_tokens, one.temperature) for one in how} == {(5, 5, 1.0)}
    assert asked[0].prompt_ids == asked[2].prompt_ids != asked[3].prompt_ids


def test_sides_are_compared_with_vllms_own_client_round_by_round() -> None:
    bench, engine = summarise({"bench": [100.0, 200.0], "engine": [110.0, 190.0]})
    assert (bench.tokens_per_second, bench.ratio) == (150.0, None)
    assert engine.ratio is not None and (engine.ratio.low, engine.ratio.high) == (0.95, 1.1)
    assert "1.025 (0.950 to 1.100)" in describe([bench, engine])


def test_what_is_kept_becomes_a_table(tmp_path: Path) -> None:
    save("one", entry(options("--model", "103m"), summarise({"bench": [100.0], "reject": [96.0]})), tmp_path)
    (line,) = [line for line in render_results(tmp_path).splitlines() if "| reject |" in line]
    assert line.startswith("| serve | 103m | 256 | 4 | 64 | 32 | reject | 96 | 0.96 (0.96 to 0.96) | ")


@pytest.mark.parametrize("lengths", [[2, 2], [2, 1]], ids=["whole", "short"])
def test_the_stages_seconds_are_those_after_it_has_attached(
    lengths: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_plan(plan: Plan) -> dict[str, Any]:
        assert os.environ[TOKEN] == "secret" and plan.run == str(tmp_path)
        stage = tmp_path / "stages" / "01-reject"
        stage.mkdir(parents=True)
        (stage / "groups.jsonl").write_text(json.dumps({"answers": [{"num_tokens": n} for n in lengths]}) + "\n")
        return {"stages": [{"seconds": 3.0, "metrics": {"seconds_load": 1.0}}]}

    monkeypatch.setattr(serve, "run_plan", run_plan)
    monkeypatch.delenv(TOKEN, raising=False)
    engine: Any = SimpleNamespace(root="http://there", headers={"Authorization": "Bearer secret"})
    asked = options("--prompts", "1", "--samples", "2", "--tokens", "2")
    if lengths == [2, 2]:
        assert by_reject(engine, BASE, tmp_path / "prompts.jsonl", asked, tmp_path) == 2.0
    else:
        with pytest.raises(RunError, match="other answers than asked for"):
            by_reject(engine, BASE, tmp_path / "prompts.jsonl", asked, tmp_path)
