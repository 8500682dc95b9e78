"""Completions of online RL to read: a few prompts of the first, a middle and the last round, with every number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean

from whet.report.pictures import thumbnails
from whet.report.series import finite
from whet.report.words import cut
from whet.runs.completions import CompletionRow, index_rounds, read_round
from whet.runs.reader import StageView

PROMPTS_A_ROUND = 4
ROWS_A_PROMPT = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """One completion as a row of the table."""

    text: str
    numbers: tuple[tuple[str, str], ...]
    """Column and value: reward, parts, advantage, tokens, end."""
    error: str
    trend: str
    """`up` where training made it likelier, `down` where rarer, empty where neither."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownPrompt:
    prompt: str
    summary: str
    columns: tuple[str, ...]
    rows: tuple[Shown, ...]
    """Best reward first; completions without one come last."""
    num_hidden: int
    """Completions between the best and the worst that are not shown."""
    pictures: tuple[str, ...] = ()
    """Thumbnails."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownRound:
    title: str
    prompts: tuple[ShownPrompt, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Browser:
    """What the page shows of `completions.jsonl`."""

    about: str
    rounds: tuple[ShownRound, ...]


def read_browser(stage: StageView) -> Browser | None:
    """None for a stage that logged no completions."""
    path = stage.paths.completions
    index = index_rounds(path)
    if not index:
        return None
    numbers = sorted(index)
    chosen = sorted({numbers[0], numbers[len(numbers) // 2], numbers[-1]})
    rewards = dict(finite(stage.steps, "reward"))
    rounds = [_round(number, read_round(path, index[number], prompts=PROMPTS_A_ROUND), rewards) for number in chosen]
    return Browser(
        about=(
            f"{len(chosen)} of {len(numbers)} rounds, and of each the {PROMPTS_A_ROUND} prompts that came first, "
            "not the best or worst; completions by their reward. All of them are in completions.jsonl."
        ),
        rounds=tuple(rounds),
    )


def _round(number: int, groups: Sequence[Sequence[CompletionRow]], rewards: Mapping[float, float]) -> ShownRound:
    """`rewards` are those of all prompts, by the round's first step."""
    step = groups[0][0].step
    reward = f" · mean reward {_number(rewards[step])}" if step in rewards else ""
    return ShownRound(
        title=f"Step {step} · round {number}{reward}",
        prompts=tuple(_prompt(rows) for rows in groups),
    )


def _prompt(rows: Sequence[CompletionRow]) -> ShownPrompt:
    known = [row.reward for row in rows if row.reward is not None]
    order = sorted(rows, key=lambda row: (row.reward is None, -(row.reward or 0.0)))
    hidden = max(0, len(order) - ROWS_A_PROMPT)
    if hidden:
        order = order[: ROWS_A_PROMPT // 2] + order[-ROWS_A_PROMPT // 2 :]
    parts = list(dict.fromkeys(name for row in rows for name in row.parts))
    return ShownPrompt(
        prompt=cut(rows[0].prompt),
        summary=f"{len(rows)} completions, {_rewards(known)}",
        columns=("reward", *parts, "advantage", "tokens", "end"),
        rows=tuple(_shown(row, parts) for row in order),
        num_hidden=hidden,
        pictures=thumbnails(rows[0].images),
    )


def _shown(row: CompletionRow, parts: Sequence[str]) -> Shown:
    advantage = row.advantage or 0.0
    return Shown(
        text=cut(row.completion),
        numbers=(
            ("reward", _number(row.reward)),
            *((name, _number(row.parts.get(name))) for name in parts),
            ("advantage", _signed(row.advantage)),
            ("tokens", f"{row.num_tokens:,}"),
            ("end", {"stop": "ended", "length": "cut"}.get(row.finish_reason, row.finish_reason)),
        ),
        error=cut(row.error or ""),
        trend="up" if advantage > 0 else "down" if advantage < 0 else "",
    )


def _rewards(known: Sequence[float]) -> str:
    if not known:
        return "no reward"
    if min(known) == max(known):
        return f"reward {_number(known[0])}" + (" for all" if len(known) > 1 else "")
    return f"rewards {_number(min(known))} to {_number(max(known))}, mean {_number(mean(known))}"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"


def _signed(value: float | None) -> str:
    return "–" if value is None else f"{value:+.2f}" if value else "0"
