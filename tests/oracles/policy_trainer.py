"""What TRL's functions of online RL ask of `self`."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from tests.oracles.padded import of
from tests.oracles.stand_ins import trainer
from whet.objectives.policy import PolicyTokens

LENGTHS = (4, 9, 2, 6, 1, 7, 8, 3)
LONGEST = 12
"""The longest response allowed."""


def stub(tokens: PolicyTokens, **settings: Any) -> SimpleNamespace:
    """A GRPO trainer that has just drawn these tokens."""
    found = trainer(
        **{
            "top_entropy_quantile": 1.0, "off_policy_mask_threshold": None, "importance_sampling_level": "token",
            "beta": 0.0, "loss_type": "grpo", "epsilon_low": 0.2, "epsilon_high": 0.2, "use_vllm": False,
            "vllm_importance_sampling_correction": False, "current_gradient_accumulation_steps": 1,
            "max_completion_length": LONGEST, "entropy_coef": 0.0, "use_adaptive_entropy": False,
            "_entropy_bonus_enabled": settings.get("entropy_coef", 0.0) > 0,
            "args": SimpleNamespace(use_bias_correction_kl=False, delta=None, steps_per_generation=1),
            **settings,
        }
    )  # fmt: skip
    found.accelerator.reduce = lambda values, reduction: values
    found.accelerator.sync_gradients = True
    found._get_per_token_logps_and_entropies = lambda *_, **__: (
        of(tokens, "logprobs", fill=-1.0), of(tokens, "entropy"), None,
    )  # fmt: skip
    return found
