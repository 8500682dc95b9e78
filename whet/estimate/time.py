"""Arithmetic of an epoch: FLOPs by the least work that a stage does, and seconds from them or from a probe.

With P the weights a token is multiplied with, A the width of all queries, V H the LM head: a forward pass over T tokens
of which N are targets and whose queries meet S keys in all is 2 T P + 2 N V H + 4 A S L FLOPs (Kaplan et al.,
2001.08361, section 2.1, with attention and head counted where they are computed). Backward is as much again for the
gradients of activations, and once more for those of weights where they train.
"""

from __future__ import annotations

from dataclasses import dataclass

from whet.estimate.setting import Setting


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What passes through the model in an epoch, over all ranks."""

    records: int
    steps: int
    tokens: int
    """Trained on, a prompt counted once for its responses."""
    targets: int
    seen: float
    """Keys that the queries meet, summed over all tokens."""
    generated: int = 0
    """Tokens drawn by the engine; those of the longest answers that the plan allows."""
    extra_passes: float = 0.0
    """Forward passes without gradient: a reference, old log-probs."""
    recomputed: bool = False


def forward_flops(setting: Setting, tokens: float, targets: float, seen: float) -> float:
    shape = setting.shape
    head = 0.0 if setting.scores else 2.0 * targets * shape.head
    return 2.0 * tokens * shape.multiplied + head + 4.0 * shape.attention_width * shape.layers * seen


def epoch_flops(setting: Setting, work: Work) -> float:
    """Training, PPO's value model of its own with it, extra passes and generation (a generated token costs a forward
    pass of one token)."""
    forward = forward_flops(setting, work.tokens, work.targets, work.seen)
    values = forward_flops(setting, work.tokens, 0.0, work.seen) if setting.value_model else 0.0
    backward = {"all": 2.0, "adapter": 1.0, "head": 0.0}[setting.trains]
    passes = 1.0 + backward + (1.0 if work.recomputed else 0.0)
    generated = forward_flops(setting, work.generated, work.generated, work.seen if work.generated else 0.0)
    return passes * (forward + values) + work.extra_passes * forward + generated
