"""Questions about pictures: captions with two drawn scenes each, as the picture playground has them."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

from whet.demo.likeness import judgement, some_pair
from whet.demo.scenes import draw

SHOWN = "Which picture fits better: {caption}?\nImage 1: <image>\nImage 2: <image>"


def write_pairs(path: Path, num_rows: int, *, seed: int = 0) -> None:
    """Preferences, a right judgement before a wrong one, as JSON lines that whet reads; the pictures lie beside."""
    rng, folder = Random(seed), path.parent / "pictures"
    folder.mkdir(exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        for number in range(num_rows):
            pair = some_pair(rng, "train")
            names = [f"{folder.name}/{number}-{place}.png" for place in (1, 2)]
            for name, scene in zip(names, pair.scenes, strict=True):
                draw(scene).save(path.parent / name)
            right, other = judgement(pair), f"Image {3 - pair.better}"
            row = {
                "prompt": SHOWN.format(caption=pair.caption), "images": names, "chosen": right,
                "rejected": right.replace(f"Image {pair.better} is better", f"{other} is better"),
            }  # fmt: skip
            file.write(json.dumps(row) + "\n")


def write_questions(path: Path, num_rows: int, *, seed: int = 0) -> None:
    """The questions of such preferences, without answers."""
    pairs = path.with_name("pairs.jsonl")
    write_pairs(pairs, num_rows, seed=seed)
    rows = [json.loads(line) for line in pairs.read_text(encoding="utf-8").splitlines()]
    asked = [{"prompt": row["prompt"], "images": row["images"]} for row in rows]
    path.write_text("".join(json.dumps(row) + "\n" for row in asked), encoding="utf-8")
