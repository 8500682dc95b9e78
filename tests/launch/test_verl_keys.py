from __future__ import annotations

import pytest

from whet.errors import ConfigError
from whet.launch.verl.keys import KEYS, lines


def test_values_are_written_as_hydra_reads_them() -> None:
    written = lines({
        "data.seed": 3, "data.shuffle": True, "trainer.total_training_steps": None, "trainer.logger": ["console"],
        "actor_rollout_ref.actor.optim.lr": 1e-6, "trainer.project_name": r"it's \' C:\new\ ",
        "actor_rollout_ref.model.path": "ends\\",
    })  # fmt: skip
    assert written == [
        "data.seed=3", "data.shuffle=true", "trainer.total_training_steps=null", "trainer.logger=['console']",
        "actor_rollout_ref.actor.optim.lr=1e-06", r"trainer.project_name='it\'s \\\' C:\new\ '",
        r"actor_rollout_ref.model.path='ends\\'",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "key",
    [
        "custom_reward_function.path", "reward_model.enable", "actor_rollout_ref.actor.clip_ratio",
        "data.val_batch_size", "trainer.device",
    ],
)  # fmt: skip
def test_what_verl_ignores_cannot_be_written(key: str) -> None:
    assert key not in KEYS
    with pytest.raises(KeyError, match=key):
        lines({key: "x"})


@pytest.mark.parametrize("text", ["two\nlines", "${oc.env:HOME}"])
def test_what_hydra_would_read_otherwise_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"trainer\.project_name"):
        lines({"trainer.project_name": text})
