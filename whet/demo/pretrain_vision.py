"""Pretrain the base checkpoint of the picture playground, or go on with one.

    python -m whet.demo.pretrain_vision --out base --steps 600 --hold              # from random weights
    python -m whet.demo.pretrain_vision --out better --start base --steps 500      # on from there, and down

A Qwen2.5-VL of two million parameters reads pages with pictures made as it goes (`pages.py`), one page a row, and
learns to predict their words; tower, projector and language model are trained together. What comes out has seen many
pictures and read what they show. It has never compared two, and never given a verdict.
"""

import argparse
import hashlib
import json
import platform
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random

import torch
import transformers
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from whet.demo.pages import Page, page, vocabulary_texts
from whet.demo.scenes import Scene, draw, some_scene
from whet.demo.steps import run_steps, save, schedule
from whet.models.tiny_vlm import END, PICTURE, START, Tower, build_tiny_vlm

POOL = 12_000
"""Pictures that the pages are about: each is met some ten times, with other words."""

Pixels = dict[str, Tensor]  # of a scene: `pixel_values` [patches, values], `image_grid_thw` [1, 3]


def main() -> None:
    args = arguments()
    out, before = begun(args)
    reader = Reader(AutoTokenizer.from_pretrained(out), Qwen2VLImageProcessorPil.from_pretrained(out))
    model = AutoModelForImageTextToText.from_pretrained(out, dtype=torch.float32, attn_implementation="eager").train()
    embed_as_product(model)
    seconds = pretrain(model, batches(reader, args), args, out / "pretrain_log.jsonl", before["steps"])
    save(model, out)
    facts = {
        "parameters": model.num_parameters(),
        "steps": before["steps"] + args.steps,
        "pages": (before["steps"] + args.steps) * args.rows,
        "seconds": before["seconds"] + round(seconds),
        "sha256": hashlib.sha256((out / "model.safetensors").read_bytes()).hexdigest(),
        "machine": f"{torch.get_num_threads()} threads of a {platform.machine()} CPU",
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }
    (out / "pretrain.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(facts))


def begun(args: argparse.Namespace) -> tuple[Path, dict[str, int]]:
    """The checkpoint to train, in its folder, and the steps and seconds that went into it before."""
    if args.start is not None:
        shutil.copytree(args.start, args.out)
        facts = json.loads((args.out / "pretrain.json").read_text(encoding="utf-8"))
        return args.out, {name: int(facts[name]) for name in ("steps", "seconds")}
    out = build_tiny_vlm(
        args.out,
        vocabulary_texts(),
        family="qwen2_5_vl",
        hidden_size=192,
        intermediate_size=512,
        num_layers=4,
        num_heads=6,
        num_kv_heads=2,
        max_positions=1024,
        tower=Tower(depth=1, hidden_size=64, intermediate_size=256, num_heads=2, min_tokens=4),
        seed=args.seed,
    )
    return out, {"steps": 0, "seconds": 0}


class Reader:
    """Pages as the model takes them."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, processor: Qwen2VLImageProcessorPil) -> None:
        self._tokenizer, self._processor = tokenizer, processor
        self._start, self._place, self._end = tokenizer.convert_tokens_to_ids([START, PICTURE, END])
        self._pixels: dict[str, Pixels] = {}
        self._ids: dict[str, list[int]] = {}

    def batch(self, pages: Sequence[Page], length: int) -> dict[str, Tensor]:
        """Rows of `length` tokens: longer pages are cut, which meets their last words only; shorter ones are padded.
        The places of pictures are no targets, and neither is padding."""
        size = len(pages), length
        ids, labels = torch.zeros(size, dtype=torch.long), torch.full(size, -100)
        positions, pixels = torch.zeros(3, *size, dtype=torch.long), []
        for row, parts in enumerate(pages):
            tokens, places = self.tokens(parts)
            num = min(length, len(tokens))
            ids[row, :num] = torch.tensor(tokens[:num])
            positions[:, row, :num] = torch.tensor(places[:num]).T
            labels[row, :num] = ids[row, :num].where(ids[row, :num] != self._place, -100)
            pixels += [self.pixels(part) for part in parts if isinstance(part, Scene)]
        seen = {name: torch.cat([one[name] for one in pixels]) for name in ("pixel_values", "image_grid_thw")}
        return {"input_ids": ids, "labels": labels, "position_ids": positions, **seen}

    def tokens(self, parts: Page) -> tuple[list[int], list[tuple[int, int, int]]]:
        """Ids, and for each its position in time, height and width: a picture's tokens share their time, and words go
        on behind its longer side (Qwen2-VL, 2409.12191)."""
        ids, places, at = list[int](), list[tuple[int, int, int]](), 0
        for part in parts:
            if isinstance(part, Scene):
                grid = [(row, column) for row in range(part.rows) for column in range(part.columns)]
                ids += [self._start, *[self._place] * len(grid), self._end]
                places += [(at, at, at), *((at + 1, at + 1 + row, at + 1 + column) for row, column in grid)]
                at += 1 + max(part.rows, part.columns)
                places.append((at, at, at))
                at += 1
            else:
                words = self._words(part)
                ids += words
                places += [(at + step,) * 3 for step in range(len(words))]
                at += len(words)
        return ids, places

    def pixels(self, scene: Scene) -> Pixels:
        if scene.name not in self._pixels:
            made = dict(self._processor(images=[draw(scene)], return_tensors="pt"))
            self._pixels[scene.name] = {name: made[name] for name in ("pixel_values", "image_grid_thw")}
        return self._pixels[scene.name]

    def _words(self, text: str) -> list[int]:
        if text not in self._ids:
            if len(self._ids) > 100_000:
                self._ids.clear()
            self._ids[text] = self._tokenizer(text).input_ids
        return self._ids[text]


def batches(reader: Reader, args: argparse.Namespace) -> Iterator[dict[str, Tensor]]:
    """Pages about a pool of scenes, without end; those of another seed are other pages."""
    rng = Random(f"pretrain pictures {args.seed}")
    pool = [some_scene(rng, "train") for _ in range(POOL)]
    while True:
        yield reader.batch([page(rng, lambda: rng.choice(pool)) for _ in range(args.rows)], args.length)


def embed_as_product(model: PreTrainedModel) -> None:
    """A patch meets its embedding as one matrix product: a convolution of one place is that, but many times slower."""
    embed = model.model.visual.patch_embed
    embed.forward = lambda patches: torch.nn.functional.linear(patches, embed.proj.weight.flatten(1))


def pretrain(
    model: PreTrainedModel, feed: Iterator[dict[str, Tensor]], args: argparse.Namespace, log: Path, before: int
) -> float:
    """The loop, `before` steps into the model's life. Returns the seconds it took."""
    if args.compile:
        language = model.model.language_model
        language.forward = torch.compile(language.forward)
    return run_steps(
        model, feed, lambda batch: model(**batch, use_cache=False).loss, steps=args.steps,
        learning_rate=args.learning_rate, bf16=True, every=25, log=log, save_every=args.save_every,
        share=lambda step: min(1.0, step / 100) if args.hold else schedule(step, args.steps),
        said=lambda step: {"step": before + step},
    )  # fmt: skip


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Pretrain the base checkpoint of the picture playground.")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--start", type=Path, default=None, help="checkpoint of this script to go on from")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--hold", action="store_true", help="do not lower the learning rate: more steps will follow")
    parser.add_argument("--rows", type=int, default=48)
    parser.add_argument("--length", type=int, default=112)
    parser.add_argument("--learning-rate", type=float, default=2.5e-3)
    parser.add_argument("--save-every", type=int, default=0)
    switch = argparse.BooleanOptionalAction
    parser.add_argument("--compile", action=switch, default=True, help="torch.compile; needs a C++ compiler")
    parser.add_argument("--seed", type=int, default=0, help="another one gives other pages")
    return parser.parse_args()


if __name__ == "__main__":
    main()
