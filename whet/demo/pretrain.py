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
from collections.abc import Iterator
from pathlib import Path
from random import Random

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from whet.demo.playground import FAMILIES
from whet.demo.rawtext import documents, drill, vocabulary_texts
from whet.demo.steps import run_steps, save, schedule
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
    forward = torch.compile(model) if args.compile else model

    def said(step: int) -> dict[str, int]:
        return {"step": step, "tokens": before + step * args.rows * args.length}

    return run_steps(
        model, feed, lambda ids: forward(input_ids=ids, labels=ids, use_cache=False).loss, steps=args.steps,
        learning_rate=args.learning_rate, share=lambda step: schedule(step, args.steps), bf16=args.bf16, every=100,
        said=said, log=log, save_every=args.save_every,
    )  # fmt: skip


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
