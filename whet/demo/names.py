"""Invented names under several demands: "Invent a name for a dragon: 5 letters, starts with K, avoids E."

The family the demo leans on, because here checking is much easier than answering: each demand is one look at the name,
while writing a name left to right has to keep all of them in mind at once.
"""

from random import Random
from typing import Any

from whet.demo.family import Constraints, Criterion, reform

CONSONANTS, VOWELS = "BDFGKLMNPRSTVZ", "AEIOU"
OPENINGS = ("Invent a name for a", "Suggest a name for a", "Find a name for my")
BEARERS = ("dragon", "robot", "planet", "kitten", "city", "ship")
WORDING = {
    "length": "{} letters",
    "start": "starts with {}",
    "end": "ends with {}",
    "with": "contains {}",
    "without": "avoids {}",
}


def draw(rng: Random) -> Constraints:
    """Demands that one invented name meets, so that every task has an answer."""
    name = invent(rng, rng.randint(3, 6))
    demands: Constraints = {"length": len(name)}
    absent = [letter for letter in CONSONANTS + VOWELS if letter not in name]
    offers = {"start": name[0], "end": name[-1], "with": rng.choice(name[1:-1]), "without": rng.choice(absent)}
    for key in sorted(rng.sample(list(offers), rng.randint(2, 4)), key=list(offers).index):
        demands[key] = offers[key]
    return demands


def ask(rng: Random, task: Constraints) -> str:
    demands = [WORDING[key].format(value) for key, value in task.items()]
    return f"{rng.choice(OPENINGS)} {rng.choice(BEARERS)}: {', '.join(demands)}."


def criteria(task: Constraints, answer: str) -> list[Criterion]:
    word = answer.strip()
    form = Criterion("one word", word.isascii() and word.isalpha() and word.isupper())
    return reform(form, [Criterion(WORDING[key].format(value), meets(word, key, value)) for key, value in task.items()])


def meets(word: str, demand: str, value: Any) -> bool:
    match demand:
        case "length":
            return len(word) == int(value)
        case "start":
            return word.startswith(value)
        case "end":
            return word.endswith(value)
        case "with":
            return value in word
        case "without":
            return value not in word
    raise ValueError(f"unknown demand {demand!r}")


def answer(rng: Random, task: Constraints, slip: float) -> str:
    """A name that meets the demands, but each one is forgotten with probability `slip`."""
    kept = {key: value for key, value in task.items() if rng.random() >= slip}
    length = kept.get("length") or rng.choice([n for n in range(3, 7) if n != task["length"]])
    letters = list(invent(rng, length, avoid=kept.get("without", "")))
    if "start" in kept:
        letters[0] = kept["start"]
    if "end" in kept:
        letters[-1] = kept["end"]
    if "with" in kept and kept["with"] not in letters:
        letters[_seat(rng, letters, kept["with"])] = kept["with"]
    if "without" in task and "without" not in kept and task["without"] not in letters:
        letters[_seat(rng, letters, task["without"])] = task["without"]
    return "".join(letters)


def invent(rng: Random, length: int, avoid: str = "") -> str:
    """Something one can say aloud: consonants and vowels take turns."""
    kinds = [CONSONANTS, VOWELS] if rng.random() < 0.75 else [VOWELS, CONSONANTS]
    return "".join(rng.choice([c for c in kinds[i % 2] if c != avoid]) for i in range(length))


def _seat(rng: Random, letters: list[str], letter: str) -> int:
    """Where inside the name a letter can go without two vowels or two consonants meeting, if there is such a place."""
    inside = range(1, len(letters) - 1)
    fitting = [i for i in inside if (letters[i] in VOWELS) == (letter in VOWELS)]
    return rng.choice(fitting or list(inside))
