"""Rendering: the ids before a trained turn are what an engine is given, the trained ids what it would have to write."""

from __future__ import annotations

import importlib.util
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from whet.config.objective import Margin
from whet.data.ledger import Ledger
from whet.data.render import (
    OVERLONG,
    PROMPT_OVERLONG,
    SAME_AFTER_CUT,
    Rendered,
    RenderedGroup,
    Renderer,
    fit,
    render_records,
)  # fmt: skip
from whet.errors import DataError, ModelError
from whet.schema.records import Conversation, Message, Origin, Part, Preference, Prompt, Ranking, Rating, Scored

_spec = importlib.util.spec_from_file_location("data_templates", Path(__file__).with_name("templates.py"))
assert _spec and _spec.loader
T = importlib.util.module_from_spec(_spec)
sys.modules["data_templates"] = T
_spec.loader.exec_module(T)

FAMILIES = {
    "chatml": (T.CHATML, "<|im_end|>"),
    "thinking": (T.THINKING, "<|im_end|>"),
    "headers": (T.HEADERS, "<|eot_id|>"),
    "model_role": (T.MODEL_ROLE, "<end_of_turn>"),
    "inst": (T.INST, "</s>"),
    "plain_marks": (T.PLAIN_MARKS, "</s>"),
    "deaf": (T.DEAF, "<|im_end|>"),
}
TWO_TURNS = (
    Message("user", "Capital of France?"), Message("assistant", "Paris."),
    Message("user", "And of Italy?"), Message("assistant", "Rome."),
)  # fmt: skip

WORDS = st.text(st.characters(codec="utf-8", exclude_characters="<>[]|"), min_size=1).filter(str.strip)


def renderer(template: str | dict[str, str] | None) -> Renderer:
    return Renderer(T.byte_level(template))


def trained(row: Rendered, by: Renderer) -> list[str]:
    """The texts of the runs of trained tokens, special tokens included."""
    runs: list[list[int]] = []
    for index, (token, weight) in enumerate(zip(row.ids, row.weights, strict=True)):
        if weight:
            if index == 0 or not row.weights[index - 1]:
                runs.append([])
            runs[-1].append(token)
    return [by.template.tokenizer.decode(run) for run in runs]


def assert_exact(by: Renderer, record: Conversation) -> None:
    """Every assistant turn is trained exactly once, behind the ids an engine would see."""
    rows = by.conversations(record)
    turns = [index for index, message in enumerate(record.messages) if message.role == "assistant"]
    found = []
    for row in rows:
        assert len(row.ids) == len(row.weights)
        starts = [i for i, weight in enumerate(row.weights) if weight and (i == 0 or not row.weights[i - 1])]
        for start in starts:
            matching = [turn for turn in turns if by.prompt(record.messages[:turn], record.tools) == row.ids[:start]]
            assert len(matching) == 1
            found += matching
            end = next((i for i in range(start, len(row.ids)) if not row.weights[i]), len(row.ids))
            assert row.ids[end - 1] == by.end_id
            words = by.template.tokenizer.decode(row.ids[start : end - 1])
            assert words.strip().endswith(record.messages[matching[0]].text.strip())
    assert found == turns
    assert [row.last for row in rows] == [False] * (len(rows) - 1) + [True]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_turn_is_trained_once_behind_its_exact_prompt(family: str) -> None:
    template, end = FAMILIES[family]
    by = renderer(template)
    assert by.template.tokenizer.convert_ids_to_tokens(by.end_id) == end
    assert_exact(by, Conversation(messages=TWO_TURNS))
    assert_exact(by, Conversation(messages=(Message("system", "Be brief."), *TWO_TURNS)))


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=25, deadline=None, derandomize=True)
@given(texts=st.lists(WORDS, min_size=4, max_size=4))
def test_exact_for_any_text(family: str, texts: list[str]) -> None:
    by = _cached(family)
    roles = ("user", "assistant", "user", "assistant")
    assert_exact(by, Conversation(messages=tuple(Message(role, text) for role, text in zip(roles, texts, strict=True))))  # type: ignore[arg-type]


_RENDERERS: dict[str, Renderer] = {}


def _cached(family: str) -> Renderer:
    if family not in _RENDERERS:
        _RENDERERS[family] = renderer(FAMILIES[family][0])
    return _RENDERERS[family]


def test_the_whole_of_a_chatml_row() -> None:
    by = renderer(T.CHATML)
    row = by.conversation(Conversation(messages=TWO_TURNS))
    assert by.template.tokenizer.decode(row.ids) == (
        "<|im_start|>system\nBe helpful.<|im_end|>\n<|im_start|>user\nCapital of France?<|im_end|>\n"
        "<|im_start|>assistant\nParis.<|im_end|>\n<|im_start|>user\nAnd of Italy?<|im_end|>\n"
        "<|im_start|>assistant\nRome.<|im_end|>"
    )
    assert trained(row, by) == ["Paris.<|im_end|>", "Rome.<|im_end|>"]
    assert set(row.weights) == {0.0, 1.0}


def test_a_template_that_rewrites_earlier_turns_gives_a_row_for_each() -> None:
    by = renderer(T.THINKING)
    first = replace(TWO_TURNS[1], content="<think>\nEurope.\n</think>\n\nParis.")
    rows = by.conversations(Conversation(messages=(TWO_TURNS[0], first, *TWO_TURNS[2:])))
    assert [trained(row, by) for row in rows] == [
        ["<think>\nEurope.\n</think>\n\nParis.<|im_end|>"],
        ["<think>\n\n</think>\n\nRome.<|im_end|>"],
    ]
    assert "Europe" not in by.template.tokenizer.decode(rows[1].ids)
    assert by.conversation(Conversation(messages=(TWO_TURNS[0], first, *TWO_TURNS[2:]))).ids == rows[1].ids


def test_a_token_across_the_boundary_is_split_as_an_engine_would() -> None:
    by = renderer(T.PLAIN_MARKS)
    record = Conversation(messages=(Message("user", "Go"), Message("assistant", "\n\nParis")))
    row = by.conversation(record)
    prompt = by.prompt(record.messages[:1])
    whole = by.template.ids(by.template.text(record.messages, (), ask=False))
    assert tuple(whole[: len(prompt)]) != prompt, "the tokenizer must merge here, or this tests nothing"
    assert row.ids[: len(prompt)] == prompt
    assert trained(row, by) == ["\n\nParis</s>"]


def test_words_with_spaces_of_their_own() -> None:
    by = Renderer(T.word_pieces(T.INST))
    record = Conversation(messages=(Message("user", "What is it?"), Message("assistant", "Rome and Paris")))
    assert_exact(by, record)
    assert trained(by.conversation(record), by) == ["Rome and Paris</s>"]


@pytest.mark.parametrize("template", [T.MODEL_ROLE, T.DEAF])
def test_a_system_text_the_template_does_not_take_begins_the_first_question(template: str) -> None:
    by = renderer(template)
    assert not by.template.knows_system
    prompt = by.prompt((Message("system", "Be brief."), Message("user", "Capital of France?")))
    assert "user\nBe brief.\n\nCapital of France?" in by.template.tokenizer.decode(prompt)


def test_default_system_is_for_rows_without_one() -> None:
    by = Renderer(T.byte_level(T.CHATML), system="Short.")
    decode = by.template.tokenizer.decode
    assert decode(by.prompt(TWO_TURNS[:1])).startswith("<|im_start|>system\nShort.<|im_end|>")
    assert "Short." not in decode(by.prompt((Message("system", "Long."), TWO_TURNS[0])))


def test_weights_of_messages() -> None:
    by = renderer(T.CHATML)
    messages = (TWO_TURNS[0], replace(TWO_TURNS[1], weight=0.0), TWO_TURNS[2], replace(TWO_TURNS[3], weight=0.5))
    row = by.conversation(Conversation(messages=messages))
    assert trained(row, by) == ["Rome.<|im_end|>"]
    assert set(row.weights) == {0.0, 0.5}
    with pytest.raises(DataError, match="no assistant turn"):
        by.conversation(Conversation(messages=tuple(replace(message, weight=0.0) for message in messages)))


def test_turns_after_the_last_answer_are_left_out() -> None:
    by = renderer(T.CHATML)
    longer = Conversation(messages=(*TWO_TURNS, Message("user", "Thanks")))
    assert by.conversation(longer).ids == by.conversation(Conversation(messages=TWO_TURNS)).ids


def test_tools_and_calls() -> None:
    by = renderer(T.CHATML)
    tool = {"type": "function", "function": {"name": "add", "parameters": {}}}
    call = Message("assistant", "", tool_calls=({"name": "add", "arguments": {"a": 2}},))
    record = Conversation(
        messages=(Message("user", "2+3?"), call, Message("tool", "5"), Message("assistant", "Five.")), tools=(tool,)
    )
    row = by.conversation(record)
    assert '"name": "add", "parameters"' in by.template.tokenizer.decode(row.ids)
    assert trained(row, by) == [
        '<tool_call>{"name": "add", "arguments": {"a": 2}}</tool_call><|im_end|>', "Five.<|im_end|>"
    ]  # fmt: skip
    assert_exact(by, replace(record, messages=(record.messages[0], *record.messages[1:])))


def test_of_several_templates_tools_have_their_own() -> None:
    """As a dict, which is how transformers holds those of Hermes and Command R."""
    plain, calling = T.CHATML.replace("tools", "none"), T.CHATML
    tool = {"type": "function", "function": {"name": "add", "parameters": {}}}
    by = renderer({"default": plain, "tool_use": calling})
    assert by.prompt(TWO_TURNS[:1]) == renderer(plain).prompt(TWO_TURNS[:1])
    assert by.prompt(TWO_TURNS[:1], (tool,)) == renderer(calling).prompt(TWO_TURNS[:1], (tool,))
    assert len({by.fingerprint, renderer({"default": plain}).fingerprint, renderer(calling).fingerprint}) == 3
    assert renderer({"default": plain}).fingerprint == renderer(plain).fingerprint
    with pytest.raises(ModelError, match="no chat template"):
        renderer({"rag": plain})


def test_preference_shares_its_prompt() -> None:
    by = renderer(T.HEADERS)
    record = Preference(prompt=TWO_TURNS[:3], chosen=TWO_TURNS[3:], rejected=(Message("assistant", "Milan."),))
    pair = by.group(record)
    decode = by.template.tokenizer.decode
    assert pair.prompt_ids == by.prompt(TWO_TURNS[:3])
    assert [decode(ids) for ids in pair.response_ids] == ["Rome.<|eot_id|>", "Milan.<|eot_id|>"]
    assert pair.num_tokens == len(pair.prompt_ids) + sum(len(ids) for ids in pair.response_ids)
    with pytest.raises(DataError, match="has 2 turns"):
        by.group(replace(record, chosen=(TWO_TURNS[3], TWO_TURNS[3])))


@pytest.mark.parametrize(
    ("template", "words"),
    [
        (None, "no chat template"),
        (T.NO_END, "without a special token"),
        ("{{ bos_token }}", "leaves out what the assistant says"),
        ("{{ raise_exception('no') }}", "cannot write a question"),
    ],
)
def test_templates_that_cannot_be_trained_on(template: str | None, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        renderer(template)


def test_a_prompt_that_the_answered_turn_does_not_continue() -> None:
    by = renderer(T.OPENED_THOUGHT)
    with pytest.raises(ModelError, match="does not begin with its prompt") as caught:
        by.conversation(Conversation(messages=TWO_TURNS[:2], origin=Origin(file="a.jsonl", line=7)))
    assert "a.jsonl:7" in str(caught.value) and "<think>" in str(caught.value)


def test_turns_the_template_refuses() -> None:
    record = Conversation(messages=(TWO_TURNS[0], *TWO_TURNS), origin=Origin(file="a.jsonl", line=3))
    with pytest.raises(DataError, match=r"a\.jsonl:3: .*Roles must alternate"):
        renderer(T.MODEL_ROLE).conversation(record)


ADD = ({"type": "function", "function": {"name": "add", "parameters": {}}},)
CALL = Message("assistant", "", tool_calls=({"name": "add", "arguments": {"a": 2}},))
WITH_TOOLS = (TWO_TURNS[0], CALL, Message("tool", "5"), TWO_TURNS[1])
RULES = Message("system", "Be brief.")


@pytest.mark.parametrize(("messages", "tools", "complaint"), [
    (TWO_TURNS, ADD, "tools: the chat template leaves out which tools there are"),
    (WITH_TOOLS[:2], (), "messages[1].tool_calls: the chat template leaves out the calls of tools"),
    ((*TWO_TURNS[:2], *WITH_TOOLS[2:]), (), "messages[2]: the chat template leaves out the turns of tools"),
    ((RULES, RULES, *TWO_TURNS), (), "messages[1]: the chat template leaves out one of two system turns"),
    ((RULES, *TWO_TURNS[:2], RULES, *TWO_TURNS[2:]), (), "messages[3]: the chat template leaves out one of two"),
    ((*TWO_TURNS[:2], RULES, *TWO_TURNS[2:]), (), "messages[2]: the chat template leaves out a system turn after the"),
])  # fmt: skip
def test_what_the_template_leaves_out_is_refused(
    messages: tuple[Message, ...], tools: tuple[dict[str, Any], ...], complaint: str
) -> None:
    record = Conversation(messages=messages, tools=tools, origin=Origin(file="a.jsonl", line=7))
    with pytest.raises(DataError) as caught:
        renderer(T.NO_TOOLS).conversation(record)
    assert str(caught.value).startswith(f"a.jsonl:7: {complaint}")
    assert len(renderer(T.CHATML).conversations(record)) == 1


def test_a_template_that_keeps_the_last_system_turn_alone() -> None:
    by = renderer(T.LAST_SYSTEM)
    assert by.conversation(Conversation(messages=(*TWO_TURNS[:2], RULES, *TWO_TURNS[2:])))
    for messages in ((RULES, RULES, *TWO_TURNS), (RULES, *TWO_TURNS[:2], RULES, *TWO_TURNS[2:])):
        with pytest.raises(DataError, match="leaves out one of two system turns"):
            by.conversation(Conversation(messages=messages))


def test_a_template_with_wishes_can_still_write_tools() -> None:
    by = renderer(T.STRICT_TOOLS)
    assert_exact(by, Conversation(messages=WITH_TOOLS, tools=ADD))
    with pytest.raises(DataError, match=r"refuses these turns .*system turns come first"):
        by.conversation(Conversation(messages=(*TWO_TURNS[:2], RULES, *TWO_TURNS[2:])))


def test_tools_nested_too_deep_are_one_line() -> None:
    deep: dict[str, Any] = {}
    for _ in range(3000):
        deep = {"a": deep}
    tools = ({"type": "function", "function": {"name": "add", "parameters": deep}},)
    with pytest.raises(DataError, match="the chat template refuses these turns"):
        renderer(T.CHATML).conversation(Conversation(messages=TWO_TURNS, tools=tools))


def test_pictures_are_refused_by_name() -> None:
    record = Conversation(messages=(Message("user", (Part("image", "a.png"),)), TWO_TURNS[1]))
    with pytest.raises(DataError, match="holds pictures"):
        renderer(T.CHATML).conversation(record)


def test_fingerprint_follows_what_changes_the_ids() -> None:
    one = renderer(T.CHATML).fingerprint
    assert one == renderer(T.CHATML).fingerprint
    fewer = T.byte_level(T.CHATML, vocab_size=290)
    others = [renderer(T.HEADERS), Renderer(T.byte_level(T.CHATML), system="x"), Renderer(fewer)]
    others.append(Renderer(T.byte_level(T.CHATML), margin="scores"))
    assert one not in [other.fingerprint for other in others]
    used = T.byte_level(T.CHATML)
    used(["a", "b c"], padding=True, truncation=True, max_length=4)  # leaves its mark in the tokenizer's state
    assert Renderer(used).fingerprint == one


def row(num_prompt: int, num_response: int, line: int = 1, last: bool = True) -> Rendered:
    weights = (0.0,) * num_prompt + (1.0,) * num_response
    return Rendered(ids=tuple(range(len(weights))), weights=weights, origin=Origin(file="a", line=line), last=last)


def test_fit_truncates_the_end_of_the_response() -> None:
    ledger = Ledger(kept=3)
    rows = fit([row(3, 2), row(3, 5), row(9, 2, line=4)], 6, "truncate", ledger)
    assert [each.ids for each in rows] == [tuple(range(5)), tuple(range(6))]
    assert (ledger.read, ledger.kept, len(ledger.truncated)) == (3, 2, 1)
    assert {why: list(rows) for why, rows in ledger.dropped.items()} == {PROMPT_OVERLONG: [Origin(file="a", line=4)]}


def test_fit_cuts_behind_the_last_trained_token() -> None:
    weights = (0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
    (cut,) = fit([Rendered(ids=tuple(range(7)), weights=weights)], 5, "truncate", Ledger(kept=1))
    assert cut.ids == (0, 1, 2)


def test_fit_drops_or_stops() -> None:
    ledger = Ledger(kept=2)
    assert len(fit([row(3, 2), row(3, 5)], 6, "drop", ledger)) == 1
    assert list(ledger.dropped) == [OVERLONG] and ledger.read == 2
    with pytest.raises(DataError, match=r"a:1: 8 tokens, and data\.max_length is 6"):
        fit([row(3, 5)], 6, "error", Ledger(kept=1))


def test_fit_counts_a_record_of_several_rows_once() -> None:
    ledger = Ledger(kept=2)
    given_rows = [row(1, 2, last=False), row(5, 5), row(7, 1, line=2, last=False), row(8, 1, line=2)]
    rows = fit(given_rows, 6, "truncate", ledger)
    assert len(rows) == 2
    assert (ledger.read, ledger.kept, len(ledger.truncated), ledger.num_dropped) == (2, 1, 1, 1)


def group(prompt: tuple[int, ...], *responses: tuple[int, ...], values: tuple[float, ...] = ()) -> RenderedGroup:
    return RenderedGroup(prompt_ids=prompt, response_ids=responses, values=values)


def test_fit_pairs() -> None:
    ledger = Ledger(kept=3)
    pair = group((1, 2, 3), (4, 5, 6, 7), (4, 9))
    same = group((1, 2, 3), (4, 5, 6, 7), (4, 5, 6, 8))
    full = group((1,) * 6, (4,), (5,))
    rows = fit([pair, same, full], 6, "truncate", ledger)
    assert [each.response_ids for each in rows] == [((4, 5, 6), (4, 9))]
    assert {reason: len(lines) for reason, lines in ledger.dropped.items()} == {SAME_AFTER_CUT: 1, PROMPT_OVERLONG: 1}


def test_fit_groups_of_other_sizes() -> None:
    ledger = Ledger(kept=4)
    one = group((1, 2, 3), (4, 5, 6, 7), values=(1.0,))
    some = group((1, 2, 3), (4, 5, 6, 7), (4, 5, 6, 8), (9,), values=(1.0, 2.0, 3.0))
    same = group((1, 2, 3), *[(4, 5, 6, last) for last in (7, 8, 9)], values=(0.5, 0.25, 0.25))
    short = group((1, 2, 3), (4,), (4,), values=(1.0, 2.0))  # equal as they came: the data's own doing
    rows = fit([one, some, same, short], 6, "truncate", ledger)
    assert [each.response_ids for each in rows] == [((4, 5, 6),), ((4, 5, 6), (4, 5, 6), (9,)), ((4,), (4,))]
    assert [each.values for each in rows] == [(1.0,), (1.0, 2.0, 3.0), (1.0, 2.0)]
    assert (ledger.read, ledger.kept, len(ledger.truncated)) == (4, 3, 2)
    assert list(ledger.dropped) == [SAME_AFTER_CUT]


PROMPT = (Message("user", "Capital of Italy?"),)
ROME, MILAN = (Message("assistant", "Rome."),), (Message("assistant", "Milan."),)


@pytest.mark.parametrize(
    ("record", "answers", "values"),
    [
        (Preference(prompt=PROMPT, chosen=ROME, rejected=MILAN), ["Rome.", "Milan."], ()),
        (Preference(prompt=PROMPT, chosen=ROME, rejected=MILAN, margin=-2), ["Rome.", "Milan."], ()),
        (Rating(prompt=PROMPT, response=ROME, label=True), ["Rome."], (1.0,)),
        (Rating(prompt=PROMPT, response=MILAN, label=False), ["Milan."], (0.0,)),
        (Ranking(prompt=PROMPT, responses=("Milan.", "Rome."), ranks=(2.0, 1.0)), ["Milan.", "Rome."], (2.0, 1.0)),
        (
            Scored(prompt=PROMPT, responses=("Rome.", "Milan.", "Pisa."), values=(0.5, 0.3, 0.2), kind="weight"),
            ["Rome.", "Milan.", "Pisa."], (0.5, 0.3, 0.2),
        ),
        (Scored(prompt=PROMPT, responses=("Rome.",), values=(-1.5,), kind="reward"), ["Rome."], (-1.5,)),
    ],
)  # fmt: skip
def test_groups_of_every_kind(
    record: Preference | Rating | Ranking | Scored, answers: list[str], values: tuple[float, ...]
) -> None:
    by = renderer(T.CHATML)
    group = by.group(replace(record, origin=Origin(file="a", line=4)))
    decode = by.template.tokenizer.decode
    assert [decode(ids) for ids in group.response_ids] == [f"{words}<|im_end|>" for words in answers]
    assert (group.prompt_ids, group.values, group.origin.line) == (by.prompt(PROMPT), values, 4)
    assert list(render_records(by, [record], "error", Ledger(kept=1))) == [by.group(record)]


@pytest.mark.parametrize(
    ("says", "column", "scores"),
    [
        ({}, (), ()),
        ({"margin": 2}, (2.0, 0.0), (2.0, 0.0)),
        ({"chosen_score": 4.5, "rejected_score": 1.0}, (), (3.5, 0.0)),
        ({"chosen_score": 4.5, "rejected_score": 1.0, "margin": 0.0}, (0.0, 0.0), (0.0, 0.0)),
        ({"chosen_score": 1.0, "rejected_score": 4.5, "margin": 1.0}, (1.0, 0.0), (1.0, 0.0)),
        ({"chosen_score": 4.5}, (), ()),
        ({"chosen_score": 1.0, "rejected_score": 4.5}, (), None),
        ({"margin": -2}, None, None),
    ],
)
def test_where_a_margin_comes_from(
    says: dict[str, float], column: tuple[float, ...] | None, scores: tuple[float, ...] | None
) -> None:
    """None: the row is refused, and under on_bad_row=drop it goes into the ledger."""
    record = Preference(prompt=PROMPT, chosen=ROME, rejected=MILAN, origin=Origin(file="a.jsonl", line=4), **says)
    modes: tuple[tuple[Margin, tuple[float, ...] | None], ...] = (("none", ()), ("column", column), ("scores", scores))
    for margin, expected in modes:
        by, ledger = Renderer(T.byte_level(T.CHATML), margin=margin), Ledger(kept=1)
        if expected is not None:
            assert by.group(record).values == expected, margin
            continue
        field, found = ("margin", "-2") if "margin" in says else ("chosen_score", "1 against 4.5")
        said = f"a.jsonl:4: {field}: calls the rejected answer the better one (found {found}); swap the answers"
        with pytest.raises(DataError, match=f"^{re.escape(said)}"):
            list(render_records(by, [record], "error", ledger))
        assert list(render_records(by, [record], "drop", ledger)) == []
        assert ledger.describe() == "1 read, 0 kept, 1 dropped (1 calls the rejected answer the better one)"


def test_a_prompt_is_not_rendered_for_training() -> None:
    with pytest.raises(TypeError, match="a prompt"):
        list(render_records(renderer(T.CHATML), [Prompt(messages=PROMPT)], "error", Ledger(kept=1)))


def test_rows_the_template_refuses_stop_or_are_dropped() -> None:
    by, ledger = renderer(T.MODEL_ROLE), Ledger(kept=2)
    twice = Conversation(messages=(TWO_TURNS[0], *TWO_TURNS), origin=Origin(file="a", line=9))
    records = [Conversation(messages=TWO_TURNS), twice]
    assert len(list(render_records(by, records, "drop", ledger))) == 1
    assert (ledger.read, ledger.kept) == (2, 1)
    (reason, rows), = ledger.dropped.items()
    assert (reason, list(rows)) == ("the chat template refuses these turns", [Origin(file="a", line=9)])
    with pytest.raises(DataError, match=r"a:9: .*Roles must alternate"):
        list(render_records(by, records, "error", Ledger(kept=2)))
