"""The engine section: a bare word, a section, and what is wrong with it in one line."""

from __future__ import annotations

from typing import Any

import pytest

from whet.config.engine import Http, Native, Vllm
from whet.config.load import dump_plan, load_plan
from whet.config.stage import EvaluateStage, PrepareStage
from whet.errors import ConfigError

HTTP = {"type": "http", "urls": ["http://127.0.0.1:1/v1"], "model": "m"}


def plan(rollout: Any, kind: str = "prepare", overrides: tuple[str, ...] = (), **more: Any) -> Any:
    stage = {"kind": kind, "data": {"files": ["p.jsonl"]}, "rollout": rollout} | more
    return load_plan({"run": "r", "model": {"path": "m"}, "stages": [stage]}, overrides)


def engine(*args: Any, **more: Any) -> Any:
    return plan(*args, **more).stages[0].rollout.engine


def test_a_bare_word_is_a_kind() -> None:
    assert engine({}) == Native()
    assert engine({"engine": "vllm"}) == engine({"engine": {"type": "vllm"}}) == Vllm()
    assert engine({"engine": HTTP}) == Http(urls=("http://127.0.0.1:1/v1",), model="m")


def test_overrides_go_on_from_a_bare_word() -> None:
    assert engine({}, overrides=("rollout.engine=vllm", "rollout.engine.concurrency=8")) == Vllm(concurrency=8)
    assert engine({"engine": "native"}, overrides=("prepare.rollout.engine=vllm",)) == Vllm()


def test_a_key_of_native_alone_is_natives() -> None:
    assert engine({}, overrides=("rollout.engine.graphs=true",)) == Native(graphs=True)
    with pytest.raises(ConfigError, match=r"rollout.engine.type: is required"):
        engine({"engine": {"urls": ["http://a"]}})


def test_a_resolved_plan_is_the_same_plan(tmp_path: Any) -> None:
    made = plan({"engine": "vllm"}, judge={"engine": HTTP})
    (tmp_path / "plan.yaml").write_text(dump_plan(made))
    assert load_plan(tmp_path / "plan.yaml") == made


@pytest.mark.parametrize(
    ("rollout", "said"),
    [
        ({"engine": "vlm"}, r"rollout\.engine: must be one of native, http, vllm, ray \(found 'vlm'\); did you mean v"),
        ({"engine": {"type": "http", "model": "m"}}, r"rollout\.engine\.urls: is required"),
        ({"engine": HTTP | {"url": "x"}}, r"rollout\.engine\.url: unknown key"),
        ({"engine": HTTP | {"concurrency": 0}}, r"rollout\.engine\.concurrency: must be at least 1 \(found 0\)"),
        ({"engine": {"type": "vllm", "url": "http://a/v1", "python": "p"}}, "url names a server that runs already"),
        ({"engine": {"concurrency": 4}}, r"rollout\.engine\.type: is required"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(rollout: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        plan(rollout)


def test_online_rl_needs_an_engine_that_takes_weights() -> None:
    with pytest.raises(ConfigError, match="a server of type http cannot take weights"):
        plan({"engine": HTTP}, kind="grpo", reward={"type": "numeric"})


def test_an_http_server_is_one_model() -> None:
    with pytest.raises(ValueError, match="name one in models"):
        EvaluateStage(engine=HTTP, models=("base", "sft"))  # type: ignore[arg-type]


def test_the_stages_that_have_one() -> None:
    assert EvaluateStage(engine="vllm").engine == Vllm()  # type: ignore[arg-type]
    assert PrepareStage().judge.engine is None and PrepareStage().judge.model == "start"
