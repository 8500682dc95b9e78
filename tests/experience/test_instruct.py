"""Asking for prompts and reading them out of replies."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whet.config.prompts import SelfInstruct
from whet.errors import ConfigError
from whet.experience.instruct import draw, parse, question, read_instruct_template


@pytest.mark.parametrize(
    ("reply", "prompts"),
    [
        ("9. Spell cat.\n10. Name a bird.", ["Spell cat.", "Name a bird."]),
        ("Here are more:\n\n9) Spell cat.\n\n10) Name a bird.", ["Spell cat.", "Name a bird."]),
        ("**9.** Spell cat.\n**10.** Name a bird.", ["Spell cat.", "Name a bird."]),
        ("Task 9: Spell cat.\nTask 10: Name a bird.", ["Spell cat.", "Name a bird."]),
        ("任务9：写一首诗\n任务10：数到三", ["写一首诗", "数到三"]),
        ("- Spell cat.\n- Name a bird.", ["Spell cat.", "Name a bird."]),
        ("9. Sort these:\napple\npear\n10. Name a bird.", ["Sort these:\napple\npear", "Name a bird."]),
        ("9. Add 2.5 and 3.\n10. Name a bird.", ["Add 2.5 and 3.", "Name a bird."]),
        ("1. 写诗\n2、唱歌\n3）数数\n４．画画", ["写诗", "唱歌", "数数", "画画"]),
        ("9. Compute:\n- a\n- b\n10. Next", ["Compute:\n- a\n- b", "Next"]),
        ("Spell cat.", ["Spell cat."]),
        ("9.\n10. Name a bird.", ["Name a bird."]),
        ("", []),
    ],
)
def test_replies(reply: str, prompts: list[str]) -> None:
    assert parse(reply, whole=True) == prompts


def test_the_last_prompt_of_a_reply_cut_short_is_no_prompt() -> None:
    assert parse("9. Spell cat.\n10. Name a bi", whole=False) == ["Spell cat."]
    assert parse("Spell ca", whole=False) == []


@given(st.text(), st.booleans())
def test_any_reply_can_be_read(reply: str, whole: bool) -> None:
    assert all(text.strip() for text in parse(reply, whole=whole))


def test_what_is_shown() -> None:
    given_prompts, made = [f"given {n}" for n in range(20)], [f"made {n}" for n in range(5)]
    config = SelfInstruct()
    shown = draw(given_prompts, made, config, number=3)
    assert len(shown) == len(set(shown)) == 8 and sum(text.startswith("made") for text in shown) == 2
    assert shown == draw(given_prompts, made, config, number=3) != draw(given_prompts, made, config, number=4)
    early = draw(given_prompts, [], config, number=0)
    assert len(early) == 8 and all(text.startswith("given") for text in early)


def test_the_question_numbers_what_is_shown() -> None:
    text = question(read_instruct_template("self_instruct"), ["Sort:\nb a", "Spell {number}."])
    assert "1. Sort: b a\n2. Spell {number}." in text and '"3. ..."' in text


def test_templates_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such template"):
        read_instruct_template("missing.txt")
    (tmp_path / "t.txt").write_text("Give me tasks.")
    with pytest.raises(ConfigError, match=r"lacks \{tasks\}"):
        read_instruct_template(str(tmp_path / "t.txt"))
