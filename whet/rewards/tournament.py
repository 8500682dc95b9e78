"""Wins and losses between players -> how strong each is.

Match(0, 1, 1.0), Match(0, 2, 0.5)       0 beat 1 and drew with 2
win_shares      {0: 0.75, 1: 0.0, 2: 0.5}
bradley_terry   P(i beats j) = sigmoid(strength_i - strength_j), the strengths of greatest posterior
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

PRIOR = 0.1
"""Weight of the prior: every strength is pulled to 0 as by a drawn match against a player of strength 0, taken a tenth.
The likelihood alone has no maximum where somebody won every match."""
ITERATIONS, TOLERANCE = 1000, 1e-10


@dataclass(frozen=True, slots=True)
class Match:
    """What the first player made of it: 1 a win, 0.5 a tie, 0 a loss."""

    first: int
    second: int
    points: float
    weight: float = 1.0
    """How much it counts."""

    def has(self, player: int) -> bool:
        return player in (self.first, self.second)

    def points_of(self, player: int) -> float:
        """Raises ValueError for somebody who did not play."""
        if not self.has(player):
            raise ValueError(f"{player} did not play in {self}")
        return self.points if player == self.first else 1.0 - self.points


def win_shares(matches: Sequence[Match]) -> dict[int, float]:
    """Points over matches for everybody who played."""
    return {player: _points(player, matches) / _weight(player, matches) for player in players(matches)}


def bradley_terry(matches: Sequence[Match]) -> dict[int, float]:
    """Strengths on the logistic scale, centred; ties count as half a win for each.

    Minorise-maximise steps (Hunter 2004) on p_i = exp(strength_i), with `PRIOR` drawn matches against p = 1.
    """
    everybody = players(matches)
    p = dict.fromkeys(everybody, 1.0)
    for _ in range(ITERATIONS):
        new = {
            i: (_points(i, matches) + PRIOR / 2)
            / (sum(m.weight / (p[m.first] + p[m.second]) for m in matches if m.has(i)) + PRIOR / (p[i] + 1.0))
            for i in everybody
        }
        moved = max((abs(math.log(new[i] / p[i])) for i in everybody), default=0.0)
        p = new
        if moved < TOLERANCE:
            break
    centre = sum(map(math.log, p.values())) / len(p) if p else 0.0
    return {player: math.log(strength) - centre for player, strength in p.items()}


def win_chances(strengths: Mapping[int, float]) -> dict[int, float]:
    """The chance of each to beat one of the others drawn at random; empty for fewer than two."""
    return {
        i: sum(1 / (1 + math.exp(other - own)) for j, other in strengths.items() if j != i) / (len(strengths) - 1)
        for i, own in strengths.items()
        if len(strengths) > 1
    }


def players(matches: Sequence[Match]) -> list[int]:
    return sorted({player for match in matches for player in (match.first, match.second)})


def _points(player: int, matches: Sequence[Match]) -> float:
    return sum(match.weight * match.points_of(player) for match in matches if match.has(player))


def _weight(player: int, matches: Sequence[Match]) -> float:
    return sum(match.weight for match in matches if match.has(player))
