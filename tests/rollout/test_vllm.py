"""What the vllm engine does without a server; with one: `tests/integration/test_vllm.py`."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from whet.config.engine import Vllm
from whet.config.model import Vision
from whet.errors import RunError
from whet.rollout.vllm import Checkpoint, VllmEngine, command
from whet.rollout.wire import failed
from whet.schema.pictures import Picture
from whet.schema.rollouts import Request, Sampling


@pytest.mark.parametrize("ended", [True, False])
def test_a_server_that_has_ended_ends_the_run_and_one_failure_does_not(ended: bool, tmp_path: Path) -> None:
    request = Request(key="a", prompt_ids=(1,), sampling=Sampling(max_new_tokens=1), seed=0)
    engine = object.__new__(VllmEngine)
    engine._checkpoint = Checkpoint(path="model", adapter=None, end_ids=(), folder=tmp_path)
    engine._engine = SimpleNamespace(generate=lambda asked: iter([failed(request, "no answer")]))  # type: ignore[assignment]
    engine._process = SimpleNamespace(ended=ended)  # type: ignore[assignment]
    if not ended:
        assert [completion.error for completion in engine.generate([request])] == ["no answer"]
        return
    with pytest.raises(RunError, match=r"vllm\.log: the server has ended \(found no answer\)"):
        list(engine.generate([request]))


@pytest.mark.parametrize(("version", "whole"), [("0.32.0+cpu", True), ("0.32.0", False)])
def test_the_cpu_build_is_told_not_to_split_prompts_and_to_leave_memory(
    version: str, whole: bool, tmp_path: Path
) -> None:
    interpreter = tmp_path / "python"
    interpreter.write_text(f'#!/bin/sh\nif [ "$1" = -c ]; then echo {version}; else echo "started: $@"; exit 3; fi\n')
    interpreter.chmod(0o755)
    checkpoint = Checkpoint(path="model", adapter=None, end_ids=(), folder=tmp_path)
    with pytest.raises(RunError, match="it ended with status 3"):
        VllmEngine(Vllm(python=str(interpreter), options=("--seed", "1")), checkpoint)
    started = (tmp_path / "vllm.log").read_text(encoding="utf-8")
    assert ("--no-enable-chunked-prefill" in started) == whole
    share = re.search(r"--gpu-memory-utilization (\S+)", started)
    assert (share is not None) == whole and (share is None or 0.0 < float(share[1]) <= 0.5)
    assert started.rstrip().endswith("--seed 1")  # a plan's own words come last: they may say otherwise


def test_a_server_keeps_to_the_plans_limits_of_pictures(tmp_path: Path) -> None:
    def words(vision: Vision) -> Sequence[str]:
        return command(Vllm(), Checkpoint(path="m", adapter=None, end_ids=(), folder=tmp_path, vision=vision), None, 80)

    limited = words(Vision(max_pixels=147456))
    assert json.loads(limited[limited.index("--mm-processor-kwargs") + 1]) == {"max_pixels": 147456}
    assert "--mm-processor-kwargs" not in words(Vision())


def test_continuations_of_a_prompt_with_pictures_are_refused(tmp_path: Path) -> None:
    engine = object.__new__(VllmEngine)
    engine._max_length = 100
    picture = Picture(source="a.png", digest="d", num_tokens=1)
    request = Request(key="a", prompt_ids=(1,), sampling=Sampling(max_new_tokens=1), seed=0, continuations=((5,),))
    assert engine._problem(request) is None
    assert "hold no pictures" in str(engine._problem(replace(request, pictures=(picture,))))
