"""Direct preference optimisation, as one flat loop to read.

    python examples/sft.py            # first: the model to start from
    python examples/dpo.py            # one to two minutes on two CPU cores

The pairs here come from a rule: of two sampled answers to a prompt, the one that an exact checker accepts is preferred.
(`self_rewarding.py` has the model judge its answers itself.) DPO needs no reward model and no sampling while it trains:
with the log-probabilities log π of an answer y to a prompt x under the policy and under the frozen reference,

    loss = -log sigmoid( β [ log π(chosen|x)/π_ref(chosen|x) - log π(rejected|x)/π_ref(rejected|x) ] )

so the policy moves probability from rejected to chosen answers, and β says how dear it is to leave the reference.
Rafailov et al. 2023, https://arxiv.org/abs/2305.18290
"""

import argparse
from pathlib import Path
from random import Random

import torch
from peft import PeftModel
from torch.nn.functional import logsigmoid
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

import whet.demo
from whet.demo.playground import check, prompts

BASE = Path(whet.demo.__file__).parent / "base"
Pair = tuple[list[int], list[int], list[int]]  # ids of the prompt, of the chosen and of the rejected answer


def main() -> None:
    args = arguments()
    torch.manual_seed(args.seed)
    tokenizer = AutoTokenizer.from_pretrained(BASE, padding_side="left")  # answers start where prompts end
    base = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, args.sft, is_trainable=True)

    heldout = prompts("heldout", 300, seed=0)
    print(f"before: {accuracy(model, tokenizer, heldout):.1%} of sampled answers are right")
    pairs = sample_pairs(model, tokenizer, prompts("train", args.prompts, args.seed + 1), args.candidates)
    print(f"{len(pairs)} pairs from {args.prompts} prompts, {args.candidates} answers each")
    train(model, pairs, args)
    print(f"after:  {accuracy(model, tokenizer, heldout):.1%} of sampled answers are right")
    model.save_pretrained(args.out)
    print(f"adapter: {args.out}")


def sample_pairs(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: list[dict], candidates: int
) -> list[Pair]:
    """A right and a wrong answer to each prompt. Where all are right, or none is, there is nothing to prefer."""
    answers = iter(sample(model, tokenizer, [row["prompt"] for row in rows for _ in range(candidates)]))
    pairs = []
    for row in rows:
        verdicts = {
            answer: check(row["prompt"], answer, **row) for answer in (next(answers) for _ in range(candidates))
        }
        right = [answer for answer, verdict in verdicts.items() if verdict]
        wrong = [answer for answer, verdict in verdicts.items() if not verdict]
        if right and wrong:
            chosen, rejected = ([*tokenizer(a).input_ids, tokenizer.eos_token_id] for a in (right[0], wrong[0]))
            chat = [{"role": "user", "content": row["prompt"]}]
            prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=True, return_dict=False)
            pairs.append((prompt, chosen, rejected))
    return pairs


def train(model: PreTrainedModel, pairs: list[Pair], args: argparse.Namespace) -> None:
    """The reference is the model as it is now. It never changes, so its log-probabilities are computed once."""
    model.eval()  # no dropout: policy and reference must agree exactly at the first step, where the loss is log 2
    with torch.no_grad():
        reference = torch.cat([torch.stack(logprobs(model, pairs[i : i + 64]), 1) for i in range(0, len(pairs), 64)])
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=args.learning_rate)
    rng, done, steps = Random(args.seed), 0, args.epochs * -(-len(pairs) // args.batch_size)
    for epoch in range(args.epochs):
        order = rng.sample(range(len(pairs)), len(pairs))
        total, ahead = 0.0, 0
        for start in range(0, len(order), args.batch_size):
            indices = order[start : start + args.batch_size]
            chosen, rejected = logprobs(model, [pairs[i] for i in indices])
            margins = (chosen - reference[indices, 0]) - (rejected - reference[indices, 1])
            loss = -logsigmoid(args.beta * margins).mean()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            # Small steps: DPO's loss goes on falling after the model has begun to collapse, so it is no guide.
            optimizer.param_groups[0]["lr"] = args.learning_rate * min(1.0, (done + 1) / 10) * (1 - done / steps)
            optimizer.step()
            optimizer.zero_grad()
            done += 1
            total, ahead = total + loss.item() * len(indices), ahead + int((margins > 0).sum())
        loss_mean, preferred = total / len(pairs), ahead / len(pairs)  # over the epoch
        print(f"  epoch {epoch + 1}   loss {loss_mean:.3f}   chosen ahead of rejected {preferred:.0%}", flush=True)


def logprobs(model: PreTrainedModel, pairs: list[Pair]) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities of the chosen and of the rejected answers: a sum over the answer's tokens, prompt left out."""
    rows = [(prompt, chosen) for prompt, chosen, _ in pairs] + [(prompt, rejected) for prompt, _, rejected in pairs]
    width = max(len(prompt) + len(answer) for prompt, answer in rows)
    ids = torch.tensor([prompt + answer + [0] * (width - len(prompt) - len(answer)) for prompt, answer in rows])
    places = torch.arange(1, width)
    ends = torch.tensor([len(prompt) + len(answer) for prompt, answer in rows])
    answered = (places >= torch.tensor([len(prompt) for prompt, _ in rows])[:, None]) & (places < ends[:, None])
    logps = model(input_ids=ids).logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
    chosen, rejected = (logps * answered).sum(-1).chunk(2)
    return chosen, rejected


@torch.no_grad()
def sample(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, asked: list[str], temperature: float = 1.0
) -> list[str]:
    """One answer a prompt, in batches of prompts of like length (so that little is padded). Temperature 0 is greedy."""
    model.eval()
    how = (
        {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
        if temperature
        else {"do_sample": False}
    )
    answers = [""] * len(asked)
    order = sorted(range(len(asked)), key=lambda i: len(asked[i]))
    for indices in (order[i : i + 256] for i in range(0, len(order), 256)):
        chats = [[{"role": "user", "content": asked[i]}] for i in indices]
        batch = tokenizer.apply_chat_template(
            chats, add_generation_prompt=True, padding=True, return_dict=True, return_tensors="pt"
        )
        out = model.generate(**batch, **how, max_new_tokens=64)
        texts = tokenizer.batch_decode(out[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
        for i, text in zip(indices, texts, strict=True):
            answers[i] = text
    return answers


def accuracy(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: list[dict]) -> float:
    answers = sample(model, tokenizer, [row["prompt"] for row in rows])
    return sum(check(row["prompt"], answer, **row) for row, answer in zip(rows, answers, strict=True)) / len(rows)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="DPO on the playground, with pairs from the exact checker.")
    parser.add_argument("--sft", type=Path, default=Path("runs/example-sft"))
    parser.add_argument("--out", type=Path, default=Path("runs/example-dpo"))
    parser.add_argument("--prompts", type=int, default=400)
    parser.add_argument("--candidates", type=int, default=4)
    parser.add_argument("--beta", type=float, default=0.1)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--learning-rate", type=float, default=2e-4)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
