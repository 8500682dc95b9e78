"""Packed rows: token sequences laid end to end without padding, a prompt once for all the responses that follow it.

    prompt p q r with the responses a b and c, then a row x y z

    input_ids      p q r a b c x y z
    position_ids   0 1 2 3 4 3 0 1 2      every branch goes on where its prompt ended
    trees          Tree(0, 3, (2, 1)), Tree(6, 3, ())
    rows           0 = p q r a b, 1 = p q r c, 2 = x y z
    sources        2 3 2 6 7              the position whose hidden state predicts ...
    targets        a b c y z              ... this token (where all of x y z but its first is trained)
    target_rows    0 0 1 2 2

A token of a branch sees its prompt and the branch up to itself; other branches and other trees do not exist for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from whet.schema.pictures import Media

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Tree:
    """A prompt and its branches, side by side in a packed row. Without branches it is a single row."""

    start: int
    """Position of the first token."""
    prompt: int
    """Tokens of the prompt, at least one."""
    branches: tuple[int, ...] = ()
    """Tokens of each branch."""

    @property
    def num_tokens(self) -> int:
        return self.prompt + sum(self.branches)

    @property
    def num_rows(self) -> int:
        return max(1, len(self.branches))

    def spans(self) -> Iterator[tuple[int, int]]:
        """First position and number of tokens of each branch."""
        position = self.start + self.prompt
        for length in self.branches:
            yield position, length
            position += length


@dataclass(frozen=True, slots=True, kw_only=True)
class Packed:
    """T tokens of several trees, and the N tokens of them whose log-probs are wanted, in R rows."""

    input_ids: Tensor
    """[T] int64."""
    position_ids: Tensor
    """[T] int64, each token's place in its own row; models that place pictures in a grid make theirs from it."""
    trees: tuple[Tree, ...]
    sources: Tensor
    """[N] int64, the position whose hidden state predicts the target."""
    targets: Tensor
    """[N] int64 token ids."""
    target_rows: Tensor
    """[N] int64, ascending: the row each target belongs to."""
    ends: Tensor
    """[R] int64, the position of each row's last token."""
    media: Media | None = None
    """The pictures that stand in the row."""

    @property
    def num_tokens(self) -> int:
        return sum(tree.num_tokens for tree in self.trees)

    @property
    def num_rows(self) -> int:
        return sum(tree.num_rows for tree in self.trees)

    def to(self, device: torch.device) -> Packed:
        return Packed(
            input_ids=self.input_ids.to(device),
            position_ids=self.position_ids.to(device),
            trees=self.trees,
            sources=self.sources.to(device),
            targets=self.targets.to(device),
            target_rows=self.target_rows.to(device),
            ends=self.ends.to(device),
            media=None if self.media is None else self.media.to(device),
        )
