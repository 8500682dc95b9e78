"""Supervised fine-tuning with LoRA, as one flat loop to read.

    python examples/sft.py            # one to two minutes on two CPU cores; writes runs/example-sft

A base model has read the world but cannot hold a conversation. Here it learns two trades at once from rows
{"prompt", "completion"}: to answer, from demonstrations as noisy as real data; and to judge, from reviews of answers.
The judge is what `self_rewarding.py` builds on. What whet adds to this loop (packing, exact accumulation, resume,
evaluation in between, any data format) is in `whet/train`; the arithmetic is the same.
"""

import argparse
import math
from pathlib import Path
from random import Random

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

import whet.demo
from whet.demo.playground import check, demonstrations, judge_examples, prompts

BASE = Path(whet.demo.__file__).parent / "base"
IGNORED = -100  # the label that cross-entropy skips


def main() -> None:
    args = arguments()
    torch.manual_seed(args.seed)
    tokenizer = AutoTokenizer.from_pretrained(BASE, padding_side="left")  # answers start where prompts end
    # LoRA: every weight matrix W of the base stays as it is; what is trained is B A, of rank 32, added to it scaled by
    # alpha / rank, here 2. B starts at zero, so training starts exactly from the base model.
    lora = LoraConfig(r=args.rank, lora_alpha=2 * args.rank, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32), lora)
    model.print_trainable_parameters()

    heldout = prompts("heldout", 300, seed=0)  # tasks that occur in no training data, not even in pretraining
    print(f"base model: {accuracy(model, tokenizer, heldout):.1%} of sampled answers are right")

    rows = demonstrations(args.demonstrations, args.seed) + judge_examples(args.judge_examples, args.seed)
    examples = [encode(tokenizer, row["prompt"], row["completion"]) for row in rows]
    train(model, examples, args)

    print(f"after SFT:  {accuracy(model, tokenizer, heldout):.1%} of sampled answers are right; for example:")
    for row, answer in zip(heldout[:6], sample(model, tokenizer, [row["prompt"] for row in heldout[:6]]), strict=True):
        print(f"  {'right' if check(row['prompt'], answer, **row) else 'wrong'}  {row['prompt']}  ->  {answer}")
    model.save_pretrained(args.out)
    print(f"adapter: {args.out}")


def encode(tokenizer: PreTrainedTokenizerBase, prompt: str, completion: str) -> tuple[list[int], list[int]]:
    """Token ids and labels. Only the completion and the end-of-turn mark are targets: the model is to learn what to
    answer and when to stop, not how to ask."""
    before = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}], add_generation_prompt=True, tokenize=True, return_dict=False
    )
    after = [*tokenizer(completion, add_special_tokens=False).input_ids, tokenizer.eos_token_id]
    return before + after, [IGNORED] * len(before) + after


def train(model: PreTrainedModel, examples: list[tuple[list[int], list[int]]], args: argparse.Namespace) -> None:
    """AdamW on the adapter: a short warm-up, then a cosine to zero; gradients clipped to norm 1."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=args.learning_rate)
    order = Random(args.seed).sample(range(len(examples)), len(examples))
    starts = range(0, len(order), args.batch_size)
    model.train()
    for step, start in enumerate(starts):
        warm = min(1.0, (step + 1) / (0.05 * len(starts)))
        rate = args.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * step / len(starts)))
        optimizer.param_groups[0]["lr"] = rate
        ids, labels = collate([examples[i] for i in order[start : start + args.batch_size]])
        # Right padding needs no attention mask in a causal model: no real token ever looks to its right.
        logits = model(input_ids=ids).logits[:, :-1]  # position t predicts token t + 1
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 25 == 0 or step == len(starts) - 1:
            print(f"  step {step + 1:4d} of {len(starts)}   loss {loss.item():.3f}", flush=True)


def collate(batch: list[tuple[list[int], list[int]]]) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(len(ids) for ids, _ in batch)
    ids = torch.tensor([ids + [0] * (width - len(ids)) for ids, _ in batch])
    labels = torch.tensor([labels + [IGNORED] * (width - len(labels)) for _, labels in batch])
    return ids, labels


@torch.no_grad()
def sample(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, asked: list[str]) -> list[str]:
    """One answer a prompt, drawn at temperature 1: the model's own distribution, nothing cut off."""
    model.eval()
    chats = [[{"role": "user", "content": prompt}] for prompt in asked]
    batch = tokenizer.apply_chat_template(
        chats, add_generation_prompt=True, padding=True, return_dict=True, return_tensors="pt"
    )
    out = model.generate(**batch, do_sample=True, temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=48)
    return tokenizer.batch_decode(out[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)


def accuracy(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: list[dict]) -> float:
    answers = sample(model, tokenizer, [row["prompt"] for row in rows])
    return sum(check(row["prompt"], answer, **row) for row, answer in zip(rows, answers, strict=True)) / len(rows)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="SFT with LoRA on the playground.")
    parser.add_argument("--out", type=Path, default=Path("runs/example-sft"))
    parser.add_argument("--demonstrations", type=int, default=4000)
    parser.add_argument("--judge-examples", type=int, default=4000)
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
