"""Pairwise verdicts: how often the better candidate is named, and how much the order of the two decides.

An item is asked once with its candidates as they are and once with them exchanged. A model that always says "Image 1"
is right half of the time and consistent never; one that sees what is there says the same of both.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from whet.config.evaluate import VerdictTask
from whet.data.verdict import TIE, Verdict, parse_verdict, read_verdict
from whet.errors import DataError
from whet.schema.artifacts import Measure
from whet.schema.records import Prompt
from whet.stages.measure.answers import Measured, answer_all, references, sample_rows
from whet.stages.measure.interval import proportion
from whet.stages.measure.ready import ReadyTask
from whet.stages.measure.store import ReplyStore
from whet.stages.measure.subject import Subject


@dataclass(frozen=True, slots=True)
class Asked:
    """One order of an item: what is true, and the verdicts that were given, None where one could not be read."""

    true: Verdict
    given: tuple[Verdict | None, ...]

    @property
    def right(self) -> list[bool]:
        return [verdict == self.true for verdict in self.given]


def measure_verdicts(
    ready: ReadyTask, task: VerdictTask, subject: Subject, store: ReplyStore, num_logged: int
) -> Measured:
    """`accuracy` over items, both orders (and `accuracy/GROUP`); `consistency`, the share of items whose two orders are
    answered with the same candidate; `first`, the share of decided verdicts (no ties) for the candidate shown first,
    one half without bias where truths are balanced; `readable`, the share of answers with a verdict. Each is a mean
    over items of the item's own share.

    An item that is asked in one order only has no consistency; the ledger's notes say how many there are."""
    items, groups = items_of(ready, task)
    answers = answer_all(ready, task, subject, store)
    asked = [
        Asked(true, tuple(None if reply.error else read_verdict(reply.text) for reply in replies))
        for true, replies in zip(truths(ready), answers, strict=True)
    ]
    of_item: defaultdict[str, list[Asked]] = defaultdict(list)
    for item, one in zip(items, asked, strict=True):
        of_item[item].append(one)
    if alone := sum(len(orders) == 1 for orders in of_item.values()):
        ready.ledger.note(f"{alone} of {len(of_item)} items are asked in one order only: they have no consistency")
    measures = [
        Measure(stage=subject.label, task=ready.name, metric=metric, value=value, low=low, high=high, num=len(shares))
        for metric, per_item in outcomes_of(of_item, groups).items()
        if (shares := [mean(outcomes) for outcomes in per_item if outcomes])
        for value, low, high in [proportion(shares, sum(map(len, per_item)) / len(shares))]
    ]
    samples = sample_rows(ready, subject.label, answers, [float(one.right[0]) for one in asked], num_logged)
    return Measured(measures=measures, samples=samples, ledger=ready.ledger)


def outcomes_of(of_item: Mapping[str, Sequence[Asked]], groups: Mapping[str, str]) -> dict[str, list[list[bool]]]:
    """Of every metric the yes and no an item gives, in a list of its own, so that intervals count items. The list is
    empty where an item says nothing of a metric."""
    right = {item: [each for one in asked for each in one.right] for item, asked in of_item.items()}
    given = [[verdict for one in asked for verdict in one.given] for asked in of_item.values()]
    return {
        "accuracy": list(right.values()),
        **{f"accuracy/{name}": [right[item] for item in right if groups[item] == name]
           for name in sorted(set(groups.values()))},
        "consistency": [agreements(asked) for asked in of_item.values()],
        "first": [[verdict.better == 1 for verdict in verdicts if verdict is not None and verdict.better != TIE]
                  for verdicts in given],
        "readable": [[verdict is not None for verdict in verdicts] for verdicts in given],
    }  # fmt: skip


def agreements(asked: Sequence[Asked]) -> list[bool]:
    """Which of an item's pairs of verdicts, sample by sample, name the same candidate in both orders.

    None of them for an item that was asked in one order only. A verdict that cannot be read agrees with nothing.
    """
    if len(asked) != 2:
        return []
    first, second = asked
    return [
        one is not None and other is not None and one == other.swapped
        for one, other in zip(first.given, second.given, strict=True)
    ]


def items_of(ready: ReadyTask, task: VerdictTask) -> tuple[list[str], dict[str, str]]:
    """The item of every row, and the group of every item. Raises DataError where a row does not say, and for an item
    that is asked more than once in an order."""
    items = [column(prompt, task.item, ready, "item") for prompt in ready.prompts]
    groups = {} if task.by is None else {
        item: column(prompt, task.by, ready, "by") for item, prompt in zip(items, ready.prompts, strict=True)
    }  # fmt: skip
    num, given = Counter(items), dict[str, Verdict]()
    for item, prompt, true in zip(items, ready.prompts, truths(ready), strict=True):
        if num[item] > 2 or (item in given and given[item] != true.swapped):
            raise DataError(
                "an item may be asked once in each order", file=prompt.origin.file, line=prompt.origin.line,
                field=task.item, found=f"{num[item]} rows of {item!r}, with the same verdict twice"
                if num[item] == 2 else f"{num[item]} rows of {item!r}",
                fix="give every item a name of its own: `whet data compare` does",
            )  # fmt: skip
        given[item] = true
    return items, groups


def column(prompt: Prompt, name: str, ready: ReadyTask, key: str) -> str:
    if name not in prompt.columns:
        raise DataError(
            f"no column {name!r}", file=prompt.origin.file, line=prompt.origin.line,
            fix=f"tasks.{ready.name}.{key} names a column every row must have",
        )  # fmt: skip
    return str(prompt.columns[name])


def truths(ready: ReadyTask) -> list[Verdict]:
    """What is true of every row. Raises DataError where a reference is no verdict."""
    found = []
    for prompt, reference in zip(ready.prompts, references(ready), strict=True):
        verdict = parse_verdict(reference)
        if verdict is None:
            raise DataError(
                "is no verdict", file=prompt.origin.file, line=prompt.origin.line, field="reference",
                found=repr(reference), fix="write e.g. `Image 1 is better`",
            )  # fmt: skip
        found.append(verdict)
    return found


def mean(values: Sequence[bool]) -> float:
    return sum(values) / len(values)
