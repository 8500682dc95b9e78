"""Which picture fits better is exact, and the reasons say why."""

from __future__ import annotations

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from whet.data.verdict import Verdict, read_verdict
from whet.demo.likeness import Pair, fit, judgement, picture_question, reasons, some_pair
from whet.demo.scenes import NUMBERS, Scene, Thing

RED, BLUE = Thing("red", "star"), Thing("blue", "circle")
seeds = st.integers(0, 10**9)


def test_by_hand() -> None:
    one = Scene(2, 2, {(0, 0): RED, (1, 1): BLUE, (1, 0): BLUE})
    two = Scene(2, 2, {(0, 1): RED, (1, 0): RED, (1, 1): BLUE})
    pair = Pair({RED: 2, BLUE: 1}, (one, two))
    assert pair.caption == "two red stars and one blue circle"
    assert (fit(pair.wanted, one), fit(pair.wanted, two)) == (2, 3), "a second blue circle is worth nothing"
    assert (pair.better, pair.distance) == (2, 1)
    thoughts = (
        "red star: one and two of two. Total: one and two. "
        "blue circle: two and one of one. Total: two and three: more in 2."
    )
    assert reasons(pair) == thoughts
    assert judgement(pair) == f"<think>{thoughts}</think><answer>Image 2 is better</answer>"


@given(seed=seeds, held_out=st.booleans())
def test_a_pair_has_one_better_picture_of_its_split(seed: int, held_out: bool) -> None:
    split = "heldout" if held_out else "train"
    pair = some_pair(Random(seed), split)
    fits = [fit(pair.wanted, scene) for scene in pair.scenes]
    assert fits[pair.better - 1] > fits[2 - pair.better]
    assert pair.distance == abs(fits[0] - fits[1])
    assert {scene.split for scene in pair.scenes} == {split}
    assert read_verdict(judgement(pair)) == Verdict("Image", pair.better)
    assert sum(pair.wanted.values()) == len(pair.scenes[0].things) == len(pair.scenes[1].things)


@given(seed=seeds)
def test_the_right_answer_about_a_picture_is_right(seed: int) -> None:
    scene, asked, answer, kind = picture_question(Random(seed), "train")
    if kind == "describe":
        assert answer.split(", ") == [str(thing) for thing in scene.things.values()]
    else:
        colour, shape = asked.removeprefix("How many ").removesuffix("s?").split()
        assert NUMBERS.index(answer) == scene.counts[Thing(colour, shape)]
