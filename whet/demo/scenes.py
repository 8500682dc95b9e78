"""Drawn scenes: a few coloured shapes on a small grid, with their exact contents.

    scene = Scene(2, 3, {(0, 1): Thing("red", "circle"), (1, 2): Thing("blue", "star")})
    listed(scene)       "red circle, blue star"
    draw(scene)         an image of 84 x 56 pixels

A cell has 28 x 28 pixels, which are one token of a Qwen2.5-VL picture (patches of 14, merged two by two). What a scene
holds decides its picture down to the pixel: a thing's size, place in the cell and shade are drawn from the scene's
name. So the same scene is the same file, and a scene held out is a picture that no training shows.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import cos, pi, sin
from random import Random
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from PIL.Image import Image

CELL = 28
COLOURS = {"red": (214, 40, 40), "green": (42, 157, 72), "blue": (38, 84, 204), "yellow": (240, 196, 25)}
SHAPES = ("circle", "square", "triangle", "star")
SIZES = ((2, 2), (2, 3), (3, 2), (3, 3))
"""Rows and columns a scene may have."""
NUMBERS = ("no", "one", "two", "three", "four")
_FINE = 4  # drawn so many times larger, so that edges come out smooth

Split = Literal["train", "heldout"]


class Thing(NamedTuple):
    colour: str
    shape: str

    def __str__(self) -> str:
        return f"{self.colour} {self.shape}"


KINDS = tuple(Thing(colour, shape) for colour in COLOURS for shape in SHAPES)


@dataclass(frozen=True, slots=True)
class Scene:
    rows: int
    columns: int
    things: Mapping[tuple[int, int], Thing]
    """What stands in which cell (row, column), in reading order."""

    @property
    def name(self) -> str:
        """The scene's identity: "2x3 01:red circle 12:blue star"."""
        return " ".join([f"{self.rows}x{self.columns}", *(f"{r}{c}:{thing}" for (r, c), thing in self.things.items())])

    @property
    def counts(self) -> Counter[Thing]:
        return Counter(self.things.values())

    @property
    def split(self) -> Split:
        """Where the scene belongs for ever, by a hash of its name: 85 % train, 15 % held out."""
        bucket = int.from_bytes(hashlib.sha256(self.name.encode()).digest()[:4], "big") % 100
        return "train" if bucket < 85 else "heldout"


def few_things(rng: Random, num: int) -> list[Thing]:
    """So many things of at most three kinds."""
    kinds = rng.sample(KINDS, rng.randint(1, min(3, num)))
    return kinds + [rng.choice(kinds) for _ in range(num - len(kinds))]


def place(rng: Random, things: Sequence[Thing]) -> Scene:
    """At most four things, in cells drawn at random."""
    rows, columns = rng.choice(SIZES)
    cells = sorted(rng.sample([(r, c) for r in range(rows) for c in range(columns)], len(things)))
    return Scene(rows, columns, dict(zip(cells, rng.sample(list(things), len(things)), strict=True)))


def altered(rng: Random, things: Sequence[Thing], changes: int) -> list[Thing]:
    """The things with so many of them in another colour or another shape."""
    other = list(things)
    for index in rng.sample(range(len(other)), changes):
        colour, shape = other[index]
        if rng.random() < 0.5:
            colour = rng.choice([one for one in COLOURS if one != colour])
        else:
            shape = rng.choice([one for one in SHAPES if one != shape])
        other[index] = Thing(colour, shape)
    return other


def some_scene(rng: Random, split: Split) -> Scene:
    """A scene of one to four things."""
    while True:
        scene = place(rng, few_things(rng, rng.choice((1, 2, 2, 3, 3, 3, 4, 4))))
        if scene.split == split:
            return scene


def listed(scene: Scene) -> str:
    """What stands there, row by row: "red circle, blue star, red circle"."""
    return ", ".join(map(str, scene.things.values()))


def counted(num: int, thing: Thing) -> str:
    """ "no red circles", "one blue star"."""
    return f"{NUMBERS[num]} {thing}{'' if num == 1 else 's'}"


def draw(scene: Scene) -> Image:
    """The picture of a scene: 28 pixels a cell, RGB."""
    from PIL import Image, ImageDraw

    rng, side = Random(f"draw {scene.name}"), CELL * _FINE
    paper = tuple(rng.randint(228, 255) for _ in range(3))
    image = Image.new("RGB", (scene.columns * side, scene.rows * side), paper)
    pen = ImageDraw.Draw(image)
    for (row, column), thing in scene.things.items():
        radius = rng.uniform(0.30, 0.42) * side
        slack = side / 2 - radius
        x, y = ((at + 0.5) * side + rng.uniform(-slack, slack) for at in (column, row))
        ink = tuple(max(0, min(255, part + rng.randint(-25, 25))) for part in COLOURS[thing.colour])
        if thing.shape == "circle":
            pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=ink)
        else:
            pen.polygon([(x + dx * radius, y + dy * radius) for dx, dy in OUTLINES[thing.shape]], fill=ink)
    return image.resize((scene.columns * CELL, scene.rows * CELL), Image.Resampling.BOX)


def _around(radii: Sequence[float]) -> list[tuple[float, float]]:
    """Corners at equal angles, the first one at the top, at these distances from the middle."""
    turns = [2 * pi * step / len(radii) for step in range(len(radii))]
    return [(far * sin(turn), -far * cos(turn)) for far, turn in zip(radii, turns, strict=True)]


OUTLINES = {
    "square": [(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)],
    "triangle": _around([1, 1, 1]),
    "star": _around([1, 0.42] * 5),
}
"""Corners of a shape of radius one."""
