"""What the base reads is true, of the training split, and no comparison."""

from __future__ import annotations

import re
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from whet.demo.pages import numbers, page
from whet.demo.scenes import NUMBERS, Scene, Thing, counted, listed, some_scene


@given(seed=st.integers(0, 10**9))
def test_remarks_are_true(seed: int) -> None:
    rng = Random(seed)
    parts = page(rng, lambda: some_scene(rng, "train"))
    scenes = [part for part in parts if isinstance(part, Scene)]
    text = "".join(part for part in parts if isinstance(part, str))
    if not scenes:
        return  # numbers alone, see below
    assert {scene.split for scene in scenes} == {"train"}
    for kind, *counts in re.findall(r"(\w+ \w+): (\w+)(?: and (\w+))?\.", text):
        colour, shape = kind.split()
        true = [NUMBERS[scene.counts[Thing(colour, shape)]] for scene in scenes]
        assert [count for count in counts if count] == true
    for name, shown in re.findall(r"(It|Image 1|Image 2) shows ([^.]+)\.", text):
        scene = scenes[1 if name == "Image 2" else 0]
        counts = {counted(num, thing) for thing, num in scene.counts.items()}
        assert shown == listed(scene) or set(shown.split(" and ")) == counts


@given(seed=st.integers(0, 10**9))
def test_numbers_are_right(seed: int) -> None:
    for line in numbers(Random(seed)).splitlines():
        first, how, second, *rest = line.rstrip(".").replace(":", "").split()
        a, b = NUMBERS.index(first), NUMBERS.index(second)
        if how == "plus":
            assert rest == ["is", NUMBERS[a + b]]
        elif a == b:
            assert rest == ["equal"]
        else:
            assert rest == ["more", "in", "1" if a > b else "2"]


@given(seed=st.integers(0, 10**9))
def test_nothing_is_compared(seed: int) -> None:
    rng = Random(seed)
    text = "".join(part for part in page(rng, lambda: some_scene(rng, "train")) if isinstance(part, str))
    assert not re.search(r"better|Total|fits| of (one|two|three|four)", text)
