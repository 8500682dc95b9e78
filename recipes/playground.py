"""Data for the recipes, made on the spot: short tasks whose answers an exact checker can tell apart.

    python recipes/playground.py                     # a second; writes data/playground/
    python recipes/playground.py --num 200 --out elsewhere --seed 1

    conversations.jsonl   {"prompt", "completion"}            demonstrations as noisy as real data, some of them wrong
    preferences.jsonl     {"prompt", "chosen", "rejected"}    a right answer and a wrong or rambling one
    prompts.jsonl         {"prompt", "task", "constraints"}   tasks to answer in training
    held_out.jsonl        the same, tasks that stand in none of the other files

The columns `task` and `constraints` are what `whet.demo.playground:check` needs to say whether an answer is right.
Rows of your own take the place of any of these files: `whet data check FILE` says what whet reads in them.
"""

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from random import Random

from whet.demo.playground import Row, attempt, check, demonstrations, prompts


def main() -> None:
    args = arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    write(args.out / "conversations.jsonl", demonstrations(4 * args.num, args.seed))
    write(args.out / "preferences.jsonl", preferences(args.num, args.seed + 1))
    write(args.out / "prompts.jsonl", prompts("train", args.num, args.seed + 2))
    write(args.out / "held_out.jsonl", prompts("heldout", max(1, args.num // 4), args.seed))


def preferences(num: int, seed: int) -> list[Row]:
    """Pairs whose order is known: the checker accepts `chosen` and nothing else."""
    rng = Random(f"preferences {seed}")
    rows = []
    for row in prompts("train", num, seed):
        wrong = attempt(rng, row)
        while check(row["prompt"], wrong, **row):
            wrong = attempt(rng, row)
        rows.append({"prompt": row["prompt"], "chosen": attempt(rng, row, slip=0, ramble=0), "rejected": wrong})
    return rows


def write(path: Path, rows: Iterable[Row]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    print(path)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Write the playground's files that the recipes read.")
    parser.add_argument("--out", type=Path, default=Path("data/playground"))
    parser.add_argument(
        "--num", type=int, default=1000, help="preferences and prompts; four times as many demonstrations"
    )
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
