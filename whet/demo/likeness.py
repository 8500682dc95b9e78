"""The picture playground: captions and drawn scenes, with exact truth.

Three things can be asked: what a picture shows, how many of something there are, and which of two pictures fits a
caption better. The last one is answered as UnifiedReward-Think does (2505.03318), reasons first:

    Which picture fits better: two red stars and one blue circle?
    <think>red star: one and two of two. Total: one and two. blue circle: one and one of one. Total: two and three:
    more in 2.</think><answer>Image 2 is better</answer>

How well a picture fits is how many of the things asked for it has. A scene belongs to one split for ever (`scenes.py`),
and an item's two scenes belong to the same: pictures of held-out items are in no training, not even in pretraining.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from whet.data.verdict import Verdict, write_verdict
from whet.demo.scenes import NUMBERS, Scene, Split, Thing, altered, counted, few_things, listed, place, some_scene

Row = dict[str, Any]  # one line of a JSONL file

SHOW, COUNT = "What does it show?", "How many {}s?"
PREFERENCE = "Which picture fits better: {question}?\nImage 1: {first}\nImage 2: {second}"
"""What is asked about two pictures, as a template of `whet data compare`."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A caption, two scenes, one of which fits it better."""

    wanted: Mapping[Thing, int]
    """What the caption asks for, in its order."""
    scenes: tuple[Scene, Scene]

    @property
    def caption(self) -> str:
        return " and ".join(counted(num, thing) for thing, num in self.wanted.items())

    @property
    def better(self) -> int:
        """1 or 2."""
        first, second = (fit(self.wanted, scene) for scene in self.scenes)
        return 1 if first > second else 2

    @property
    def distance(self) -> int:
        """How many things more the better one has: 1 is hard."""
        first, second = (fit(self.wanted, scene) for scene in self.scenes)
        return abs(first - second)


def fit(wanted: Mapping[Thing, int], scene: Scene) -> int:
    """How many of the things wanted are there, each counted once."""
    return (Counter(wanted) & scene.counts).total()


def some_pair(rng: Random, split: Split) -> Pair:
    """Two scenes that miss their caption by different numbers of things, a perfect one among them in most pairs."""
    while True:
        things = few_things(rng, rng.choice((2, 3, 3, 4)))
        less, more = (0 if rng.random() < 0.6 else 1), rng.choice((1, 1, 2))
        if less >= more or more > len(things):
            continue
        scenes = [of_split(rng, altered(rng, things, changes), split) for changes in (less, more)]
        rng.shuffle(scenes)
        order = list(Counter(things).items())
        rng.shuffle(order)
        pair = Pair(dict(order), (scenes[0], scenes[1]))
        if pair.distance:
            return pair


def of_split(rng: Random, things: Sequence[Thing], split: Split) -> Scene:
    """These things, in some places that make a scene of the split."""
    while True:
        scene = place(rng, things)
        if scene.split == split:
            return scene


def reasons(pair: Pair) -> str:
    """What a careful reader notes: each thing wanted, in the first and in the second picture, and how many fit so far;
    then which is more."""
    notes = list[str]()
    so_far = dict[Thing, int]()
    for thing, num in pair.wanted.items():
        so_far[thing] = num
        there = " and ".join(NUMBERS[scene.counts[thing]] for scene in pair.scenes)
        fits = " and ".join(NUMBERS[fit(so_far, scene)] for scene in pair.scenes)
        notes.append(f"{thing}: {there} of {NUMBERS[num]}. Total: {fits}")
    return f"{'. '.join(notes)}: more in {pair.better}."


def judgement(pair: Pair) -> str:
    """The whole answer: reasons, then the verdict alone."""
    return f"<think>{reasons(pair)}</think><answer>{write_verdict(Verdict('Image', pair.better))}</answer>"


def picture_question(rng: Random, split: Split) -> tuple[Scene, str, str, str]:
    """A scene, a question about it, the only right answer, and which kind of question it is."""
    scene = some_scene(rng, split)
    if rng.random() < 0.5:
        return scene, SHOW, listed(scene), "describe"
    thing = some_thing(rng, scene)
    return scene, COUNT.format(thing), NUMBERS[scene.counts[thing]], "count"


def some_thing(rng: Random, *scenes: Scene) -> Thing:
    """Something that may well be there: mostly one that is, else one of a like kind."""
    there = rng.choice([thing for scene in scenes for thing in scene.counts])
    return there if rng.random() < 0.7 else altered(rng, [there], 1)[0]
