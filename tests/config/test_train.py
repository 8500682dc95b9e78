"""What the loop's section refuses, and what it decides."""

from __future__ import annotations

import pytest

from whet.config.load import load_plan
from whet.config.train import Train
from whet.errors import ConfigError


@pytest.mark.parametrize("precision", ["fp16", "fp32"])
@pytest.mark.parametrize("weights", ["bf16_master", "bf16_stochastic"])
def test_bf16_weights_compute_in_bf16_only(weights: str, precision: str) -> None:
    overrides = ["model.path=m", "data.files=a.json", f"train.weights={weights}", f"train.precision={precision}"]
    with pytest.raises(ConfigError) as caught:
        load_plan(None, overrides, kind="sft")
    assert f"weights {weights} compute in bf16, not in precision {precision}" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_bf16_weights_decide_what_auto_is() -> None:
    assert Train(weights="bf16_master").arithmetic == "bf16"
    assert Train(weights="bf16_stochastic", precision="bf16").arithmetic == "bf16"
    assert [Train(precision=p).arithmetic for p in ("auto", "bf16", "fp16", "fp32")] == ["auto", "bf16", "fp16", "fp32"]


def test_an_unknown_optimiser_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"train.optimizer: .*adamw_8bit"):
        load_plan(None, ["model.path=m", "data.files=a.json", "train.optimizer=adam8bit"], kind="sft")


@pytest.mark.parametrize("betas", ["[0.9, 1.0]", "[2, 3]", "[-1, 0.9]", "[true, 0.9]"])
def test_running_averages_that_are_none(betas: str) -> None:
    with pytest.raises(ConfigError, match=r"train.betas.[01]: must be"):
        load_plan(None, ["model.path=m", "data.files=a.json", f"train.betas={betas}"], kind="sft")


def test_numbers_are_taken_as_they_were_meant() -> None:
    train = Train.model_validate({"epochs": 2.0, "batch_size": 1e3, "learning_rate": 1, "gradient_checkpointing": 2})
    assert (train.epochs, train.batch_size, train.learning_rate, train.gradient_checkpointing) == (2, 1000, 1.0, 2)
    assert Train(gradient_checkpointing=True).gradient_checkpointing is True
