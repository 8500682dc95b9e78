"""The page on rewards: its sections are rewards, its functions run, and every key stands there with its default."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

import pytest
import yaml
from pydantic import TypeAdapter

from tests.rewards.made import completion, prompt
from tests.test_docs import SPAN, Page, both
from whet.config.base import Section
from whet.config.catalogue import sections
from whet.config.rewards import Composite, Custom, Reward, RewardPart
from whet.config.rules import Numeric
from whet.errors import DataError
from whet.rewards.build import build_reward
from whet.rewards.gold import gold_check
from whet.rewards.http import read_scores
from whet.schema.rollouts import Score

REQUIRED = {"required", "必填"}
TYPES = sections(Reward)
each_language = pytest.mark.parametrize("page", both("rewards.md"), ids=lambda page: page.name)


@each_language
def test_every_type_has_an_example(page: Page) -> None:
    read = [TypeAdapter(Reward).validate_python(yaml.safe_load(block)["reward"]) for block in page.blocks("yaml")]
    parts = [part.reward for reward in read if isinstance(reward, Composite) for part in reward.parts]
    plain = {"contains"}  # has the keys of `exact`
    assert {reward.type for reward in (*read, *parts)} | plain == {kind.model_fields["type"].default for kind in TYPES}


@each_language
def test_every_type_stands_in_the_first_table(page: Page) -> None:
    named = [span for row in page.tables()[0][1:] for span in SPAN.findall(row[0])]
    assert sorted(named) == sorted(kind.model_fields["type"].default for kind in TYPES)


@each_language
@pytest.mark.parametrize("kind", [*TYPES, RewardPart], ids=lambda kind: kind.__name__)
def test_every_key_is_explained_with_its_default(page: Page, kind: type[Section]) -> None:
    rows = [row for table in page.tables() if table[0][0] in ("key", "键") for row in table[1:]]
    said = {(SPAN.findall(key)[0], default.strip("`")) for key, default, _ in rows}
    for name, field in kind.model_fields.items():
        if name != "type":
            default = field.get_default(call_default_factory=True)
            words = REQUIRED if field.is_required() else {default if isinstance(default, str) else json.dumps(default)}
            assert any((name, word) in said for word in words), f"{page.name}: {kind.__name__}.{name} is not {words}"


@each_language
def test_the_functions_do_what_the_page_says(page: Page, tmp_path: Path) -> None:
    file = tmp_path / "rewards.py"
    file.write_text(page.blocks("python")[0], encoding="utf-8")

    def scored(name: str, text: str) -> Score:
        (score,) = build_reward(Custom(path=f"{file}:{name}")).score([prompt("5")], [completion(text)])
        return score

    assert (scored("accuracy", " 5").value, scored("accuracy", "6").value) == (1.0, 0.0)
    parts = scored("by_parts", "5")
    assert (parts.value, dict(parts.parts)) == (1.1, {"right": 1.0, "short": 0.1})
    assert scored("asked", "it is 5").value == 1.0


@each_language
def test_the_reply_of_a_server_is_read(page: Page) -> None:
    sent, reply = page.blocks("json")
    assert {len(column) for column in json.loads(sent).values()} == {2}
    assert [(score.value, dict(score.parts)) for score in read_scores(reply.encode(), 2)] == [
        (1.0, {}), (0.8, {"form": 0.0})
    ]  # fmt: skip


@each_language
def test_the_complaint_of_the_gold_check_is_the_real_one(page: Page) -> None:
    rows = [prompt(reference, line=line) for line, reference in enumerate(("5", "five", None, "6"), start=1)]
    error = gold_check(build_reward(Numeric()), rows).error()
    assert isinstance(error, DataError) and page.blocks("text") == [f"{error}\n"]


def test_all_types_are_here() -> None:
    assert len(TYPES) == len(get_args(get_args(Reward)[0])) == 16
