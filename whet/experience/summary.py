"""What a prepare stage says about its groups: numbers for the summary, histograms and samples for the report."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Any, TypeVar

from whet.experience.pairs import Outcome, PairCounts, candidates
from whet.schema.rollouts import Group, Score

LEAST_BINS, MAX_BINS = 10, 40
T = TypeVar("T")


def group_metrics(groups: Sequence[Group], counts: PairCounts) -> dict[str, float]:
    """Counts, rates and means over all groups; a mean over nothing is left out."""
    completions = [completion for group in groups for completion in group.completions]
    scores = [score for group in groups for score in group.scores]
    values = [score.value for score in scores if score.value is not None]
    metrics = {
        "num_prompts": float(len(groups)),
        "num_candidates": float(len(completions)),
        "num_pairs": float(counts.pairs),
        "unscored_rate": _share(sum(score.value is None for score in scores), len(scores)),
        "tie_rate": _share(counts.dropped["ties"], counts.total),
        "cut_rate": _share(sum(completion.finish_reason == "length" for completion in completions), len(completions)),
        "mean_score": _share(sum(values), len(values)),
        "mean_length": _share(sum(completion.num_tokens for completion in completions), len(completions)),
    }
    return {name: value for name, value in metrics.items() if not math.isnan(value)}


def histograms(groups: Sequence[Group], scale: tuple[float, float], group_size: int) -> dict[str, Any]:
    """Scores on their scale, and usable candidates per prompt (0 to group_size), each as edges and counts."""
    scores = [score for group in groups for score in group.scores]
    return {
        "score": score_histogram(scores, *scale),
        "candidates": {
            "edges": list(range(group_size + 2)),
            "counts": _tally([len(candidates(group)) for group in groups], group_size + 1),
        },
    }


def score_histogram(scores: Sequence[Score], low: float, high: float) -> dict[str, Any]:
    """Bins half a point wide, or as wide as make between LEAST_BINS and MAX_BINS; the last includes its upper edge."""
    num = max(LEAST_BINS, min(MAX_BINS, math.ceil((high - low) * 2)))
    width = (high - low) / num or 1.0
    places = [min(num - 1, int((score.value - low) / width)) for score in scores if score.value is not None]
    return {"edges": [low + width * index for index in range(num + 1)], "counts": _tally(places, num)}


def reservoir(items: Sequence[T], num: int, seed: int) -> list[T]:
    """At most `num` items, each equally likely, in their order; a function of the seed."""
    rng = random.Random(f"samples {seed}")
    kept: list[int] = []
    for index in range(len(items)):
        if index < num:
            kept.append(index)
        elif (place := rng.randrange(index + 1)) < num:
            kept[place] = index
    return [items[index] for index in sorted(kept)]


def chosen_length_ratio(groups: Sequence[Group], outcomes: Sequence[Outcome]) -> float | None:
    """Tokens of chosen over tokens of rejected answers: above 1 the judge favours length. None without pairs."""
    chosen = rejected = 0
    for group, outcome in zip(groups, outcomes, strict=True):
        for pair in outcome if isinstance(outcome, tuple) else ():
            chosen += group.completions[pair.chosen.index].num_tokens
            rejected += group.completions[pair.rejected.index].num_tokens
    return chosen / rejected if rejected else None


def _tally(places: Sequence[int], num: int) -> list[int]:
    counts = [0] * num
    for place in places:
        counts[place] += 1
    return counts


def _share(part: float, whole: float) -> float:
    return part / whole if whole else math.nan
