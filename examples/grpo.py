"""Group-relative policy optimisation (GRPO), as one flat loop to read.

    python examples/sft.py            # first: the model to start from
    python examples/grpo.py           # about a minute on two CPU cores

Online RL: the model answers, a rule says what each answer is worth, and the model is pushed towards what was worth more
than its other answers to the same prompt. No pairs, no reward model, no value function: G answers to a prompt are each
other's baseline.

    advantage   A_i = (r_i - mean of the prompt's rewards) / (their standard deviation + 1e-6)
    ratio       rho_t = π(o_t) / π_old(o_t)                      π_old drew the answer
    loss        mean over answers i of the mean over their tokens t of
                -min( rho_t A_i, clip(rho_t, 1 - ε, 1 + ε) A_i ) + β (exp(d_t) - d_t - 1),   d_t = log π_ref(o_t)/π(o_t)

The clip ends the push of a token once its probability has moved by ε since it was drawn, so that a round of answers can
be used for several steps. The last term (Schulman's k3) estimates the KL to the reference, the model after SFT.
Shao et al. 2024, https://arxiv.org/abs/2402.03300, equations 3 and 4
"""

import argparse
from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

import whet.demo
from whet.demo.playground import check, prompts

BASE = Path(whet.demo.__file__).parent / "base"


@dataclass
class Rollouts:
    """R answers of one round, padded to T tokens in all. Position t of the log-probabilities predicts token t + 1."""

    ids: torch.Tensor  # [R, T] prompt on the left of its end, answer on the right
    attention: torch.Tensor  # [R, T] 1 where there is a token, 0 on padding
    answered: torch.Tensor  # [R, T - 1] whether the predicted token is the answer's: those are trained
    rewards: torch.Tensor  # [R] G neighbours belong to one prompt


def main() -> None:
    args = arguments()
    torch.manual_seed(args.seed)
    tokenizer = AutoTokenizer.from_pretrained(BASE, padding_side="left")  # answers start where prompts end
    base = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, args.sft, is_trainable=True)
    model.load_adapter(args.sft, adapter_name="reference")  # the same adapter once more; it stays as it is
    model.set_adapter("default")
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=args.learning_rate)

    heldout = prompts("heldout", args.heldout, seed=0)
    print(f"before: {rollouts(model, tokenizer, heldout, 1).rewards.mean():.1%} of sampled answers are right")
    rows, rng = prompts("train", 10 * args.prompts, args.seed + 1), Random(args.seed)
    for number in range(args.rounds):
        made = rollouts(model, tokenizer, rng.sample(rows, args.prompts), args.group_size)
        kl = train(model, optimizer, made, args)
        without = (made.rewards.view(-1, args.group_size).std(1) == 0).float().mean()
        print(
            f"  round {number + 1:3d} of {args.rounds}   reward {made.rewards.mean():.3f}   KL {kl:.4f} a token   "
            f"{without:.0%} of the prompts say nothing",
            flush=True,
        )
    print(f"after:  {rollouts(model, tokenizer, heldout, 1).rewards.mean():.1%} of sampled answers are right")
    model.save_pretrained(args.out, selected_adapters=["default"])
    print(f"adapter: {args.out}")


@torch.no_grad()
def rollouts(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: list[dict], group: int) -> Rollouts:
    """Answers at temperature 1, nothing cut off: what is sampled from must be what is trained."""
    model.eval()
    chats = [[{"role": "user", "content": row["prompt"]}] for row in rows for _ in range(group)]
    batch = tokenizer.apply_chat_template(
        chats, add_generation_prompt=True, padding=True, return_dict=True, return_tensors="pt"
    )
    ids = model.generate(**batch, do_sample=True, temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=32)
    answers = ids[:, batch["input_ids"].shape[1] :]
    # The token that ends an answer is part of it, or the model would never be taught to stop. What follows is padding.
    ended = (answers == tokenizer.eos_token_id).int().cumsum(1)
    mine = (ended - (answers == tokenizer.eos_token_id).int()) == 0
    texts = tokenizer.batch_decode(answers, skip_special_tokens=True)
    asked = [row for row in rows for _ in range(group)]
    rewards = torch.tensor([check(row["prompt"], text, **row) for row, text in zip(asked, texts, strict=True)])
    attention = torch.cat([batch["attention_mask"], mine.long()], 1)
    answered = torch.cat([torch.zeros_like(batch["attention_mask"]).bool(), mine], 1)[:, 1:]
    return Rollouts(ids, attention, answered, rewards)


def train(model: PreTrainedModel, optimizer: torch.optim.Optimizer, made: Rollouts, args: argparse.Namespace) -> float:
    """A few optimiser steps on one round; returns the KL to the reference in the last, in nats a token."""
    model.eval()  # no dropout: the ratio is exactly 1 at the first step
    with torch.no_grad():
        old = logprobs(model, made)
        model.set_adapter("reference")
        reference = logprobs(model, made)
        model.set_adapter("default")
    groups = made.rewards.view(-1, args.group_size)
    advantages = ((groups - groups.mean(1, keepdim=True)) / (groups.std(1, keepdim=True) + 1e-6)).view(-1, 1)
    mask, lengths = made.answered.float(), made.answered.sum(1).clamp(min=1)
    for _ in range(args.iterations):
        new = logprobs(model, made)
        ratio = (new - old).exp()
        clipped = ratio.clamp(1 - args.clip, 1 + args.clip)
        difference = reference - new
        kl = difference.exp() - difference - 1
        terms = -torch.minimum(ratio * advantages, clipped * advantages) + args.beta * kl
        loss = ((terms * mask).sum(1) / lengths).mean()  # every answer counts the same, whatever its length
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return ((kl.detach() * mask).sum() / mask.sum()).item()


def logprobs(model: PreTrainedModel, made: Rollouts) -> torch.Tensor:
    """[R, T - 1], the log-probability of each next token. Prompts are padded on the left, so positions are counted."""
    positions = (made.attention.cumsum(1) - 1).clamp(min=0)
    logits = model(input_ids=made.ids, attention_mask=made.attention, position_ids=positions).logits[:, :-1]
    return logits.log_softmax(-1).gather(-1, made.ids[:, 1:, None])[..., 0]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="GRPO on the playground, rewarded by the exact checker.")
    parser.add_argument("--sft", type=Path, default=Path("runs/example-sft"))
    parser.add_argument("--out", type=Path, default=Path("runs/example-grpo"))
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--prompts", type=int, default=16, help="prompts a round")
    parser.add_argument("--group-size", type=int, default=8, help="answers to each")
    parser.add_argument("--iterations", type=int, default=2, help="optimiser steps on a round")
    parser.add_argument("--clip", type=float, default=0.2)
    parser.add_argument("--beta", type=float, default=0.01)
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    parser.add_argument("--heldout", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
