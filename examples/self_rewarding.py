"""Self-rewarding: a model answers, judges its own answers, and learns from its own verdicts. One flat loop to read.

    python examples/sft.py                 # first: the model that can answer and judge
    python examples/self_rewarding.py      # one to two minutes on two CPU cores

It works where checking is easier than answering: a name written with five demands in mind often misses one, while going
through the demands one by one seldom does. So the model, asked as a judge, knows which of its own answers are good. The
exact checker appears below only to tell the reader how far the judge is right; no training signal comes from it.
Yuan et al. 2024, https://arxiv.org/abs/2401.10020
"""

import argparse
import re
from collections.abc import Iterable
from pathlib import Path
from random import Random

import torch
from dpo import BASE, Pair, accuracy, sample, train  # the flat loop beside this file
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from whet.demo.playground import JUDGE_PROMPT, check, prompts

SCORE = re.compile(r"^Score: ([0-5])$", re.MULTILINE)


def main() -> None:
    args = arguments()
    torch.manual_seed(args.seed)
    tokenizer = AutoTokenizer.from_pretrained(BASE, padding_side="left")  # answers start where prompts end
    base = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, args.sft, is_trainable=True)
    heldout = prompts("heldout", 500, seed=0)
    print(f"before: {accuracy(model, tokenizer, heldout):.1%} of sampled answers are right")

    # 1. Several answers to each of some new prompts, at temperature 1: they must differ for one to be better.
    rows = prompts("train", args.prompts, args.seed + 1)
    repeated = [row for row in rows for _ in range(args.candidates)]
    answers = sample(model, tokenizer, [row["prompt"] for row in repeated])

    # 2. The same model judges each answer: yes or no for each demand, then a score.
    asked = [
        JUDGE_PROMPT.format(instruction=row["prompt"], response=answer)
        for row, answer in zip(repeated, answers, strict=True)
    ]
    reviews = sample(model, tokenizer, asked, temperature=0.0)
    scores = [parse(review) for review in reviews]
    shown = next(i for i, row in enumerate(repeated) if row["task"] == "name")
    print(f"one review:\n{asked[shown]}\n--\n{reviews[shown]}")
    trust(repeated, answers, scores)

    # 3. Best against worst by its own score. A tie teaches nothing and is left out.
    pairs = list(best_and_worst(tokenizer, rows, answers, scores, Random(args.seed)))
    print(f"{len(pairs)} pairs from {len(rows)} prompts, {args.candidates} answers each")

    # 4. DPO on these pairs, the model of step 1 as the reference.
    train(model, pairs, args)
    print(f"after:  {accuracy(model, tokenizer, heldout):.1%} of sampled answers are right")
    model.save_pretrained(args.out)
    print(f"adapter: {args.out}")


def parse(review: str) -> int | None:
    """The score on the last line. A review without one is no verdict, rather than a bad one."""
    found = SCORE.findall(review)
    return int(found[-1]) if found else None


def trust(rows: list[dict], answers: list[str], scores: list[int | None]) -> None:
    """How far to believe the judge: if it cannot tell right from wrong, training on its pairs makes the model worse."""
    judged = [
        (score == 5, bool(check(row["prompt"], answer, **row)))
        for row, answer, score in zip(rows, answers, scores, strict=True)
        if score is not None
    ]
    if not judged:
        raise SystemExit(f"none of {len(scores)} reviews has a score: teach judging longer (sft.py --judge-examples)")
    agreement = sum(said == true for said, true in judged) / len(judged)
    right = sum(true for _, true in judged) / len(judged)
    print(
        f"the judge and the checker agree on {agreement:.1%} of {len(judged)} answers, {right:.1%} of which are right"
    )
    print(f"({len(scores) - len(judged)} reviews had no score)")


def best_and_worst(
    tokenizer: PreTrainedTokenizerBase, rows: list[dict], answers: list[str], scores: list[int | None], rng: Random
) -> Iterable[Pair]:
    """For each prompt the answer judged best and the one judged worst, drawn by lot among equals."""
    num = len(answers) // len(rows)
    for i, row in enumerate(rows):
        group = zip(scores[i * num : (i + 1) * num], answers[i * num : (i + 1) * num], strict=True)
        judged = [(score, rng.random(), answer) for score, answer in group if score is not None]
        if not judged or max(judged)[0] == min(judged)[0]:
            continue
        chat = [{"role": "user", "content": row["prompt"]}]
        prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=True, return_dict=False)
        chosen, rejected = ([*tokenizer(pick(judged)[2]).input_ids, tokenizer.eos_token_id] for pick in (max, min))
        yield prompt, chosen, rejected


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Self-rewarding DPO on the playground.")
    parser.add_argument("--sft", type=Path, default=Path("runs/example-sft"))
    parser.add_argument("--out", type=Path, default=Path("runs/example-self-rewarding"))
    parser.add_argument("--prompts", type=int, default=400)
    parser.add_argument("--candidates", type=int, default=6)
    parser.add_argument("--beta", type=float, default=0.1)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--learning-rate", type=float, default=2e-4)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
