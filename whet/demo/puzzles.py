"""The other families: putting letters in order, counting a letter, sums, and answers in JSON.

Each is a handful of small functions; a wrong answer is a slip that a careless writer makes (two neighbours swapped,
one too many, a forgotten bracket), so that telling right from wrong takes a look at the content.
"""

import json
from random import Random

from whet.demo.family import Constraints, Criterion, reform
from whet.demo.names import CONSONANTS, VOWELS, invent

LETTERS = "".join(sorted(CONSONANTS + VOWELS))
TEXT_KEYS, NUMBER_KEYS = ("name", "city", "ship"), ("age", "size", "year")


# --- order: "Put the letters KDAB in order." -> ABDK


def draw_order(rng: Random) -> Constraints:
    items = "0123456789" if rng.random() < 0.4 else LETTERS
    return {"items": "".join(rng.sample(items, rng.randint(3, 5))), "reverse": rng.random() < 0.3}


def ask_order(rng: Random, task: Constraints) -> str:
    opening = rng.choice(("Put the {} {} in {}order.", "Write the {} {} in {}order."))
    return opening.format(_kind(task), task["items"], "reverse " if task["reverse"] else "")


def judge_order(task: Constraints, answer: str) -> list[Criterion]:
    written, kind = answer.strip(), _kind(task)
    fits = written.isascii() and (written.isdigit() if kind == "digits" else written.isalpha() and written.isupper())
    same = sorted(written) == sorted(task["items"])
    ordered = list(written) == sorted(written, reverse=task["reverse"])
    return reform(Criterion(f"only {kind}", fits), [Criterion(f"same {kind}", same), Criterion("in order", ordered)])


def answer_order(rng: Random, task: Constraints, slip: float) -> str:
    items = sorted(task["items"], reverse=task["reverse"])
    if rng.random() < slip:
        i = rng.randrange(len(items) - 1)
        items[i], items[i + 1] = items[i + 1], items[i]
    if rng.random() < slip:
        items[rng.randrange(len(items))] = rng.choice("0123456789" if _kind(task) == "digits" else LETTERS)
    return "".join(items)


def _kind(task: Constraints) -> str:
    return "digits" if task["items"].isdigit() else "letters"


# --- count: "How many times does the letter A appear in KANABA?" -> 3


def draw_count(rng: Random) -> Constraints:
    few = rng.sample(LETTERS, 3)
    return {"letter": few[0], "text": "".join(rng.choice(few) for _ in range(rng.randint(4, 7)))}


def ask_count(rng: Random, task: Constraints) -> str:
    return f"How many times does the letter {task['letter']} appear in {task['text']}?"


def judge_count(task: Constraints, answer: str) -> list[Criterion]:
    return _judge_number(task["text"].count(task["letter"]), answer)


def answer_count(rng: Random, task: Constraints, slip: float) -> str:
    right = task["text"].count(task["letter"])
    return str(abs(right + rng.choice((-1, 1))) if rng.random() < slip else right)


def _judge_number(right: int, answer: str) -> list[Criterion]:
    written = answer.strip()
    number = written.isascii() and written.isdigit()
    return reform(Criterion("one number", number), [Criterion(f"equals {right}", written == str(right))])


# --- sum: "What is 17 + 25?" -> 42


def draw_sum(rng: Random) -> Constraints:
    """The larger number first: were both orders drawn, 17 + 25 could be held out and 25 + 17 trained on."""
    right, left = sorted(rng.choices(range(1, 50), k=2))
    return {"left": left, "operation": "-" if rng.random() < 0.4 else "+", "right": right}


def ask_sum(rng: Random, task: Constraints) -> str:
    return rng.choice(("What is {} {} {}?", "Compute {} {} {}.")).format(*(task.values()))


def judge_sum(task: Constraints, answer: str) -> list[Criterion]:
    return _judge_number(_total(task), answer)


def answer_sum(rng: Random, task: Constraints, slip: float) -> str:
    return str(abs(_total(task) + rng.choice((-10, -2, -1, 1, 2, 10))) if rng.random() < slip else _total(task))


def _total(task: Constraints) -> int:
    return int(task["left"] + task["right"] if task["operation"] == "+" else task["left"] - task["right"])


# --- json: "Write JSON with the name KOLNA and the age 7." -> {"name": "KOLNA", "age": 7}


def draw_json(rng: Random) -> Constraints:
    return {rng.choice(TEXT_KEYS): invent(rng, rng.randint(3, 5)), rng.choice(NUMBER_KEYS): rng.randint(2, 99)}


def ask_json(rng: Random, task: Constraints) -> str:
    (key, text), (other, number) = task.items()
    return rng.choice(("Write", "Answer in")) + f" JSON with the {key} {text} and the {other} {number}."


def judge_json(task: Constraints, answer: str) -> list[Criterion]:
    try:
        found = json.loads(answer)
    except ValueError:
        found = None
    valid = isinstance(found, dict)
    fields = found if isinstance(found, dict) else {}
    # `type` as well as value: 7 is not "7", and True is not 1.
    met = [Criterion(f"{k} {v}", type(fields.get(k)) is type(v) and fields[k] == v) for k, v in task.items()]
    return reform(Criterion("valid JSON", valid), [*met, Criterion("no more fields", set(fields) <= set(task))])


def answer_json(rng: Random, task: Constraints, slip: float) -> str:
    (key, text), (other, number) = task.items()
    if rng.random() < slip / 2:
        number += rng.choice((-1, 1, 10))
    if rng.random() < slip / 2:
        text = invent(rng, len(text))
    written = json.dumps({key: text, other: number})
    if rng.random() < slip / 2:
        written = rng.choice((written.replace('"', "", 1), written[:-1], written.replace(":", "", 1)))
    return written
