"""What the vllm engine does without a server; with one: `tests/integration/test_vllm.py`."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from whet.errors import RunError
from whet.rollout.vllm import Checkpoint, VllmEngine
from whet.rollout.wire import failed
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
