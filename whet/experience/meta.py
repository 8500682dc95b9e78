"""Judging the judgements: preferences that train the judge (Meta-Rewarding, Wu et al., 2407.19594, section 2.2).

Of every prompt the answer whose votes differ most is taken, and its judgements meet each other two by two, in both
orders. With r(m, n) the verdict where m stands first,

    w1 = wins in second place / all wins        w2 = wins in first place / all wins        over all contests
    B(m, n) = w1 [r(m, n) = m] + w2 [r(n, m) = m]                                          a favoured place counts less
    elo = argmax sum_mn B(m, n) log sigmoid(elo_m - elo_n)                                 of each contest

and the judgement of the highest elo is preferred to that of the lowest. (A weak prior keeps the elo of one that won
everything finite; see `whet.rewards.tournament`.)
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations, permutations
from typing import Any, Literal

from whet.config.judge import Meta
from whet.rewards.judge import Answer, AskedJudge
from whet.rewards.pairwise import Comparison, swapped
from whet.rewards.parse import Verdict, parse_verdict
from whet.rewards.template import SHIPPED, fill, read_template
from whet.rewards.tournament import Match, bradley_terry
from whet.rewards.transcript import about, images_of, transcript
from whet.schema.rollouts import Completion, Group, Judgement, Request, Sampling

MetaReason = Literal["too_few", "unread", "ties", "too_long"]
META_REASONS: dict[MetaReason, str] = {
    "too_few": "no answer has two different readable judgements",
    "unread": "no verdict between them could be read",
    "ties": "the meta-judge found them equal",
    "too_long": "the better judgement is longer than meta.max_chosen_tokens",
}
"""Why a prompt or a contest gives no pair of judgements."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contest:
    """The judgements of one answer, each readable and in words of its own."""

    group: Group
    place: int
    """Of the answer in its group."""
    judgements: tuple[Judgement, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgePair:
    contest: Contest
    chosen: Judgement
    rejected: Judgement
    chosen_elo: float
    rejected_elo: float


@dataclass(slots=True)
class MetaResult:
    """Pairs of judgements, what became of the rest, and how the meta-judge judged."""

    pairs: list[JudgePair] = field(default_factory=list)
    dropped: Counter[MetaReason] = field(default_factory=Counter)
    num_verdicts: int = 0
    num_unread: int = 0
    wins_first: int = 0
    wins_second: int = 0
    comparisons: list[Comparison] = field(default_factory=list)

    def to_json(self) -> dict[str, int]:
        return {"pairs": len(self.pairs)} | {reason: self.dropped[reason] for reason in META_REASONS}

    def metrics(self) -> dict[str, float]:
        """`meta_score_shift`: by how much the preferred judgements score higher; above 0 the judge learns to praise."""
        read = [one for one in self.comparisons if one.readable]
        shifts = [score_of(pair.chosen) - score_of(pair.rejected) for pair in self.pairs]
        values = {
            "num_judge_pairs": float(len(self.pairs)),
            "meta_parse_failure_rate": _ratio(self.num_unread, self.num_verdicts),
            "meta_swap_inconsistency_rate": _ratio(sum(not one.consistent for one in read), len(read)),
            "meta_first_place_share": _ratio(self.wins_first, self.wins_first + self.wins_second),
            "meta_score_shift": _ratio(sum(shifts), len(shifts)),
        }
        return {name: value for name, value in values.items() if not math.isnan(value)}


@dataclass(frozen=True, slots=True, kw_only=True)
class MetaJudge:
    """The judge's own model, asked which of two judgements is better."""

    config: Meta
    template: str
    judge: AskedJudge

    def run(self, groups: Sequence[Group], answer: Answer) -> MetaResult:
        """Ask about every contest of the groups, and pair up."""
        result = MetaResult()
        contests = []
        for group in groups:
            found = list(contests_of(group, self.config.per_prompt))
            contests += found
            result.dropped["too_few"] += not found
        asked = [list(self._questions(contest)) for contest in contests]
        replies = iter(answer([request for requests in asked for _, request in requests]))
        said = [{order: _verdict(next(replies)) for order, _ in requests} for requests in asked]
        _count(result, said)
        weights = _place_weights(result)
        for contest, verdicts in zip(contests, said, strict=True):
            outcome = self._pair(contest, verdicts, weights)
            if isinstance(outcome, JudgePair):
                result.pairs.append(outcome)
            else:
                result.dropped[outcome] += 1
        return result

    def row(self, pair: JudgePair) -> dict[str, Any]:
        """A line of judge_training.jsonl: a preference between two judgements of one answer."""
        return {
            "prompt": self._asked(pair.contest),
            **images_of(pair.contest.group.prompt),
            "chosen": pair.chosen.reply,
            "rejected": pair.rejected.reply,
            "chosen_score": pair.chosen_elo,
            "rejected_score": pair.rejected_elo,
        }

    def _asked(self, contest: Contest) -> str:
        return self.judge.form.question(contest.group.prompt, [contest.group.completions[contest.place].text])

    def _questions(self, contest: Contest) -> Iterator[tuple[tuple[int, int], Request]]:
        config, completion = self.config, contest.group.completions[contest.place]
        sampling = Sampling(max_new_tokens=config.max_new_tokens, temperature=config.temperature, top_p=config.top_p)
        shared = {"instruction": transcript(contest.group.prompt.messages), "response": completion.text}
        for m, n in permutations(range(len(contest.judgements)), 2):
            told = {"first": contest.judgements[m].reply, "second": contest.judgements[n].reply}
            messages = (about(contest.group.prompt, fill(self.template, shared | told)),)
            asked = self.judge.renderer.ask(messages, origin=contest.group.prompt.origin)
            yield (m, n), asked.request(f"{completion.key}/meta{m}.{n}", sampling, self.judge.seed)

    def _pair(
        self, contest: Contest, verdicts: dict[tuple[int, int], Verdict | None], weights: tuple[float, float]
    ) -> JudgePair | MetaReason:
        elo = bradley_terry(battles(verdicts, weights))
        if not elo:
            return "unread" if all(verdict is None for verdict in verdicts.values()) else "ties"
        best, worst = max(elo, key=lambda m: elo[m]), min(elo, key=lambda m: elo[m])
        if math.isclose(elo[best], elo[worst], abs_tol=1e-6):
            return "ties"
        chosen, limit = contest.judgements[best], self.config.max_chosen_tokens
        if limit is not None and chosen.num_tokens > limit:
            return "too_long"
        return JudgePair(
            contest=contest, chosen=chosen, rejected=contest.judgements[worst],
            chosen_elo=elo[best], rejected_elo=elo[worst],
        )  # fmt: skip


def build_meta_judge(config: Meta, judge: AskedJudge) -> MetaJudge:
    """Raises ConfigError where the template is missing or lacks a placeholder."""
    template = read_template(config.template, SHIPPED["meta"], field="meta.template")
    return MetaJudge(config=config, template=template, judge=judge)


def _verdict(reply: Completion) -> Verdict | None:
    return parse_verdict(reply.text, cut=reply.finish_reason == "length")


def contests_of(group: Group, num: int) -> Iterator[Contest]:
    """The answers whose readable votes differ most, at most `num` of a group, of equals the first."""
    found = []
    for place in range(len(group.completions)):
        mine = [one for one in group.judgements if one.shown == (place,) and one.reading is not None]
        different = list({one.reply.strip(): one for one in reversed(mine)}.values())[::-1]
        if len(different) > 1:
            spread = _variance([score_of(one) for one in mine])
            found.append((-spread, place, tuple(different)))
    for _, place, judgements in sorted(found, key=lambda one: one[:2])[:num]:
        yield Contest(group=group, place=place, judgements=judgements)


def battles(verdicts: dict[tuple[int, int], Verdict | None], weights: tuple[float, float]) -> list[Match]:
    """B(m, n) of a contest as matches that m won: `weights` are those of wins in first and in second place."""
    first, second = weights
    won: defaultdict[tuple[int, int], float] = defaultdict(float)
    for (m, n), verdict in verdicts.items():
        if verdict == "first":
            won[m, n] += first
        elif verdict == "second":
            won[n, m] += second
    return [Match(m, n, 1.0, weight) for (m, n), weight in won.items() if weight > 0]


def _count(result: MetaResult, said: Sequence[dict[tuple[int, int], Verdict | None]]) -> None:
    for verdicts in said:
        result.num_verdicts += len(verdicts)
        result.num_unread += sum(verdict is None for verdict in verdicts.values())
        result.wins_first += sum(verdict == "first" for verdict in verdicts.values())
        result.wins_second += sum(verdict == "second" for verdict in verdicts.values())
        num = 1 + max((m for m, _ in verdicts), default=-1)
        result.comparisons += [
            Comparison(verdicts[m, n], swapped(verdicts[n, m])) for m, n in combinations(range(num), 2)
        ]


def _place_weights(result: MetaResult) -> tuple[float, float]:
    """w1 and w2. A place in which nobody ever won says nothing of the other: then both count alike."""
    wins = result.wins_first + result.wins_second
    if not (result.wins_first and result.wins_second):
        return 0.5, 0.5
    return result.wins_second / wins, result.wins_first / wins


def score_of(judgement: Judgement) -> float:
    """The score a readable judgement of one answer gave."""
    assert judgement.reading is not None, "only readable judgements meet"
    return judgement.reading[0]


def _variance(values: Sequence[float]) -> float:
    mean = sum(values) / len(values)
    return sum((value - mean) ** 2 for value in values) / len(values)


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else math.nan
