"""The playground: short tasks with exact checkers, where checking an answer is easier than giving one.

Three things are made here, all from a seed: prompts (with their demands, so that `check` is exact), demonstrations as
noisy as real data (right, wrong and rambling answers mixed), and judge examples (an answer gone through by demand,
then a score). A task belongs to one split for ever: a hash of what it demands decides, not the caller and not the
wording. So a held-out task cannot reach pretraining, demonstrations, judge examples or self-rewarding prompts.

    rows = prompts("heldout", 500, seed=1)
    check(rows[0]["prompt"], "KOLNA", **rows[0])  # 1.0 or 0.0
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from importlib.resources import files
from random import Random
from typing import Any, Literal

from whet.demo import names, puzzles
from whet.demo.family import Constraints, Criterion, Family

Split = Literal["train", "validation", "heldout"]
Row = dict[str, Any]  # one line of a JSONL file

FAMILIES = {
    "name": Family(names.draw, names.ask, names.criteria, names.answer),
    "order": Family(puzzles.draw_order, puzzles.ask_order, puzzles.judge_order, puzzles.answer_order),
    "count": Family(puzzles.draw_count, puzzles.ask_count, puzzles.judge_count, puzzles.answer_count),
    "sum": Family(puzzles.draw_sum, puzzles.ask_sum, puzzles.judge_sum, puzzles.answer_sum),
    "json": Family(puzzles.draw_json, puzzles.ask_json, puzzles.judge_json, puzzles.answer_json),
}
SHARES = {"name": 0.5, "order": 0.15, "count": 0.1, "sum": 0.15, "json": 0.1}
SLIPS = {"name": 0.2, "order": 0.3, "count": 0.5, "sum": 0.5, "json": 0.4}
JUDGE_PROMPT = files("whet.demo").joinpath("judge.txt").read_text(encoding="utf-8").rstrip("\n")
RAMBLES = (
    "Well, that is a good question. Maybe {}?",
    "I think the answer is {}, but I may be wrong.",
    "Let me see. It could be {} or something like it.",
    "Good question! There is a lot to say about it.",
    "First, let me say that this is not easy.",
)


def split_of(task: str, constraints: Constraints) -> Split:
    """The split a task belongs to: 80 % train, 5 % validation, 15 % held out, by a hash of what it demands."""
    canonical = json.dumps([task, constraints], sort_keys=True)
    bucket = int.from_bytes(hashlib.sha256(canonical.encode()).digest()[:4], "big") % 100
    return "train" if bucket < 80 else "validation" if bucket < 85 else "heldout"


def tasks(split: Split, rng: Random, shares: Mapping[str, float] = SHARES) -> Iterator[tuple[str, Constraints]]:
    """Tasks of one split, without end; they may repeat. `shares` are those of the families."""
    while True:
        (task,) = rng.choices(list(shares), list(shares.values()))
        constraints = FAMILIES[task].draw(rng)
        if split_of(task, constraints) == split:
            yield task, constraints


def prompts(split: Split, num: int, seed: int) -> list[Row]:
    """`num` different tasks of one split: {"prompt", "task", "constraints"}."""
    rng, rows, seen = Random(f"prompts {split} {seed}"), list[Row](), set()
    drawn = tasks(split, rng)
    while len(rows) < num:
        task, constraints = next(drawn)
        canonical = json.dumps([task, constraints], sort_keys=True)
        if canonical not in seen:
            seen.add(canonical)
            rows.append({"prompt": FAMILIES[task].ask(rng, constraints), "task": task, "constraints": constraints})
    return rows


def criteria(completion: str, /, *, task: str, constraints: Constraints, **_: Any) -> list[Criterion]:
    """What the checker asks of an answer, one yes/no each; the form comes first, and alone where it is missed."""
    return FAMILIES[task].criteria(constraints, completion)


def check(prompt: str, completion: str, /, *, task: str, constraints: Constraints, **_: Any) -> float:
    """1.0 where the answer meets every demand of its task, else 0.0. The columns are those of a prompt row."""
    return float(all(c.met for c in criteria(completion, task=task, constraints=constraints)))


def grade(found: list[Criterion]) -> int:
    """Demands met on a scale of 0 to 5, rounded down: 5 only where all are met, 0 where the form is missed."""
    return 5 * sum(criterion.met for criterion in found) // len(found)


def review(completion: str, row: Row) -> str:
    """How a careful judge writes: a yes or no for each demand, the score on the last line."""
    found = criteria(completion, **row)
    lines = [f"{c.text}: {'yes' if c.met else 'no'}" for c in found]
    return "\n".join([*lines, f"Score: {grade(found)}"])


def attempt(rng: Random, row: Row, slip: float = 1.0, ramble: float = 0.1) -> str:
    """An answer as found in the wild. `slip` scales how often a demand is missed: 1 as in SLIPS, 0 always right."""
    answer = FAMILIES[row["task"]].answer(rng, row["constraints"], min(0.6, slip * SLIPS[row["task"]]))
    return rng.choice(RAMBLES).format(answer) if rng.random() < ramble else answer


def demonstrations(num: int, seed: int) -> list[Row]:
    """Noisy demonstrations: prompt rows with a `completion` that is right, wrong or rambling."""
    rng = Random(f"demonstrations {seed}")
    return [{**row, "completion": attempt(rng, row)} for row in prompts("train", num, seed)]


def judge_examples(num: int, seed: int) -> list[Row]:
    """The judge's lesson: prompt = the judge prompt about some answer, completion = the exact checker's review of it.

    Wrong answers are commoner here than in the demonstrations, so that "no" is worth learning.
    """
    rng, rows = Random(f"judge {seed}"), []
    for row in prompts("train", num, seed + 1_000_000):
        response = attempt(rng, row, slip=rng.choice((0.0, 1.0, 1.5)))
        asked = JUDGE_PROMPT.format(instruction=row["prompt"], response=response)
        rows.append({"prompt": asked, "completion": review(response, row), "task": f"judge {row['task']}"})
    return rows


def judged_answers(num: int, seed: int) -> list[Row]:
    """Answers to held-out tasks, about half of them right, each with the checker's word on it: {"label": bool}."""
    rng, rows = Random(f"judged {seed}"), []
    for row in prompts("heldout", num, seed + 2_000_000):
        answer = attempt(rng, row, slip=rng.choice((0.0, 1.0, 1.5)), ramble=0.05)
        rows.append({**row, "completion": answer, "label": check(row["prompt"], answer, **row) == 1.0})
    return rows
