"""What rendering leaves of a record: token ids, and which of them are trained."""

from __future__ import annotations

from dataclasses import dataclass

from whet.schema.records import NOWHERE, Origin


@dataclass(frozen=True, slots=True, kw_only=True)
class Rendered:
    """One row to train on."""

    ids: tuple[int, ...]
    weights: tuple[float, ...]
    """Weight of each token in the loss; 0 is not trained."""
    origin: Origin = NOWHERE
    last: bool = True
    """False where more rows of the same record follow."""

    @property
    def num_tokens(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, slots=True, kw_only=True)
class RenderedPair:
    """One prompt and two responses, each ending with the end-of-turn token unless it was truncated."""

    prompt_ids: tuple[int, ...]
    chosen_ids: tuple[int, ...]
    rejected_ids: tuple[int, ...]
    origin: Origin = NOWHERE

    @property
    def num_tokens(self) -> int:
        return 2 * len(self.prompt_ids) + len(self.chosen_ids) + len(self.rejected_ids)
