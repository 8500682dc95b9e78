"""Pretrain the demo's base checkpoint: a small language model of the playground's world, or go on with one.

    python -m whet.demo.pretrain --out base                        # from random weights
    python -m whet.demo.pretrain --out better --start base         # on from what is there, on later pages

This is ordinary next-token prediction on raw text made as it goes (`rawtext.py`): documents are packed end to end into
rows, every token is a target. What comes out is a *base* model. It has read many questions, answers and reviews, so it
knows the world; it has never seen a chat turn, and half of the answers in the threads it read were wrong. The weights
that ship say in their README what made them; log, cost and hash lie beside them.
"""

import argparse
import hashlib
import json
import platform
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from whet.demo.playground import FAMILIES
from whet.demo.rawtext import documents, drill, vocabulary_texts
from whet.models.tiny import build_tiny


def main() -> None:
    args = arguments()
    out, before = begun(args)
    tokenizer = AutoTokenizer.from_pretrained(out)
    # Compiled, attention as plain products is faster on a CPU than its fused kernel, whose backward pass is slow.
    model = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32, attn_implementation="eager").train()
    seconds = pretrain(model, batches(tokenizer, args), args, out / "pretrain_log.jsonl", before["tokens"])
    save(model, out)
    facts = {
        "parameters": model.num_parameters(),
        "tokens": before["tokens"] + args.steps * args.rows * args.length,
        "seconds": before["seconds"] + round(seconds),
        "seed": args.seed,
        "sha256": hashlib.sha256((out / "model.safetensors").read_bytes()).hexdigest(),
        "machine": f"{torch.get_num_threads()}-core {platform.machine()} CPU",
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }
    (out / "pretrain.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(facts))


def begun(args: argparse.Namespace) -> tuple[Path, dict[str, int]]:
    """The checkpoint to train, in its folder, and the tokens and seconds that went into it before."""
    if args.start is not None:
        shutil.copytree(args.start, args.out)
        facts = json.loads((args.out / "pretrain.json").read_text(encoding="utf-8"))
        return args.out, {name: int(facts[name]) for name in ("tokens", "seconds")}
    out = build_tiny(
        args.out,
        vocabulary_texts(),
        vocab_size=1024,  # more than the world's wording needs: all of its words become single tokens
        hidden_size=args.hidden,
        intermediate_size=4 * args.hidden,
        num_layers=args.layers,
        num_heads=4,
        num_kv_heads=2,
        max_positions=1024,
        seed=args.seed,
    )
    return out, {"tokens": 0, "seconds": 0}


def pretrain(
    model: PreTrainedModel, feed: Iterator[torch.Tensor], args: argparse.Namespace, log: Path, before: int
) -> float:
    """The loop, `before` tokens into the model's life. Returns the seconds it took."""
    optimizers = make_optimizers(model, args.learning_rate)
    forward = torch.compile(model) if args.compile else model
    start, losses = time.monotonic(), []
    with log.open("a", encoding="utf-8") as sink:
        for step, ids in zip(range(1, args.steps + 1), feed, strict=False):
            share = schedule(step, args.steps)
            for optimizer in optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = share * group["initial_lr"]
            with torch.autocast("cpu", torch.bfloat16, enabled=args.bf16):
                loss = forward(input_ids=ids, labels=ids, use_cache=False).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
            losses.append(loss.item())
            if step % 100 == 0 or step == args.steps:
                tokens, seconds = before + step * ids.numel(), round(time.monotonic() - start, 1)
                mean = round(sum(losses) / len(losses), 4)
                line = json.dumps({"step": step, "tokens": tokens, "loss": mean, "seconds": seconds})
                sink.write(line + "\n")
                sink.flush()
                print(line, flush=True)
                losses.clear()
            if args.save_every and step % args.save_every == 0:
                save(model, log.parent)
    return time.monotonic() - start


def make_optimizers(model: PreTrainedModel, learning_rate: float) -> list[torch.optim.Optimizer]:
    """Muon (orthogonalised momentum) for the weight matrices, where it needs about half of AdamW's tokens; AdamW for
    the embeddings and norms. `match_rms_adamw` scales Muon's step to AdamW's, so one learning rate serves both."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    made = [
        torch.optim.Muon(matrices, lr=learning_rate, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.0),
    ]
    for optimizer in made:
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
    return made


def schedule(step: int, steps: int) -> float:
    """Warm up over 100 steps, hold, and go down to 2 % of the peak over the last third (2405.18392)."""
    return min(1.0, step / 100) * min(1.0, 0.02 + 0.98 * (steps - step) / (steps / 3))


def batches(tokenizer: PreTrainedTokenizerBase, args: argparse.Namespace) -> Iterator[torch.Tensor]:
    """Rows cut from one endless stream of documents, none of which is ever seen twice by intent."""
    rng = Random(f"pretrain {args.seed}")
    source = documents(rng, primer=args.start is None) if args.drill is None else drill(rng, args.drill)
    buffer: list[int] = []
    need = args.rows * args.length
    while True:
        while len(buffer) < need:
            texts = [next(source) for _ in range(64)]
            buffer += [token for ids in tokenizer(texts).input_ids for token in ids]
        yield torch.tensor(buffer[:need]).view(args.rows, args.length)
        del buffer[:need]


def save(model: PreTrainedModel, out: Path) -> None:
    """bf16 halves the file; a LoRA trained on top never notices."""
    copy = AutoModelForCausalLM.from_config(model.config).to(torch.bfloat16)
    copy.load_state_dict(model.state_dict())
    copy.save_pretrained(out)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Pretrain the demo's base checkpoint.")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--start", type=Path, default=None, help="checkpoint of this script to go on from")
    parser.add_argument("--drill", choices=list(FAMILIES), default=None, help="exercises of one family alone")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--learning-rate", type=float, default=2.5e-3)
    parser.add_argument("--save-every", type=int, default=0)
    switch = argparse.BooleanOptionalAction
    parser.add_argument("--bf16", action=switch, default=True, help="autocast the forward pass")
    parser.add_argument("--compile", action=switch, default=True, help="torch.compile; needs a C++ compiler")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
