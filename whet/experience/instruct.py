"""New prompts by a model: shown a numbered list of some, it goes on with the list (Self-Instruct, 2212.10560).

    shown = draw(given, made, config, number=3)          # 6 prompts of the files and 2 made before, shuffled
    question(template, shown)                            # "...\n1. Name a bird.\n2. ..."
    parse("9. Spell 'cat'.\n10. Add 2 and", whole=False) # ["Spell 'cat'."]: the last one was cut short
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from whet.config.prompts import SelfInstruct
from whet.errors import ConfigError
from whet.rewards.template import fill

ITEM = re.compile(
    r"^[ \t]*[*_#>]{0,3}[ \t]*(?:task|prompt|任务)?[ \t]*#?\d{1,4}[ \t]*[.．)）:：、-][*_]{0,3}(?!\d)[ \t]*",
    re.IGNORECASE,
)
BULLET = re.compile(r"^[ \t]*[-*•][ \t]+")


def read_instruct_template(name: str) -> str:
    """The shipped text, or a file's. Raises ConfigError where there is none, or it lacks a placeholder."""
    if name == "self_instruct":
        return files("whet.experience").joinpath("templates", "self_instruct.txt").read_text(encoding="utf-8").strip()
    if not Path(name).is_file():
        raise ConfigError(
            "no such template", field="source.template", found=repr(name), fix="give a text file, or self_instruct"
        )
    text = Path(name).read_text(encoding="utf-8")
    if "{tasks}" not in text:
        raise ConfigError(
            "the template lacks {tasks}", field="source.template", found=name, fix="put it where the prompts belong"
        )
    return text.rstrip("\n")


def draw(given: Sequence[str], made: Sequence[str], config: SelfInstruct, *, number: int) -> list[str]:
    """The prompts that the model is shown the `number`-th time: a function of the seed and of what there is."""
    rng = random.Random(f"{config.rollout.seed}:{number}")
    from_made = rng.sample(range(len(made)), min(config.shown_made, len(made)))
    wanted = config.shown_given + config.shown_made - len(from_made)
    from_given = rng.sample(range(len(given)), min(wanted, len(given)))
    shown = [made[index] for index in from_made] + [given[index] for index in from_given]
    rng.shuffle(shown)
    return shown


def question(template: str, shown: Sequence[str]) -> str:
    """What the model is asked; a prompt of several lines is shown on one."""
    tasks = "\n".join(f"{number}. {' '.join(text.split())}" for number, text in enumerate(shown, start=1))
    return fill(template, {"tasks": tasks, "number": str(len(shown) + 1)})


def parse(reply: str, *, whole: bool) -> list[str]:
    """The prompts of a reply: its numbered or dotted items, what stands before them left out; without items the whole
    of it. Dots within numbered items are part of these. The last one counts only where the reply was not cut short."""
    items: list[list[str]] = []
    before: list[str] = []
    numbered = False
    for line in reply.strip().splitlines():
        number = ITEM.match(line)
        numbered = numbered or number is not None
        mark = BULLET.match(line) if not numbered else number
        if mark is not None:
            items.append([line[mark.end() :]])
        else:
            (items[-1] if items else before).append(line)
    texts = ["\n".join(lines).strip().strip("*_").strip() for lines in items or [before]]
    return [text for text in (texts if whole else texts[:-1]) if text]
