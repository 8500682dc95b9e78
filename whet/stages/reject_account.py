"""The numbers that rejection sampling leaves: metrics of the summary, and reject.json for the report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from whet.experience.accept import FATES
from whet.experience.pass_at_k import Running
from whet.experience.reject_counts import BINS, RejectCounts
from whet.stages.measure.interval import proportion_of_sums


def account(counts: RejectCounts, rows: Mapping[str, int]) -> dict[str, Any]:
    """reject.json: what became of the answers, and every rate with its 95 % interval over prompts."""
    num = counts.group_size
    return {
        "prompts": {
            "all": counts.prompts, "solved": counts.solved, "unsolved": counts.unsolved,
            "unknown": counts.prompts - counts.solved - counts.unsolved,
        },
        "fates": {fate: counts.fates[fate] for fate in FATES},
        "reasons": dict(counts.reasons.most_common()),
        "rows": dict(rows),
        "accept_rate": rate(counts.shares, num),
        "pass_at_k": [
            {"k": k} | rate(running, max(1, num // k)) for k, running in counts.pass_at_k.of.items() if running.num
        ],
        "files": [
            {"file": file, "prompts": found.prompts, "solved": found.solved} | rate(found.shares, num)
            for file, found in counts.files.items()
        ],
        "lengths": {
            "edges": [counts.max_new_tokens * edge / BINS for edge in range(BINS + 1)],
            "right": counts.right.counts,
            "wrong": counts.wrong.counts,
        },
    }  # fmt: skip


def rate(shares: Running, samples: int) -> dict[str, float | int | None]:
    """Mean share with its interval; `samples` is how many answers a prompt's share is over."""
    if not shares.num:
        return {"value": None, "low": None, "high": None, "num": 0}
    value, low, high = proportion_of_sums(shares.num, shares.total, shares.squares, samples)
    return {"value": value, "low": low, "high": high, "num": shares.num}


def metrics(counts: RejectCounts, found: Mapping[str, Any]) -> dict[str, float]:
    """Numbers of the summary; a rate over nothing is left out."""
    fates = counts.fates
    values: dict[str, float | None] = {
        "num_prompts": counts.prompts,
        "num_answers": fates.total(),
        "num_accepted": fates["accepted"],
        "num_rejected": fates["rejected"],
        "num_duplicates": fates["duplicate"] + fates["rejected_duplicate"],
        "num_over_limit": fates["over_limit"],
        "num_cut": fates["cut"],
        "num_empty": fates["empty"],
        "num_unscored": fates["unscored"],
        "num_failed": fates["failed"],
        "num_pairs": found["rows"].get("preference.jsonl"),
        "num_solved": counts.solved,
        "num_unsolved": counts.unsolved,
        "accept_rate": found["accept_rate"]["value"],
        "accept_rate_low": found["accept_rate"]["low"],
        "accept_rate_high": found["accept_rate"]["high"],
        "mean_length_right": counts.right.tokens / counts.right.num if counts.right.num else None,
        "mean_length_wrong": counts.wrong.tokens / counts.wrong.num if counts.wrong.num else None,
    }
    values |= {f"pass_at_{one['k']}": one["value"] for one in found["pass_at_k"]}
    return {name: float(value) for name, value in values.items() if value is not None}


def describe(counts: RejectCounts, found: Mapping[str, Any]) -> str:
    """One line for the console."""
    fates, rates = counts.fates, found["accept_rate"]
    scored = sum(one.num for one in (counts.right, counts.wrong))
    text = f"{fates.total():,} answers to {counts.prompts:,} prompts"
    if rates["value"] is not None:
        text += f", {rates['value']:.1%} right [{rates['low']:.1%}, {rates['high']:.1%}]"
        *_, last = found["pass_at_k"] or [None]
        text += f", pass@{last['k']} {last['value']:.1%}" if last is not None and last["k"] > 1 else ""
    text += f"; {fates['accepted']:,} accepted, {fates['rejected']:,} rejected, {counts.unsolved:,} prompts unsolved"
    if missing := fates.total() - scored:
        (reason, num), *_ = counts.reasons.most_common(1) or [("no reason given", missing)]
        text += f"; {missing:,} without a score ({num:,}: {reason})"
    return text
