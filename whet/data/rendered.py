"""What rendering leaves of a record: token ids, and which of them are trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from whet.schema.pictures import Picture
from whet.schema.records import NOWHERE, Origin


@dataclass(frozen=True, slots=True, kw_only=True)
class Rendered:
    """One row to train on."""

    ids: Sequence[int]
    weights: Sequence[float]
    """Weight of each token in the loss; 0 is not trained."""
    origin: Origin = NOWHERE
    last: bool = True
    """False where more rows of the same record follow."""
    pictures: tuple[Picture, ...] = ()
    """Those whose placeholders stand in `ids`, in their order."""

    @property
    def num_tokens(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, slots=True, kw_only=True)
class RenderedGroup:
    """One prompt and the K responses that answer it, each ending with the end-of-turn token unless it was truncated."""

    prompt_ids: Sequence[int]
    response_ids: tuple[Sequence[int], ...]
    """A preference has two, the chosen one first; a rating has one."""
    values: tuple[float, ...] = ()
    """What the data says of each response: ranks (1 the best), rewards or weights, 1.0 good and 0.0 bad for a rating.
    Of a preference (margin, 0.0), or nothing where no margin is known."""
    origin: Origin = NOWHERE
    pictures: tuple[Picture, ...] = ()
    """Those whose placeholders stand in `prompt_ids`, in their order; responses hold none."""

    @property
    def num_tokens(self) -> int:
        """Tokens that go through the model: the prompt once."""
        return len(self.prompt_ids) + sum(len(ids) for ids in self.response_ids)
