"""Groups on disk: what is written comes back, and a kill at any byte costs no more than the line it cut."""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest

from whet.errors import RunError
from whet.experience.earlier import Earlier
from whet.experience.sampled import Answer, GroupFile, Sampled, read_groups
from whet.schema.records import Message, Origin, Part, Prompt

PROMPT = Prompt(
    messages=(
        Message("system", "Be short."),
        Message("user", (Part("text", "Which "), Part("image", "a.png"), Part("text", "?"))),
        Message("assistant", "", tool_calls=({"name": "look", "arguments": {"at": 1}},)),
    ),
    reference="x", tools=({"name": "look"},), columns={"task": "sort", "n": [1, 2.5]},
    origin=Origin(file="a:b.jsonl", line=3),
)  # fmt: skip
ANSWERS = (
    Answer(text="x\u2028é", num_tokens=2, finish_reason="stop", score=1.0, parts={"form": 0.5}, votes=("Score: 5",)),
    Answer(text="", num_tokens=0, finish_reason="error", score=None, error="no answer: timeout"),
)
GROUPS = [Sampled(key=f"k{n}", prompt=PROMPT, answers=ANSWERS) for n in range(3)]


def test_what_is_written_comes_back(tmp_path: Path) -> None:
    with GroupFile(tmp_path / "groups.jsonl") as file:
        file.add(GROUPS[:1])
        file.add(GROUPS[1:])
        assert file.num == 3
    assert list(read_groups(tmp_path / "groups.jsonl")) == GROUPS


def test_what_json_has_no_word_for_becomes_text(tmp_path: Path) -> None:
    prompt = Prompt(messages=(Message("user", "?"),), columns={"day": datetime.date(2024, 2, 29)})
    with GroupFile(tmp_path / "groups.jsonl") as file:
        file.add([Sampled(key="k", prompt=prompt, answers=())])
    (group,) = read_groups(tmp_path / "groups.jsonl")
    assert group.prompt.columns == {"day": "2024-02-29"}


def test_killed_at_every_byte(tmp_path: Path) -> None:
    path = tmp_path / "groups.jsonl"
    with GroupFile(path) as file:
        file.add(GROUPS)
    content = path.read_bytes()
    for offset in range(0, len(content) + 1, 7):
        path.write_bytes(content[:offset])
        with GroupFile(path) as file:
            assert file.num == content[:offset].count(b"\n")
            file.add(GROUPS[file.num :])
        assert path.read_bytes() == content


@pytest.mark.parametrize("broken", ["{", '{"a": 1}', "[]"])
def test_a_damaged_line_names_the_file(broken: str, tmp_path: Path) -> None:
    path = tmp_path / "groups.jsonl"
    path.write_text(broken + "\n")
    for read in (lambda: list(read_groups(path)), lambda: Earlier([path])):
        with pytest.raises(RunError, match=r"groups\.jsonl: is damaged"):
            read()


def test_an_unwritable_place_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot write"):
        GroupFile(tmp_path / "file" / "groups.jsonl")
