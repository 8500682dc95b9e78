"""Pages with pictures: what the base checkpoint of the picture playground is pretrained on.

Remarks on one picture or on two: what one shows, how many of something there are. Some pages say what to look for and
then how often it is there, some put a remark between marks, some are questions with their answers. A few have no
picture and tell of numbers: sums, and which of two is more. Nowhere are two pictures compared, and no verdict is given:
that is what the demo teaches. Only scenes of the training split occur.

A page is a list of texts and scenes, in the order in which a reader meets them.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from whet.demo.likeness import COUNT, PREFERENCE, SHOW, judgement, some_pair, some_thing
from whet.demo.scenes import NUMBERS, Scene, Thing, altered, counted, listed, place, some_scene
from whet.models.tiny import PAD, TURN_END, TURN_START

Page = list[str | Scene]
MARKS = ("note", "think", "answer")
NUM_TEXTS = 2000  # for the tokenizer: enough to meet every word often


def page(rng: Random, scene: Callable[[], Scene]) -> Page:
    """One page about scenes that `scene` gives."""
    if rng.random() < 0.1:
        return [numbers(rng), PAD]
    kind = rng.random()
    if kind < 0.15:
        parts = questions(rng, scene())
    elif kind < 0.3:
        one = scene()
        parts = ["Picture: ", one, "\n", lines(rng, [one])]
    else:
        one, two = scene(), scene()
        if rng.random() < 0.5:  # much alike, so that every thing must be looked at
            near = place(rng, altered(rng, list(one.things.values()), 1))
            two = near if near.split == "train" else two
        shown: Page = ["Image 1: ", one, "\nImage 2: ", two, "\n"]
        parts = [*shown, lines(rng, [one, two])] if kind < 0.5 else search(rng, [one, two], shown)
    return [*parts, PAD]


def numbers(rng: Random) -> str:
    """Facts about small numbers, a line each: "one plus two is three.", "one and two: more in 2." """
    lines = []
    for _ in range(8):
        first, second = rng.randrange(len(NUMBERS)), rng.randrange(len(NUMBERS))
        total, names = first + second, f"{NUMBERS[first]} {{}} {NUMBERS[second]}"
        if total < len(NUMBERS) and rng.random() < 0.5:
            lines.append(f"{names.format('plus')} is {NUMBERS[total]}.")
        elif first == second:
            lines.append(f"{names.format('and')}: equal.")
        else:
            lines.append(f"{names.format('and')}: more in {1 if first > second else 2}.")
    return "\n".join(lines)


def search(rng: Random, scenes: list[Scene], shown: Page) -> Page:
    """What to look for, the pictures, and how often each of it is there, in the order in which it was asked for."""
    things = list({some_thing(rng, *scenes): None for _ in range(rng.randint(1, 3))})
    asked = " and ".join(counted(rng.randint(1, 3), thing) for thing in things)
    mark = rng.choice((None, *MARKS))
    found = notes(things, scenes)
    return [f"Look for {asked}.\n", *shown, found if mark is None else f"<{mark}>{found}</{mark}>", "\n",
            lines(rng, scenes)]  # fmt: skip


def questions(rng: Random, scene: Scene) -> Page:
    """A picture, a question, its answer, and perhaps more of them."""
    parts: Page = []
    for number in range(rng.randint(2, 3)):
        thing = some_thing(rng, scene)
        asked, answer = (SHOW, listed(scene)) if rng.random() < 0.5 else (
            COUNT.format(thing), NUMBERS[scene.counts[thing]],
        )  # fmt: skip
        picture: Page = ["\n", scene, "\n"] if number == 0 else ["\n"]
        parts += [f"{TURN_START}user", *picture, f"{asked}{TURN_END}\n{TURN_START}assistant\n{answer}{TURN_END}\n"]
    return parts


def lines(rng: Random, scenes: list[Scene]) -> str:
    """Remarks, a line each, some of them between marks."""
    marked, written = rng.random() < 0.5, []
    for _ in range(rng.randint(3, 4)):
        line = remark(rng, scenes)
        mark = rng.choice(MARKS)
        written.append(f"<{mark}>{line}</{mark}>" if marked else line)
    return "\n".join(written)


def remark(rng: Random, scenes: list[Scene]) -> str:
    if rng.random() < 0.35:
        number = rng.randrange(len(scenes))
        name = "It" if len(scenes) == 1 else f"Image {number + 1}"
        return f"{name} shows {shown(rng, scenes[number])}."
    things = [some_thing(rng, *scenes) for _ in range(rng.randint(1, 3))]
    return notes(things, scenes)


def notes(things: list[Thing], scenes: list[Scene]) -> str:
    """How many of each there are, picture by picture."""
    return " ".join(f"{thing}: {' and '.join(NUMBERS[scene.counts[thing]] for scene in scenes)}." for thing in things)


def shown(rng: Random, scene: Scene) -> str:
    """Thing by thing, or as a caption has it."""
    if rng.random() < 0.6:
        return listed(scene)
    counts = list(scene.counts.items())
    rng.shuffle(counts)
    return " and ".join(counted(num, thing) for thing, num in counts)


def vocabulary_texts() -> list[str]:
    """What the tokenizer is trained on: pages, and the words of the comparisons that come later."""
    rng = Random("vocabulary")
    texts = []
    for _ in range(NUM_TEXTS):
        pair = some_pair(rng, "train")
        parts = page(rng, lambda: some_scene(rng, "train"))
        texts += [part for part in parts if isinstance(part, str) and part != PAD]
        asked = PREFERENCE.format(question=pair.caption, first="", second="")
        texts += [asked, judgement(pair)]
    return [text.replace(TURN_START, "").replace(TURN_END, "") for text in texts]
