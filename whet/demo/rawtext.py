"""Raw text of the playground's world: what the base checkpoint is pretrained on.

Threads as found on a page: a question, some answers (right, wrong, rambling), often a reader's review of each
answer. There are no instructions, no chat roles, and no score in the form the judge is later asked for. Only tasks of
the training split occur.
"""

import re
from collections.abc import Iterator
from random import Random

from whet.demo import names
from whet.demo.playground import FAMILIES, JUDGE_PROMPT, RAMBLES, Row, attempt, criteria, grade, tasks

NUM_PRIMER = 25_000  # documents at the beginning that are mostly notes
NUM_TEXTS = 20_000  # for the tokenizer: enough to count how common each word is
END, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
NOTES = (
    "A user asks and an assistant answers.",
    "A system of rules tells the assistant what a user may ask.",
    "A good review checks each demand of the task, yes or no, and then gives a score.",
    "The score is 0 at worst and 5 at best, when every demand is met.",
    "Wrong answers are common. Review them with care.",
)


def documents(rng: Random) -> Iterator[str]:
    """Raw documents without end, each closed by the end-of-text mark.

    Letters before pages: the first documents are mostly notes on single words. Looking up a letter in a word is learnt
    from them within a thousand steps; from threads alone, where the letter stands in the question too, it takes many.
    """
    for count, (task, constraints) in enumerate(tasks("train", rng)):
        row = {"prompt": FAMILIES[task].ask(rng, constraints), "task": task, "constraints": constraints}
        kind, share = rng.random(), 0.8 if count < NUM_PRIMER else 0.3
        yield (rng.choice(NOTES) if kind < 0.02 else notes(rng) if kind < share else thread(rng, row)) + END


def notes(rng: Random) -> str:
    return number_notes(rng) if rng.random() < 0.2 else word_notes(rng)


def number_notes(rng: Random) -> str:
    number = rng.randint(0, 99)
    near = (number, number, number + 1, number + 10, int(str(number)[::-1]), rng.randint(0, 99))
    named = [rng.choice(near) for _ in range(rng.randint(4, 8))]
    return "\n".join([f"Notes on {number}", *(f"equals {n}: {'yes' if n == number else 'no'}" for n in named)])


def word_notes(rng: Random) -> str:
    """A dozen remarks on one word, half of them denied. Without these pages the yes and no of the reviews are learnt
    late: there, most remarks are a yes, and the letter looked for stands in the question too, whatever the answer."""
    word = names.invent(rng, rng.randint(3, 6))
    lines = [f"Notes on {word}"]
    for _ in range(rng.randint(8, 14)):
        demand, wanted = rng.choice(list(names.WORDING)), rng.random() < 0.5
        values = range(3, 7) if demand == "length" else names.CONSONANTS + names.VOWELS + 2 * word
        value = rng.choice([v for v in values if names.meets(word, demand, v) == wanted])
        lines.append(f"{names.WORDING[demand].format(value)}: {'yes' if wanted else 'no'}")
    return "\n".join(lines)


def thread(rng: Random, row: Row) -> str:
    """One question and up to four answers. Some pages mark off their parts, so the chat marks are no strangers."""
    reviewed = rng.random() < 0.85
    parts = [f"Question:\n{row['prompt']}"]
    for _ in range(rng.randint(1, 4)):
        answer = attempt(rng, row, slip=rng.choice((0.0, 1.0, 2.5)), ramble=0.12)
        parts.append(f"Answer:\n{answer}")
        if reviewed:
            parts.append(remarks(answer, row))
    if rng.random() < 0.5:
        return "\n".join(f"{TURN_START}{part}{TURN_END}" for part in parts)
    return "\n".join(parts)


def remarks(answer: str, row: Row) -> str:
    """A reader's review: each demand, and how many points out of five."""
    found = criteria(answer, **row)
    lines = [f"{c.text}: {'yes' if c.met else 'no'}" for c in found]
    return "\n".join(["Review:", *lines, f"{grade(found)} of 5"])


def vocabulary_texts() -> list[str]:
    """What the tokenizer is trained on: the wording of the world, with every name and letter of a task blanked out.

    So words of the language become single tokens, while an invented name stays a row of letters: a model cannot tell
    what a name starts with if the tokenizer has swallowed its letters.
    """
    rng = Random("vocabulary")
    texts = [*NOTES, "user\n", "assistant\n", JUDGE_PROMPT.format(instruction="", response="")]
    for task, constraints in tasks("train", rng):
        row = {"prompt": FAMILIES[task].ask(rng, constraints), "task": task, "constraints": constraints}
        page = f"{thread(rng, row)}\n{notes(rng)}\nScore: 5\n{rng.choice(RAMBLES)}"
        texts += [re.sub(r"[A-Z]{2,}|\b[A-Z]\b", "0", part) for part in re.split(r"<\|\w+\|>", page)]
        if len(texts) > NUM_TEXTS:
            return texts
    raise AssertionError("unreachable: tasks never ends")
