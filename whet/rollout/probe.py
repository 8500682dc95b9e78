"""Whether a server's weights are the trainer's: the log-probs of a text, by both.

Two signs of a sync that went wrong. The server's log-probs are off from the trainer's by more than arithmetic explains.
Or they are exactly what they were before, although the trainer's have moved: after a small step stale weights differ by
less than rounding does, but no server rounds new weights to the very same numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from whet.errors import RunError
from whet.models.mode import evaluating

TEXT = (
    "Question: a farmer has 12 sheep and buys 30 more. How many are there now? "
    "Answer: there are 42, because 12 plus 30 is 42. The weather in spring is mild and it rains now and then."
)
MOVED = 1e-4
"""A change of the trainer's log-probs, in nats, that the server's cannot sleep through."""


@dataclass(frozen=True, slots=True)
class Seen:
    """Log-probs of the probe's tokens, from the second on."""

    trainer: tuple[float, ...]
    server: tuple[float, ...]

    @property
    def difference(self) -> float:
        """Mean absolute difference of the two, in nats a token."""
        both = zip(self.trainer, self.server, strict=True)
        return sum(abs(a - b) for a, b in both) / len(self.trainer)


def check_sync(seen: Seen, before: Seen | None, tolerance: float) -> None:
    """Raises RunError where the server does not have the trainer's weights. `before`: at the last sync."""
    fix = "the run stops here: going on would train on another policy's words"
    if not seen.difference <= tolerance:
        raise RunError(
            "the server does not have the trainer's weights: the log-probs of a probe text differ",
            field="rollout.engine.sync", found=f"{seen.difference:.3g} nats a token, allowed {tolerance:g}", fix=fix,
        )  # fmt: skip
    if before is None or before.server != seen.server:
        return
    moved = max(abs(a - b) for a, b in zip(seen.trainer, before.trainer, strict=True))
    if moved > MOVED:
        raise RunError(
            "the server has kept its old weights: the log-probs of a probe text stand still",
            field="rollout.engine.sync", found=f"the trainer's moved by {moved:.3g} nats", fix=fix,
        )  # fmt: skip


@torch.no_grad()
def trainer_logprobs(model: torch.nn.Module, ids: Sequence[int]) -> tuple[float, ...]:
    """Log-probs of the ids from the second on, under the model as it is."""
    device = next(model.parameters()).device
    tokens = torch.tensor([list(ids)], device=device)
    with evaluating(model):
        logits = model(input_ids=tokens).logits[0, :-1].float()
    found = logits.log_softmax(-1).gather(1, tokens[0, 1:, None])
    return tuple(found.squeeze(1).tolist())
