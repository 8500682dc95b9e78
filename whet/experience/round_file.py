"""A round of rollouts, and its lines on disk: one a completion, then one of the round itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from whet.rewards.state import RewardState
from whet.runs.files import read_jsonl
from whet.schema.records import Prompt
from whet.schema.rollouts import Completion, Group, Score


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """What one generation gave."""

    number: int
    groups: tuple[Group, ...]
    """In the order of their prompts; `columns["place"]` is the prompt's place in the data set."""
    left_out: tuple[Group, ...] = ()
    """Asked for, and not trained on, because the rewards of a prompt were all equal."""
    seconds: Mapping[str, float] = field(default_factory=dict)
    """`generate` and `score`."""
    reward_state: RewardState = field(default_factory=dict)
    """What the reward had seen when the round was scored, as far as it normalises."""


def place_of(group: Group) -> int:
    place: int = group.columns["place"]
    return place


def round_lines(made: Round) -> Iterator[dict[str, Any]]:
    for trained, groups in ((True, made.groups), (False, made.left_out)):
        for group in groups:
            yield from group_rows(group, trained=trained)
    yield {"round": made.number, "seconds": dict(made.seconds), "reward_state": made.reward_state}


def group_rows(group: Group, *, trained: bool) -> Iterator[dict[str, Any]]:
    for completion, score in zip(group.completions, group.scores, strict=True):
        yield _row(group, completion, score) | {"trained": trained}


def _row(group: Group, completion: Completion, score: Score) -> dict[str, Any]:
    return {
        "place": place_of(group),
        "key": completion.key,
        "prompt": [{"role": message.role, "text": message.shown} for message in group.prompt.messages],
        "text": completion.text,
        "finish_reason": completion.finish_reason,
        "reward": score.value,
        "parts": dict(score.parts),
        "votes": list(score.votes),
        "reward_error": score.error,
        "error": completion.error,
        "policy_version": completion.policy_version,
        "ids": list(completion.ids),
        "logprobs": list(completion.logprobs),
        "policy_logprobs": list(completion.policy_logprobs),
    }


def last_line(path: Path) -> dict[str, Any]:
    """The line of the round itself."""
    *_, last = read_jsonl(path)
    return last


def read_round(path: Path, prompts: Sequence[Prompt]) -> Round:
    *rows, last = read_jsonl(path)
    of = groups_of(rows, prompts)
    return Round(
        number=last["round"], groups=tuple(of[True]), left_out=tuple(of[False]), seconds=last["seconds"],
        reward_state=last["reward_state"],
    )  # fmt: skip


def groups_of(rows: Sequence[dict[str, Any]], prompts: Sequence[Prompt]) -> dict[bool, list[Group]]:
    """Those that are trained on, and those left out, in the order of the rows."""
    groups: dict[tuple[bool, int], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["trained"], row["place"]), []).append(row)
    of: dict[bool, list[Group]] = {True: [], False: []}
    for (trained, place), mine in groups.items():
        of[trained].append(
            Group(
                prompt=prompts[place],
                completions=tuple(_completion(row) for row in mine),
                scores=tuple(_score(row) for row in mine),
                columns={"place": place},
            )
        )
    return of


def _score(row: dict[str, Any]) -> Score:
    return Score(value=row["reward"], parts=row["parts"], votes=tuple(row["votes"]), error=row["reward_error"])


def _completion(row: dict[str, Any]) -> Completion:
    return Completion(
        key=row["key"], ids=tuple(row["ids"]), text=row["text"], logprobs=tuple(row["logprobs"]),
        policy_logprobs=tuple(row["policy_logprobs"]), finish_reason=row["finish_reason"],
        policy_version=row["policy_version"], error=row["error"],
    )  # fmt: skip
