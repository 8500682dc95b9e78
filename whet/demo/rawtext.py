"""Raw text of the playground's world: what the base checkpoint is pretrained on.

Threads as found on a page: a question, some answers (right, wrong, rambling), often a reader's review of each
answer. Pages of exercises with their solutions. Notes on words and numbers. There are no instructions, no chat roles,
and no score in the form the judge is later asked for. Only tasks of the training split occur.
"""

import itertools
import re
from collections.abc import Iterator, Mapping
from random import Random

from whet.demo import names
from whet.demo.playground import FAMILIES, JUDGE_PROMPT, RAMBLES, Row, attempt, criteria, grade, tasks

NUM_PRIMER = 20_000  # documents at the beginning that are mostly notes
READ = {"name": 0.15, "order": 0.15, "count": 0.15, "sum": 0.3, "json": 0.25}  # shares of the families in questions
NUM_TEXTS = 20_000  # for the tokenizer: enough to count how common each word is
END, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
NOTES = (
    "A user asks and an assistant answers.",
    "A system of rules tells the assistant what a user may ask.",
    "A good review checks each demand of the task, yes or no, and then gives a score.",
    "The score is 0 at worst and 5 at best, when every demand is met.",
    "Wrong answers are common. Review them with care.",
)


def documents(rng: Random, *, primer: bool = True) -> Iterator[str]:
    """Raw documents without end, each closed by the end-of-text mark; without a `primer` for those who can read.

    Letters before pages: the first documents are mostly notes on single words. Looking up a letter in a word is learnt
    from them within a thousand steps; from threads alone, where the letter stands in the question too, it takes many.
    """
    for count in itertools.count():
        first = primer and count < NUM_PRIMER
        (page,) = rng.choices(list(PAGES), [early if first else late for early, late in PAGES.values()])
        yield page(rng) + END


def remark(rng: Random) -> str:
    return rng.choice(NOTES)


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


def drill(rng: Random, family: str) -> Iterator[str]:
    """Documents of one family's exercises alone, a line each, solved: for what the mixed pages do not teach."""
    while True:
        rows = [question(rng, {family: 1.0}) for _ in range(rng.randint(6, 12))]
        yield "\n".join(f"{row['prompt']} {attempt(rng, row, slip=0.0, ramble=0.0)}" for row in rows) + END


def solutions(rng: Random) -> str:
    """Exercises with their solutions, all of them right: questions and answers as in threads, or one of each a line.

    Half of the answers in threads are wrong, and most of a thread's text is question and review; here every answer is
    a lesson, so that the model can do what it will be asked for before noisy demonstrations blur it.
    """
    rows = [question(rng) for _ in range(rng.randint(3, 8))]
    solved = [(row["prompt"], attempt(rng, row, slip=0.0, ramble=0.0)) for row in rows]
    if rng.random() < 0.5:
        return "\n".join(f"{asked} {answer}" for asked, answer in solved)
    return page(rng, [part for asked, answer in solved for part in (f"Question:\n{asked}", f"Answer:\n{answer}")])


def thread(rng: Random) -> str:
    """One question and up to four answers, often with what readers made of them."""
    row, reviewed = question(rng), rng.random() < 0.85
    parts = [f"Question:\n{row['prompt']}"]
    for _ in range(rng.randint(1, 4)):
        answer = attempt(rng, row, slip=rng.choice((0.0, 1.0, 2.5)), ramble=0.12)
        parts.append(f"Answer:\n{answer}")
        if reviewed:
            parts.append(remarks(answer, row))
    return page(rng, parts)


def question(rng: Random, shares: Mapping[str, float] = READ) -> Row:
    """A task of the training split and its wording: a prompt row."""
    task, constraints = next(tasks("train", rng, shares))
    return {"prompt": FAMILIES[task].ask(rng, constraints), "task": task, "constraints": constraints}


def page(rng: Random, parts: list[str]) -> str:
    """Some pages mark off their parts, so the chat marks are no strangers."""
    return "\n".join(f"{TURN_START}{part}{TURN_END}" for part in parts) if rng.random() < 0.5 else "\n".join(parts)


def remarks(answer: str, row: Row) -> str:
    """A reader's review: each demand, and how many points out of five."""
    found = criteria(answer, **row)
    lines = [f"{c.text}: {'yes' if c.met else 'no'}" for c in found]
    return "\n".join(["Review:", *lines, f"{grade(found)} of 5"])


PAGES = {remark: (0.02, 0.02), notes: (0.6, 0.13), solutions: (0.3, 0.7), thread: (0.08, 0.15)}
"""The kinds of documents with their shares: among the first `NUM_PRIMER`, and later."""


def vocabulary_texts() -> list[str]:
    """What the tokenizer is trained on: the wording of the world, with every name and letter of a task blanked out.

    So words of the language become single tokens, while an invented name stays a row of letters: a model cannot tell
    what a name starts with if the tokenizer has swallowed its letters.
    """
    rng = Random("vocabulary")
    texts = [*NOTES, "user\n", "assistant\n", JUDGE_PROMPT.format(instruction="", response="")]
    while len(texts) <= NUM_TEXTS:
        text = f"{thread(rng)}\n{notes(rng)}\nScore: 5\n{rng.choice(RAMBLES)}"
        texts += [re.sub(r"[A-Z]{2,}|\b[A-Z]\b", "0", part) for part in re.split(r"<\|\w+\|>", text)]
    return texts
