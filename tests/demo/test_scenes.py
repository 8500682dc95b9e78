"""A scene's name decides its picture, and its picture shows what the scene holds."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whet.demo.scenes import (
    CELL,
    COLOURS,
    KINDS,
    NUMBERS,
    Scene,
    Thing,
    altered,
    counted,
    draw,
    listed,
    place,
    some_scene,
)

seeds = st.integers(0, 10**9)
SCENE = Scene(2, 3, {(0, 1): Thing("red", "circle"), (1, 0): Thing("blue", "star"), (1, 2): Thing("blue", "star")})


def test_words() -> None:
    assert SCENE.name == "2x3 01:red circle 10:blue star 12:blue star"
    assert listed(SCENE) == "red circle, blue star, blue star"
    words = [counted(num, Thing("red", "star")) for num in (0, 1, 2)]
    assert words == ["no red stars", "one red star", "two red stars"]


def test_the_same_scene_is_the_same_picture() -> None:
    first, second = draw(SCENE), draw(Scene(2, 3, dict(SCENE.things)))
    assert first.size == (3 * CELL, 2 * CELL)
    assert first.tobytes() == second.tobytes()


@pytest.mark.parametrize("thing", KINDS, ids=str)
def test_a_thing_stands_in_its_cell_in_its_colour(thing: Thing) -> None:
    scene = Scene(2, 2, {(1, 0): thing})
    pixels = draw(scene).load()
    assert pixels is not None

    def coloured(column: int, row: int) -> int:
        cell = [pixels[column * CELL + x, row * CELL + y] for x in range(CELL) for y in range(CELL)]
        wanted = COLOURS[thing.colour]
        return sum(max(abs(a - b) for a, b in zip(pixel, wanted, strict=True)) <= 40 for pixel in cell)

    assert coloured(0, 1) > 60
    assert not any(coloured(*other) for other in ((0, 0), (1, 0), (1, 1)))


@given(seed=seeds)
def test_scenes_keep_to_their_split(seed: int) -> None:
    rng = Random(seed)
    assert some_scene(rng, "train").split == "train"
    held_out = some_scene(rng, "heldout")
    assert held_out.split == "heldout"
    assert 1 <= len(held_out.things) < len(NUMBERS)
    assert list(held_out.things) == sorted(held_out.things)


@given(seed=seeds, num=st.integers(1, 4), data=st.data())
def test_alterations_change_so_many_things(seed: int, num: int, data: st.DataObject) -> None:
    rng = Random(seed)
    things = [rng.choice(KINDS) for _ in range(num)]
    changes = data.draw(st.integers(0, num))
    other = altered(rng, things, changes)
    different = [(a, b) for a, b in zip(things, other, strict=True) if a != b]
    assert len(different) == changes
    assert all((a.colour == b.colour) != (a.shape == b.shape) for a, b in different)
    assert place(rng, other).counts.total() == num
