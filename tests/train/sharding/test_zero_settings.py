"""The user's DeepSpeed file and the plan as one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from whet.config.train import Train
from whet.errors import ConfigError
from whet.train.sharding.zero_settings import read_settings, settings

ZERO2 = {"zero_optimization": {"stage": 2}}
PLAN = Train(batch_size=8, learning_rate=2e-4, max_grad_norm=0.5)


def filled(given: dict[str, Any], *, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    return settings({**ZERO2, **given}, "ds.json", PLAN, world=2, dtype=dtype, width=64)


def test_auto_takes_what_the_plan_says() -> None:
    """The file that Hugging Face users copy: everything "auto"."""
    made = filled(
        {
            "train_batch_size": "auto", "train_micro_batch_size_per_gpu": "auto", "gradient_accumulation_steps": "auto",
            "gradient_clipping": "auto", "bf16": {"enabled": "auto"},
            "fp16": {"enabled": "auto", "loss_scale": 0, "initial_scale_power": "auto"},
            "optimizer": {
                "type": "AdamW", "params": {"lr": "auto", "betas": "auto", "eps": "auto", "weight_decay": "auto"}
            },
            "scheduler": {"type": "WarmupLR", "params": {"warmup_num_steps": "auto", "warmup_max_lr": "auto"}},
            "zero_optimization": {
                "stage": 3, "reduce_bucket_size": "auto", "stage3_prefetch_bucket_size": "auto",
                "stage3_param_persistence_threshold": "auto", "overlap_comm": True,
            },
        },
        dtype=torch.bfloat16,
    )  # fmt: skip
    assert "optimizer" not in made and "scheduler" not in made
    assert made["gradient_clipping"] == 0.5
    assert made["bf16"] == {"enabled": True} and made["fp16"] == {"enabled": False}
    assert made["zero_optimization"] == {
        "stage": 3, "reduce_bucket_size": 4096, "stage3_prefetch_bucket_size": 3686,
        "stage3_param_persistence_threshold": 640, "overlap_comm": True,
    }  # fmt: skip


def test_a_file_that_says_the_same_is_taken() -> None:
    made = filled(
        {
            "train_batch_size": 8, "train_micro_batch_size_per_gpu": 2, "gradient_accumulation_steps": 2,
            "gradient_clipping": 0.5, "bf16": {"enabled": False},
            "optimizer": {"type": "AdamW", "params": {"lr": 2e-4, "betas": [0.9, 0.999]}},
        }
    )  # fmt: skip
    # A pass holds as many records as fit: DeepSpeed is told of one, and of one pass between two steps.
    assert [made[name] for name in ("train_micro_batch_size_per_gpu", "gradient_accumulation_steps")] == [1, 1]


@pytest.mark.parametrize(
    ("given", "field", "found"),
    [
        ({"train_batch_size": 16}, "train_batch_size", "16"),
        ({"train_micro_batch_size_per_gpu": 8}, "train_micro_batch_size_per_gpu", "8 x 2 ranks"),
        (
            {"train_micro_batch_size_per_gpu": 2, "gradient_accumulation_steps": 1},
            "train_micro_batch_size_per_gpu x gradient_accumulation_steps", "2 x 1 x 2 ranks",
        ),
        ({"gradient_clipping": 1.0}, "gradient_clipping", "1.0"),
        ({"bf16": {"enabled": True}}, "bf16.enabled", "true"),
        ({"fp16": {"enabled": True}}, "fp16.enabled", "true"),
        ({"torch_autocast": {"enabled": True}}, "torch_autocast.enabled", "true"),
        ({"optimizer": {"type": "Lamb"}}, "optimizer.type", '"Lamb"'),
        ({"optimizer": {"type": "AdamW", "params": {"lr": 1e-3}}}, "optimizer.params.lr", "0.001"),
        ({"optimizer": {"type": "AdamW", "params": {"amsgrad": True}}}, "optimizer.params.amsgrad", "true"),
        (
            {"scheduler": {"type": "WarmupLR", "params": {"warmup_num_steps": 100}}},
            "scheduler.params.warmup_num_steps", "100",
        ),
        ({"zero_optimization": {"stage": 2, "sub_group_size": "auto"}}, "zero_optimization.sub_group_size", "auto"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_a_contradiction_is_one_line(given: dict[str, Any], field: str, found: str) -> None:
    with pytest.raises(ConfigError) as caught:
        filled(given)
    error = caught.value
    assert (error.file, error.field, error.found) == ("ds.json", field, found)
    assert error.fix and "\n" not in str(error)


@pytest.mark.parametrize(
    ("written", "field"),
    [
        ({"zero_optimization": {"stage": 1}}, "zero_optimization.stage"),
        ({"bf16": {"enabled": True}}, "zero_optimization.stage"),
        (
            {"zero_optimization": {"stage": 3, "offload_param": {"device": "nvme"}}},
            "zero_optimization.offload_param.device",
        ),
        ([1, 2], None),
    ],
)
def test_a_file_that_asks_for_something_else(written: Any, field: str | None, tmp_path: Path) -> None:
    file = tmp_path / "ds.json"
    file.write_text(json.dumps(written), encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        read_settings(str(file))
    assert (caught.value.file, caught.value.field) == (str(file), field)


def test_no_file_and_no_json(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"launch\.sharding\.config: no such file"):
        read_settings(str(tmp_path / "absent.json"))
    broken = tmp_path / "broken.json"
    broken.write_text("{", encoding="utf-8")
    with pytest.raises(ConfigError, match="not JSON"):
        read_settings(str(broken))
