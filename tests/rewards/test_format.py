"""Rules of form: patterns that would never end, tags inside tags, JSON that is none."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from tests.rewards.made import score, value
from whet.config.rules import JsonSchema, Regex, Tags
from whet.errors import ConfigError
from whet.rewards.format import JsonReward, has_blocks, regex_form, tagged, unfenced


def test_full_and_search() -> None:
    full, search = regex_form(Regex(pattern=r"\d+ apples?")), regex_form(Regex(pattern=r"\d+", match="search"))
    assert [value(full, text) for text in ("3 apples", "3 apples!", "")] == [1.0, 0.0, 0.0]
    assert [value(search, text) for text in ("3 apples", "apples", "")] == [1.0, 0.0, 0.0]
    assert value(regex_form(Regex(pattern="(?s)<a>.*</a>")), "<a>\n\n</a>") == 1.0


def test_a_pattern_that_explodes_is_stopped() -> None:
    explosive = regex_form(Regex(pattern=r"(a|aa)+b?", timeout=0.2))
    begun = time.perf_counter()
    scored = score(explosive, "a" * 100 + "!")
    assert (scored.value, scored.error) == (None, "the pattern took longer than 0.2 s")
    assert time.perf_counter() - begun < 5.0
    assert value(explosive, "aab") == 1.0 and value(explosive, "ba") == 0.0


def test_what_is_no_pattern() -> None:
    with pytest.raises(ConfigError, match=r"reward\.pattern: is no regular expression"):
        regex_form(Regex(pattern="(a"))


GOOD = "<think>2+3</think>\n<answer>5</answer>"


@pytest.mark.parametrize(
    ("text", "strict", "loose"),
    [
        (GOOD, True, True),
        (f"  {GOOD}\n", True, True),
        (f"Well: {GOOD}", False, True),
        (f"{GOOD} That is it.", False, True),
        ("<think>2+3</think> so <answer>5</answer>", False, True),
        ("<think>a < b</think><answer>x</answer>", True, True),
        ("<answer>5</answer><think>2+3</think>", False, False),
        ("<think>2+3<answer>5</answer></think>", False, False),
        ("<think>2+3</think><answer>5", False, False),
        ("<think>2+3<answer>5</answer>", False, False),
        ("<think><think>2</think></think><answer>5</answer>", False, False),
        (f"{GOOD}<answer>6</answer>", False, False),
        ("<think>write <answer>5</answer>?</think><answer>6</answer>", False, False),
        ("<think> \n</think><answer>5</answer>", False, False),
        ("<think>2+3</think><answer></answer>", False, False),
        ("</think>2+3<think></answer>5<answer>", False, False),
        ("<THINK>2+3</THINK><ANSWER>5</ANSWER>", False, False),
        ("5", False, False),
        ("", False, False),
    ],
)
def test_tags(text: str, strict: bool, loose: bool) -> None:
    assert has_blocks(text, ("think", "answer"), strict=True) is strict
    assert has_blocks(text, ("think", "answer"), strict=False) is loose
    assert value(tagged(Tags()), text) == float(strict)


def test_a_block_that_the_prompt_has_opened() -> None:
    opened = tagged(Tags(opened=True))
    assert value(opened, "2+3</think><answer>5</answer>") == 1.0
    assert value(opened, GOOD) == 0.0, "twice opened"


def test_huge_texts_take_no_endless_time() -> None:
    begun = time.perf_counter()
    for text in ("<think>" * 200_000, "<" * 1_000_000, GOOD * 50_000):
        assert value(tagged(Tags()), text) == 0.0
    assert time.perf_counter() - begun < 5.0


SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "pattern": "^(a|a)*$"}, "age": {"type": "integer", "minimum": 0}},
    "required": ["name"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def json_reward() -> JsonReward:
    pytest.importorskip("jsonschema", reason="the extra `json` is not installed")
    return JsonReward(JsonSchema(definition=SCHEMA))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"name": "aa", "age": 3}', 1.0),
        ('```json\n{"name": "a"}\n```', 1.0),
        ('```\n{"name": "a"}```', 1.0),
        ('Here: ```json\n{"name": "a"}\n```', 0.0),
        ('{"name": "a", "age": -1}', 0.0),
        ('{"name": "a", "age": 1.5}', 0.0),
        ('{"name": "a", "age": NaN}', 0.0),
        ('{"age": 3}', 0.0),
        ('{"name": "a", "more": 1}', 0.0),
        ("{'name': 'a'}", 0.0),
        ('{"name": "a"} and that is it', 0.0),
        ("[" * 100_000, 0.0),
        ("9" * 10_000, 0.0),
        ("", 0.0),
    ],
)
def test_json(json_reward: JsonReward, text: str, expected: float) -> None:
    assert value(json_reward, text) == expected


def test_a_schema_whose_pattern_explodes_is_stopped() -> None:
    pytest.importorskip("jsonschema", reason="the extra `json` is not installed")
    reward = JsonReward(JsonSchema(definition=SCHEMA, timeout=0.5))
    begun = time.perf_counter()
    assert score(reward, json.dumps({"name": "a" * 60 + "b"})).error == "the schema took longer than 0.5 s"
    assert time.perf_counter() - begun < 10.0
    assert value(reward, '{"name": "a"}') == 1.0


def test_a_schema_in_a_file(tmp_path: Path) -> None:
    pytest.importorskip("jsonschema", reason="the extra `json` is not installed")
    file = tmp_path / "schema.json"
    file.write_text('{"type": "array"}')
    bare = JsonReward(JsonSchema(path=str(file), fenced=False))
    assert value(bare, "[1]") == 1.0 and value(bare, "```json\n[1]\n```") == 0.0
    file.write_text("{")
    with pytest.raises(ConfigError, match=r"reward\.path: the schema cannot be read"):
        JsonReward(JsonSchema(path=str(file)))
    with pytest.raises(ConfigError, match=r"reward\.definition: cannot be used; .* ValueError: \$\.type"):
        JsonReward(JsonSchema(definition={"type": "thing"}))


def test_a_schema_fetches_nothing() -> None:
    pytest.importorskip("jsonschema", reason="the extra `json` is not installed")
    with pytest.raises(ConfigError, match="Unresolvable"):
        JsonReward(JsonSchema(definition={"$ref": "http://127.0.0.1:9/schema.json"}))


def test_fences() -> None:
    assert unfenced(" ```json\n1\n``` ") == "1\n"
    for text in ("```python\n1\n```", "```json\n1\n``` ```", "1", "``````"):
        assert unfenced(text) == text
