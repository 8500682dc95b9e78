"""The playground's promises: splits never meet, checkers are exact, reviews say what the checker says."""

import json
import re
from random import Random

import pytest

from whet.demo import names, playground, rawtext
from whet.demo.playground import FAMILIES, attempt, check, demonstrations, judge_examples, prompts, split_of

NAME = {"length": 5, "start": "K", "end": "A", "with": "N", "without": "E"}


def key(row: playground.Row) -> str:
    return json.dumps([row["task"], row["constraints"]], sort_keys=True)


def test_splits_never_meet() -> None:
    drawn = {split: {key(row) for seed in range(3) for row in prompts(split, 1000, seed)} for split in
             ("train", "validation", "heldout")}  # fmt: skip
    shown = {key(row) for row in demonstrations(2000, 0)}
    assert not drawn["heldout"] & (drawn["train"] | drawn["validation"] | shown)
    assert not drawn["validation"] & (drawn["train"] | shown)
    assert {family for family, _ in map(json.loads, drawn["heldout"])} == set(FAMILIES)


def test_held_out_tasks_are_in_no_lesson() -> None:
    """By their wording, too: no held-out question is in a judge example or in the raw text of pretraining."""
    rows = prompts("heldout", 2000, 0)
    held = {row["prompt"] for row in rows}
    assert not [row for row in judge_examples(2000, 0) if row["prompt"].split("Task:\n")[1].split("\n")[0] in held]
    source = rawtext.documents(Random(1))
    pages = "\n".join(next(source) for _ in range(3000))
    assert len([row for row in prompts("train", 2000, 0) if row["prompt"] in pages]) > 50  # so these would be found
    assert not [prompt for prompt in held if prompt in pages]


def test_split_ignores_the_order_of_keys() -> None:
    assert split_of("name", NAME) == split_of("name", dict(reversed(NAME.items())))


def test_same_seed_same_rows() -> None:
    assert demonstrations(50, 3) == demonstrations(50, 3)
    assert judge_examples(50, 3) == judge_examples(50, 3)
    assert prompts("train", 50, 3) != prompts("train", 50, 4)


@pytest.mark.parametrize(
    ("task", "constraints", "completion", "right"),
    [
        ("name", NAME, "KOLNA", 1.0),
        ("name", NAME, " KOLNA\n", 1.0),
        ("name", NAME, "KOLNAA", 0.0),  # six letters
        ("name", NAME, "LOKNA", 0.0),  # starts with L
        ("name", NAME, "KANTO", 0.0),  # ends with O
        ("name", NAME, "KOLTA", 0.0),  # no N
        ("name", NAME, "KENTA", 0.0),  # an E
        ("name", NAME, "kolna", 0.0),
        ("name", NAME, "KOLNA.", 0.0),
        ("name", NAME, "I think the answer is KOLNA, but I may be wrong.", 0.0),
        ("name", NAME, "", 0.0),
        ("order", {"items": "KDAB", "reverse": False}, "ABDK", 1.0),
        ("order", {"items": "KDAB", "reverse": True}, "KDBA", 1.0),
        ("order", {"items": "KDAB", "reverse": False}, "KDBA", 0.0),
        ("order", {"items": "KDAB", "reverse": False}, "ABK", 0.0),
        ("order", {"items": "7391", "reverse": False}, "1379", 1.0),
        ("order", {"items": "7391", "reverse": False}, "1 3 7 9", 0.0),
        ("count", {"letter": "A", "text": "KANABA"}, "3", 1.0),
        ("count", {"letter": "A", "text": "KANABA"}, "2", 0.0),
        ("count", {"letter": "A", "text": "KANABA"}, "three", 0.0),
        ("sum", {"left": 17, "operation": "+", "right": 5}, "22", 1.0),
        ("sum", {"left": 17, "operation": "-", "right": 5}, "12", 1.0),
        ("sum", {"left": 17, "operation": "-", "right": 5}, "22", 0.0),
        ("sum", {"left": 17, "operation": "-", "right": 5}, "012", 0.0),
        ("json", {"name": "KO", "age": 7}, '{"name": "KO", "age": 7}', 1.0),
        ("json", {"name": "KO", "age": 7}, '{"age": 7, "name": "KO"}', 1.0),
        ("json", {"name": "KO", "age": 7}, '{"name": "KO", "age": "7"}', 0.0),
        ("json", {"name": "KO", "age": 7}, '{"name": "KO", "age": 7, "x": 1}', 0.0),
        ("json", {"name": "KO", "age": 7}, '{"name": "KO", "age": 7', 0.0),
        ("json", {"name": "KO", "age": 7}, "[7]", 0.0),
    ],
)
def test_check(task: str, constraints: dict[str, object], completion: str, right: float) -> None:
    assert check("the wording does not matter", completion, task=task, constraints=constraints, other=1) == right


def test_check_takes_a_whole_row() -> None:
    row = demonstrations(1, 0)[0]
    assert check(row["prompt"], row["completion"], **row) in (0.0, 1.0)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_task_has_a_right_answer_and_the_noise_is_real(family: str) -> None:
    rng = Random(family)
    rows = [row for row in prompts("train", 2000, 0) if row["task"] == family]
    careful = [check("", attempt(rng, row, slip=0.0, ramble=0.0), **row) for row in rows]
    assert set(careful) == {1.0}
    noisy = [check("", attempt(rng, row), **row) for row in rows]
    assert 0.3 < sum(noisy) / len(noisy) < 0.6


def test_reviews_say_what_the_checker_says() -> None:
    found = set()
    for example in judge_examples(1500, 0):
        *lines, last = example["completion"].split("\n")
        answers = [line.rsplit(": ", 1)[1] for line in lines]
        assert set(answers) <= {"yes", "no"}
        assert last == f"Score: {5 * answers.count('yes') // len(answers)}"
        assert (last == "Score: 5") == ("no" not in answers)
        found.add(last)
    assert {"Score: 0", "Score: 3", "Score: 4", "Score: 5"} <= found


def test_a_review_by_hand() -> None:
    row = {"prompt": "", "task": "name", "constraints": NAME}
    assert playground.review("KANTO", row) == (
        "one word: yes\n5 letters: yes\nstarts with K: yes\nends with A: no\ncontains N: yes\navoids E: yes\nScore: 4"
    )
    assert playground.review("Maybe KOLNA?", row) == "one word: no\nScore: 0"


def test_the_judge_is_asked_with_its_template() -> None:
    asked = judge_examples(1, 0)[0]["prompt"]
    assert asked.startswith(playground.JUDGE_PROMPT.split("{instruction}")[0])
    assert "{" not in playground.JUDGE_PROMPT.replace("{instruction}", "").replace("{response}", "")


def test_solutions_are_right() -> None:
    """Seen on the sums, in both shapes that a page of exercises has."""
    text = "\n".join(rawtext.solutions(Random(seed)) for seed in range(200))
    text = re.sub(r"<\|\w+\|>", "", text)
    sums = re.findall(r"(?:What is|Compute) (\d+) ([+-]) (\d+)[.?]( |\nAnswer:\n)(\d+)", text)
    assert {gap for *_, gap, _ in sums} == {" ", "\nAnswer:\n"}
    for left, operation, right, _, answer in sums:
        assert int(answer) == (int(left) + int(right) if operation == "+" else int(left) - int(right))


def test_word_notes_are_true() -> None:
    letters = names.CONSONANTS + names.VOWELS
    values = {demand: range(3, 7) if demand == "length" else letters for demand in names.WORDING}
    meaning = {names.WORDING[demand].format(v): (demand, v) for demand, choice in values.items() for v in choice}
    for seed in range(200):
        title, *lines = rawtext.word_notes(Random(seed)).split("\n")
        for line in lines:
            remark, said = line.split(": ")
            assert (said == "yes") == names.meets(title.removeprefix("Notes on "), *meaning[remark])
