# ruff: noqa: E501  rows are easier to read on one line
"""Every format by a row written by hand, read as the kind it is and as the kinds it can become."""

from __future__ import annotations

from typing import Any

import pytest

from whet.config.data import Format
from whet.data.detect import detect, matches
from whet.data.formats import KIND, kind_for, read_row
from whet.data.kinds import reference_of
from whet.data.preferences import NothingToLearn
from whet.data.row import Row, Tags
from whet.errors import DataError
from whet.schema.records import (
    Conversation,
    Message,
    Origin,
    Part,
    Preference,
    Prompt,
    Ranking,
    Rating,
    Record,
    RecordKind,
    Scored,
)  # fmt: skip

AT = Origin(file="a.jsonl", line=7)
USER, ANSWER = Message("user", "2+3?"), Message("assistant", "5")


def read(values: dict[str, Any], want: RecordKind, format: Format | None = None) -> Record:
    (record,) = read_all(values, want, format)
    return record


def read_all(values: dict[str, Any], want: RecordKind, format: Format | None = None) -> list[Record]:
    row = Row(values, AT)
    format = format or detect([row])
    assert kind_for(format, (want,)) == want
    return list(read_row(row, format, want))


TEACHING: list[tuple[Format, dict[str, Any]]] = [
    ("alpaca", {"instruction": "2+3?", "input": "", "output": "5"}),
    ("sharegpt", {"conversations": [{"from": "human", "value": "2+3?"}, {"from": "gpt", "value": "5"}]}),
    ("messages", {"messages": [{"role": "user", "content": "2+3?"}, {"role": "assistant", "content": "5"}]}),
    ("messages", {"messages": '[{"role": "user", "content": "2+3?"}, {"role": "assistant", "content": "5"}]'}),
    ("prompt_completion", {"prompt": "2+3?", "completion": "5"}),
    ("prompt_completion", {"question": "2+3?", "answer": 5}),
    ("prompt_completion", {"query": "2+3?", "response": "5"}),
    ("prompt_completion", {"problem": "2+3?", "output": "5"}),
    ("prompt_completion", {"prompt": [{"role": "user", "content": "2+3?"}], "completion": {"role": "assistant", "content": "5"}}),
    ("self_instruct", {"instruction": "2+3?", "instances": [{"input": "", "output": "5"}]}),
    ("openorca", {"system_prompt": "", "question": "2+3?", "response": "5"}),
]  # fmt: skip


@pytest.mark.parametrize(("format", "values"), TEACHING)
def test_conversations(format: Format, values: dict[str, Any]) -> None:
    assert matches(Row(values, AT)) == [format]
    assert KIND[format] == "conversation"
    record = read(values, "conversation")
    assert isinstance(record, Conversation)
    assert (record.messages, record.origin) == ((USER, ANSWER), AT)
    prompt = read(values, "prompt")
    assert isinstance(prompt, Prompt)
    assert (prompt.messages, prompt.reference) == ((USER,), "5")


COMPARING: list[tuple[Format, dict[str, Any]]] = [
    ("preference", {"prompt": "2+3?", "chosen": "5", "rejected": "6"}),
    ("preference", {"question": "2+3?", "response_chosen": "5", "response_rejected": "6"}),
    ("preference", {"query": "2+3?", "answer": "5", "negative": "6"}),
    ("preference", {"problem": "2+3?", "chosen": {"role": "assistant", "content": "5"}, "rejected": [{"from": "gpt", "value": "6"}]}),
    ("preference", {"instruction": "2+3?", "input": "", "chosen": "5", "rejected": "6"}),
    ("preference", {"conversations": [{"from": "human", "value": "2+3?"}], "chosen": {"from": "gpt", "value": "5"}, "rejected": {"from": "gpt", "value": "6"}}),
    ("preference", {"messages": [{"role": "user", "content": "2+3?"}, {"role": "assistant", "content": "5"}], "rejected_response": "6"}),
    ("preference", {
        "chosen": [{"role": "user", "content": "2+3?"}, {"role": "assistant", "content": "5"}],
        "rejected": [{"role": "user", "content": "2+3?"}, {"role": "assistant", "content": "6"}],
    }),
    ("preference", {  # UltraFeedback, binarized
        "prompt": "2+3?", "prompt_id": "x", "messages": [{"role": "user", "content": "2+3?"}, {"role": "assistant", "content": "5"}],
        "chosen": [{"role": "user", "content": "2+3?"}, {"role": "assistant", "content": "5"}],
        "rejected": [{"role": "user", "content": "2+3?"}, {"role": "assistant", "content": "6"}],
        "score_chosen": 8.5, "score_rejected": 2,
    }),
    ("hh", {"chosen": "\n\nHuman: 2+3?\n\nAssistant: 5", "rejected": "\n\nHuman: 2+3?\n\nAssistant: 6"}),
    ("pku", {"prompt": "2+3?", "response_0": "6", "response_1": "5", "better_response_id": 1, "safer_response_id": 0}),
    ("pku", {"prompt": "2+3?", "response_0": "5", "response_1": "6", "safer_response_id": 0}),
    ("ultrafeedback", {"instruction": "2+3?", "completions": [
        {"response": "6", "overall_score": 2.0}, {"response": "5", "overall_score": 9}, {"response": "55", "overall_score": 4},
    ]}),
    ("ranking", {"prompt": "2+3?", "responses": ["6", "5"], "rankings": [2, 1]}),
    ("scored", {"prompt": "2+3?", "responses": ["6", "5"], "rewards": [0, 1]}),
]  # fmt: skip


@pytest.mark.parametrize(("format", "values"), COMPARING)
def test_preferences(format: Format, values: dict[str, Any]) -> None:
    assert matches(Row(values, AT)) == [format]
    record = read(values, "preference")
    assert isinstance(record, Preference)
    assert (record.prompt, record.chosen, record.rejected) == ((USER,), (ANSWER,), (Message("assistant", "6"),))
    prompt = read(values, "prompt")
    assert isinstance(prompt, Prompt)
    assert (prompt.messages, prompt.reference) == ((USER,), None)


def test_scores_of_a_preference() -> None:
    record = read({"prompt": "2+3?", "chosen": "5", "rejected": "6", "score_chosen": "8.5", "rejected_score": 2, "margin": 6.5}, "preference")
    assert isinstance(record, Preference)
    assert (record.chosen_score, record.rejected_score, record.margin) == (8.5, 2.0, 6.5)


def test_hh_keeps_the_turns_before() -> None:
    start = "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: 2+3?"
    record = read({"chosen": f"{start}\n\nAssistant: 5", "rejected": f"{start}\n\nAssistant: 6"}, "preference")
    assert isinstance(record, Preference)
    assert [message.role for message in record.prompt] == ["user", "assistant", "user"]
    assert record.chosen == (ANSWER,)


@pytest.mark.parametrize(
    "values",
    [
        {"messages": [{"role": "user", "content": "2+3?"}, {"role": "assistant", "content": "5"}], "label": True},
        {"prompt": "2+3?", "completion": "5", "label": "true"},
        {"instruction": "2+3?", "output": "5", "kto_tag": 1},
    ],
)
def test_ratings(values: dict[str, Any]) -> None:
    record = read(values, "rating")
    assert isinstance(record, Rating)
    assert (record.prompt, record.response, record.label) == ((USER,), (ANSWER,), True)


def test_a_ranking_gives_every_pair_that_differs() -> None:
    values = {"prompt": "2+3?", "responses": ["six", "5", "five"], "rankings": [2, 1, 1]}
    record = read(values, "ranking")
    assert isinstance(record, Ranking) and record.ranks == (2.0, 1.0, 1.0)
    pairs = [pair for pair in read_all(values, "preference") if isinstance(pair, Preference)]
    assert [(pair.chosen[0].text, pair.rejected[0].text) for pair in pairs] == [("5", "six"), ("five", "six")]
    with pytest.raises(NothingToLearn):
        read_all({**values, "rankings": [1, 1, 1]}, "preference")


def test_scored_and_weighted() -> None:
    one = read({"prompt": "2+3?", "response": "5", "reward": -1.5}, "scored")
    assert isinstance(one, Scored) and (one.responses, one.values, one.kind) == (("5",), (-1.5,), "reward")
    many = read({"prompt": "2+3?", "responses": ["5", "6"], "weights": [0.9, 0.1]}, "scored")
    assert isinstance(many, Scored) and (many.values, many.kind) == ((0.9, 0.1), "weight")
    assert kind_for("weighted", ("preference",)) is None
    with pytest.raises(DataError, match="not shares of one"):
        read({"prompt": "2+3?", "responses": ["5", "6"], "weights": [0.9, 0.9]}, "scored")


@pytest.mark.parametrize("values", [{"prompt": "2+3?", "reference": 5}, {"question": "2+3?", "solution": "5"}, {"problem": "2+3?", "ground_truth": "5"}])
def test_prompts_with_references(values: dict[str, Any]) -> None:
    record = read(values, "prompt")
    assert isinstance(record, Prompt)
    assert (record.messages, record.reference) == ((USER,), "5")


def test_prompts_in_the_form_of_verl() -> None:
    values = {"data_source": "gsm8k", "prompt": [{"role": "user", "content": "2+3?"}], "reward_model": {"style": "rule", "ground_truth": "5"}}
    record = read(values, "prompt")
    assert isinstance(record, Prompt)
    assert (record.messages, record.reference, record.columns["data_source"]) == ((USER,), "5", "gsm8k")
    for none in (float("nan"), float("inf"), None):
        asked = read(values | {"reward_model": {"style": "rule", "ground_truth": none}}, "prompt")
        assert isinstance(asked, Prompt) and asked.reference is None
    assert reference_of({"reference": float("nan"), "final": "5"}) == "5"


def test_gsm8k_as_prompt_has_the_number_alone() -> None:
    values = {"question": "2+3?", "answer": "2+3 = <<2+3=5>>5\n#### 1,005"}
    assert matches(Row(values, AT)) == ["gsm8k"]
    conversation, prompt = read(values, "conversation"), read(values, "prompt")
    assert isinstance(conversation, Conversation) and conversation.messages[1].text == values["answer"]
    assert isinstance(prompt, Prompt) and prompt.reference == "1005"
    assert prompt.answer == values["answer"], "rewards may read the working"


def test_alpaca_input_history_system_and_other_columns() -> None:
    values = {
        "instruction": "Add.", "input": "2 3", "output": "5", "history": [["Hi", "Hello"]], "system": "Be brief.", "id": 9
    }  # fmt: skip
    record = read(values, "conversation")
    assert isinstance(record, Conversation)
    assert [(message.role, message.text) for message in record.messages] == [
        ("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello"), ("user", "Add.\n2 3"), ("assistant", "5")
    ]  # fmt: skip
    assert record.columns == {"id": 9}


def test_a_cell_that_pandas_left_empty_is_none() -> None:
    values = {"instruction": "Say hi", "input": float("nan"), "output": "Hi", "system": float("nan"), "n": float("nan")}
    (record,) = read_row(Row(values, AT), "alpaca", "conversation")
    assert isinstance(record, Conversation)
    assert [message.text for message in record.messages] == ["Say hi", "Hi"] and record.columns == {"n": None}
    bare = Row({"prompt": "?", "completion": float("nan"), "reference": float("nan")}, AT)
    assert "completion" not in bare and matches(bare) == ["prompt"]
    (asked,) = read_row(bare, "prompt", "prompt")
    assert isinstance(asked, Prompt) and asked.reference is None


def test_tools() -> None:
    values = {
        "conversations": [
            {"from": "human", "value": "2+3?"},
            {"from": "function_call", "value": '{"name": "add", "arguments": {"a": 2, "b": 3}}'},
            {"from": "observation", "value": "5"},
            {"from": "gpt", "value": "5"},
        ],
        "tools": '[{"name": "add", "parameters": {}}]',
    }
    record = read(values, "conversation")
    assert isinstance(record, Conversation)
    call = ({"name": "add", "arguments": {"a": 2, "b": 3}},)
    assert record.messages == (USER, Message("assistant", "", tool_calls=call), Message("tool", "5"), ANSWER)
    assert record.tools == ({"type": "function", "function": {"name": "add", "parameters": {}}},)


def test_openai_calls_weights_and_reasoning() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "add", "arguments": '{"a": 2}'}}
    values = {
        "messages": [
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "2+"}, {"type": "text", "text": "3?"}]},
            {"role": "assistant", "content": None, "tool_calls": [call], "weight": 0},
            {"role": "tool", "content": "5"},
            {"role": "assistant", "content": "5", "reasoning_content": "easy"},
        ]
    }
    record = read(values, "conversation")
    assert isinstance(record, Conversation)
    assert record.messages[0] == Message("system", "Be brief.")
    assert record.messages[1] == USER
    assert record.messages[2] == Message("assistant", "", tool_calls=({"name": "add", "arguments": {"a": 2}},), weight=0.0)
    assert record.messages[4].text == "<think>\neasy\n</think>\n\n5"


def test_pictures_stand_where_their_marks_stood() -> None:
    turns = [{"role": "user", "content": "<image>Who?<image>"}, {"role": "assistant", "content": "5"}]
    record = read({"messages": turns, "images": ["a.png", "b.png"]}, "conversation")
    assert isinstance(record, Conversation)
    assert record.messages[0].content == (Part("image", "a.png"), Part("text", "Who?"), Part("image", "b.png"))
    assert read({"messages": turns}, "conversation").messages[0].content == "<image>Who?<image>"  # type: ignore[union-attr]
    assert isinstance(read({"messages": turns[1:] and [{"role": "user", "content": "<image>"}, turns[1]], "images": "a.png"}, "conversation"), Conversation)
    for images in ([], ["a.png"], ["a.png", "b.png", "c.png"]):
        with pytest.raises(DataError, match=rf"a\.jsonl:7: images: {len(images)} images for 2 <image> marks"):
            read({"messages": turns, "images": images}, "conversation")


def test_tags_of_a_registry() -> None:
    tags = Tags(role="wer", content="was", roles={"mensch": "user", "maschine": "assistant"})
    row = Row({"conversations": [{"wer": "mensch", "was": "2+3?"}, {"wer": "maschine", "was": "5"}]}, AT, tags)
    (record,) = read_row(row, "sharegpt", "conversation")
    assert isinstance(record, Conversation) and record.messages == (USER, ANSWER)


BAD: list[tuple[Format, dict[str, Any], str]] = [
    ("alpaca", {"instruction": "2+3?", "output": None}, "output: is null"),
    ("alpaca", {"instruction": "2+3?"}, "output: is missing (found fields instruction)"),
    ("alpaca", {"instruction": "2+3?", "output": "  "}, "output: is empty"),
    ("alpaca", {"instruction": "2+3?", "output": ["5"]}, "output: is a list, not text"),
    ("alpaca", {"instruction": "2+3?", "output": True}, "output: is true or false, not text"),
    ("alpaca", {"instruction": "2+3?", "output": "5", "history": [["a"]]}, "history[0]: is a list, not a [question, answer] pair"),
    ("messages", {"messages": []}, "messages: is an empty list"),
    ("messages", {"messages": "hello"}, "messages: is a text, not a list"),
    ("messages", {"messages": [{"role": "usr", "content": "x"}]}, "messages[0].role: unknown role (found 'usr'); did you mean 'user'?"),
    ("messages", {"messages": [{"content": "x"}]}, "messages[0].from: a turn without its role"),
    ("messages", {"messages": ["x"]}, "messages[0]: is a text, not an object with role and content"),
    ("messages", {"messages": [{"role": "user", "content": ""}]}, "messages[0].content: is empty"),
    ("messages", {"messages": [{"role": "user", "content": None}]}, "messages[0].content: is null"),
    ("messages", {"messages": [{"role": "user", "content": "hi"}]}, "messages: no assistant turn to learn from"),
    ("sharegpt", {"conversations": [{"from": "gpt", "value": "Hello"}, {"from": "human", "value": "x"}, {"from": "gpt", "value": "y"}]},
     "messages[0]: begins with an answer to nothing (found 'Hello')"),
    ("messages", {"messages": [{"role": "user", "content": "x"}], "videos": ["a.mp4"]}, "videos: is not supported"),
    ("sharegpt", {"conversations": [{"from": "function_call", "value": "add(2)"}]}, "conversations[0].value: is not a call"),
    ("sharegpt", {"conversations": [{"from": "function_call", "value": "{broken"}]}, "conversations[0].value: is broken JSON"),
    ("self_instruct", {"instruction": "x", "instances": [{"input": "", "output": ""}]}, "instances[0].output: is empty"),
    ("gsm8k", {"question": "x", "answer": "5"}, "answer: has no '#### ANSWER' line"),
    ("preference", {"prompt": "x", "chosen": "5", "rejected": None}, "rejected: is null"),
    ("preference", {"prompt": "x", "chosen": "", "rejected": "5"}, "chosen: is empty"),
    ("preference", {"chosen": "5", "rejected": "6"}, "prompt: is missing"),
    ("preference", {"prompt": "x", "chosen": [{"role": "user", "content": "y"}, {"role": "assistant", "content": "5"}], "rejected": "6"},
     "chosen: begins with another prompt than the row's"),
    ("hh", {"chosen": "\n\nHuman: x\n\nAssistant: a\n\nHuman: y\n\nAssistant: b", "rejected": "\n\nHuman: x\n\nAssistant: c"},
     "chosen: has 3 turns after the common prompt"),
    ("hh", {"chosen": "\n\nHuman: x\n\nAssistant:", "rejected": "\n\nHuman: x\n\nAssistant: c"}, "chosen: is empty"),
    ("hh", {"chosen": "Human: x", "rejected": "\n\nHuman: x\n\nAssistant: c"}, "chosen: is no transcript"),
    ("pku", {"prompt": "x", "response_0": "5", "response_1": "6", "better_response_id": 2}, "better_response_id: is neither 0 nor 1"),
    ("kto", {"prompt": "x", "completion": "5", "label": "good"}, "label: is not true or false (found 'good')"),
    ("kto", {"messages": [{"role": "user", "content": "x"}], "label": True}, "messages: does not end with the answer"),
    ("ranking", {"prompt": "x", "responses": ["5", "6"], "rankings": [1]}, "rankings: 1 numbers for 2 responses"),
    ("scored", {"prompt": "x", "response": "5", "reward": "high"}, "reward: is not a number (found 'high')"),
    ("scored", {"prompt": "x", "response": "5", "reward": float("nan")}, "reward: is null (found NaN)"),
    ("prompt_completion", {"prompt": "x", "completion": float("nan")}, "completion: is null (found NaN)"),
    ("alpaca", {"instruction": float("inf"), "output": "x"}, "instruction: is null (found Infinity)"),
    ("alpaca", {"instruction": "x", "output": "y", "history": [["a", float("nan")]]}, "history[0]: is not a finite number (found NaN)"),
    ("messages", {"messages": [{"role": "user", "content": float("nan")}, {"role": "assistant", "content": "y"}]}, "messages[0].content: is a number, not text (found NaN)"),
    ("prompt", {"prompt": ""}, "prompt: is empty"),
    ("prompt", {"prompt": [{"role": "system", "content": "x"}]}, "prompt: has no user turn"),
    ("prompt_completion", {"question": "x", "query": "y", "answer": "5"}, "prompt: two columns could be it: question, query"),
]  # fmt: skip


@pytest.mark.parametrize(("format", "values", "complaint"), BAD)
def test_bad_rows_are_named(format: Format, values: dict[str, Any], complaint: str) -> None:
    with pytest.raises(DataError) as caught:
        read_row(Row(values, AT), format, KIND[format])
    assert f"a.jsonl:7: {complaint}" in str(caught.value)
    assert "\n" not in str(caught.value)


DEEP = "[" * 3000
UNREADABLE: list[tuple[Format, dict[str, Any], str]] = [
    ("alpaca", {"instruction": "x", "output": "y", "history": 5}, "history: is a number, not a list of pairs (found 5)"),
    ("prompt", {"messages": [{"role": "system", "content": ""}]}, "messages: has no turns"),
    ("kto", {"messages": [{"role": "system", "content": ""}], "label": True}, "messages: has no turns"),
    ("messages", {"messages": [{"role": "system", "content": ""}]}, "messages: has no turns"),
    ("preference", {"prompt": "x", "chosen": [{"role": "system", "content": ""}], "rejected": "6"}, "chosen: has no turns"),
    ("messages", {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y", "reasoning_content": "\ud83d"}]},
     "messages[1].reasoning_content: holds half a character"),
    ("messages", {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y", "reasoning_content": ["z"]}]},
     "messages[1].reasoning_content: is a list, not text"),
    ("messages", {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y", "reasoning": "a", "thinking": "b"}]},
     "messages[1].thinking: a second reasoning: the turn has another (found 'b')"),
    ("messages", {"messages": [{"role": "assistant", "tool_calls": [{"name": "f", "arguments": '{"a": "\\ud83d"}'}]}]},
     "messages[0].tool_calls: holds half a character"),
    ("messages", {"messages": [{"role": "assistant", "tool_calls": [{"name": "f"}], "function_call": {"name": "g"}}]},
     "messages[0].function_call: is given beside tool_calls"),
    ("messages", {"messages": [{"role": "user", "content": "x"}], "tools": [{"name": "\ud83d"}]}, "tools: holds half a character"),
    ("prompt_completion", {"prompt": "x", "completion": "y", "images": ["\ud800.png"]}, "images[0]: holds half a character"),
    ("messages", {"messages": [{"role": "assistant", "content": "x", "weight": 1e39}]}, "messages[0].weight: a weight too large or too small"),
    ("messages", {"messages": [{"role": "assistant", "content": "x", "loss": 1e-50}]}, "messages[0].loss: a weight too large or too small"),
    ("prompt_completion", {"prompt": "x", "completion": "y", "system": "a", "system_prompt": "b"}, "system_prompt: a second system text"),
    ("preference", {"prompt": "x", "chosen": [{"role": "system", "content": "r"}, {"role": "user", "content": "x"}, {"role": "assistant", "content": "5"}],
                    "rejected": [{"role": "system", "content": "s"}, {"role": "user", "content": "x"}, {"role": "assistant", "content": "6"}]},
     "rejected: a second system text"),
]  # fmt: skip


@pytest.mark.parametrize(("format", "values", "complaint"), UNREADABLE)
def test_what_no_turn_can_hold_is_named(format: Format, values: dict[str, Any], complaint: str) -> None:
    test_bad_rows_are_named(format, values, complaint)


@pytest.mark.parametrize("file", ["a.jsonl", "a.csv"])
def test_brackets_without_end_are_a_text(file: str) -> None:
    row = Row({"prompt": DEEP, "completion": "5"}, Origin(file=file, line=1))
    (record,) = read_row(row, "prompt_completion", "conversation")
    assert isinstance(record, Conversation) and record.messages[0].text == DEEP


def rows(*values: dict[str, Any]) -> list[Row]:
    return [Row(each, Origin(file="a", line=number)) for number, each in enumerate(values, 1)]


def test_detection_says_what_could_be_meant() -> None:
    both = {"prompt": "x", "completion": "y", "messages": [{"role": "user", "content": "x"}]}
    with pytest.raises(DataError, match=r"a:1: rows could be messages or prompt_completion; choose by data\.format="):
        detect(rows(both))
    with pytest.raises(DataError, match=r"did you mean 'instruction' by 'instrution'\?"):
        detect(rows({"instrution": "x", "txt": "y"}))
    with pytest.raises(DataError, match=r"data\.columns=\{prompt: text\}"):
        detect(rows({"text": "x"}))


def test_detection_finds_the_first_row_of_another_format() -> None:
    alpaca, pair = {"instruction": "x", "output": "y"}, {"prompt": "x", "chosen": "y", "rejected": "z"}
    with pytest.raises(DataError, match="a:3: a preference row among alpaca rows"):
        detect(rows(alpaca, alpaca, pair, alpaca))
    assert detect(rows(alpaca, {"instruction": "x"}, {"instruction": "x", "output": None})) == "alpaca"


def test_an_answer_that_is_json_stays_text() -> None:
    for answer in ('{"role": "admin"}', '[1, 2]', '{"role": broken'):
        record = read({"prompt": "2+3?", "completion": answer}, "conversation")
        assert isinstance(record, Conversation) and record.messages[1].text == answer


def test_a_list_of_turns_is_opened_and_a_single_one_in_cells_of_csv_alone() -> None:
    values = {"prompt": '[{"role": "user", "content": "2+3?"}]', "completion": '{"role": "assistant", "content": "5"}'}
    record = read(values, "conversation")
    assert isinstance(record, Conversation)
    assert [message.text for message in record.messages] == ["2+3?", values["completion"]]
    (record,) = read_row(Row(values, Origin(file="a.CSV", line=1)), "prompt_completion", "conversation")
    assert isinstance(record, Conversation) and record.messages == (USER, ANSWER)


RULES, EARLIER = Message("system", "Brief."), (Message("user", "1+1?"), Message("assistant", "2"))


def turns_of(*messages: Message) -> list[dict[str, Any]]:
    return [{"role": message.role, "content": message.content} for message in messages]


@pytest.mark.parametrize("answers", [
    {"chosen": turns_of(RULES, *EARLIER, USER, ANSWER), "rejected": turns_of(RULES, *EARLIER, USER, Message("assistant", "6"))},
    {"chosen": turns_of(RULES, *EARLIER, USER, ANSWER), "rejected": "6"},
    {"chosen": turns_of(RULES, *EARLIER, USER, ANSWER), "rejected": turns_of(*EARLIER, USER, Message("assistant", "6"))},
    {"chosen": "5", "rejected": "6", "messages": turns_of(RULES, *EARLIER, USER)},
    {"chosen": "5", "rejected": "6", "messages": turns_of(RULES, *EARLIER, USER, ANSWER)},
    {"chosen": "5", "rejected": "6", "messages": turns_of(*EARLIER, USER), "system": "Brief."},
    {"chosen": "5", "rejected": "6", "history": [["1+1?", "2"]], "system_prompt": "Brief."},
])  # fmt: skip
def test_a_prompt_takes_what_its_answers_say_before_it(answers: dict[str, Any]) -> None:
    record = read({"prompt": "2+3?", **answers}, "preference")
    assert isinstance(record, Preference)
    assert (record.prompt, record.chosen) == ((RULES, *EARLIER, USER), (ANSWER,))
    assert record.rejected == (Message("assistant", "6"),)


@pytest.mark.parametrize(("kind", "values"), [
    ("ranking", {"prompt": "2+3?", "responses": ["5", "6"], "rankings": [1, 2]}),
    ("scored", {"prompt": "2+3?", "responses": ["5", "6"], "rewards": [1, 0]}),
    ("scored", {"prompt": "2+3?", "responses": ["5", "6"], "weights": [1, 0]}),
    ("scored", {"instruction": "2+3?", "completions": [{"response": "5", "overall_score": 1}]}),
    ("preference", {"prompt": "2+3?", "response_0": "5", "response_1": "6", "better_response_id": 0}),
    ("conversation", {"system_prompt": "", "system": "Brief.", "question": "2+3?", "response": "5"}),
    ("conversation", {"instruction": "2+3?", "instances": [{"input": "", "output": "5"}]}),
    ("conversation", {"question": "2+3?", "answer": "#### 5"}),
    ("conversation", {"prompt": [{"role": "user", "content": "2+3?"}], "completion": "5"}),
])  # fmt: skip
def test_every_format_reads_system_history_and_tools(kind: RecordKind, values: dict[str, Any]) -> None:
    record = read({"system_prompt": "Brief.", **values, "history": [["1+1?", "2"]], "tools": [{"name": "add"}]}, kind)
    messages = record.messages if isinstance(record, Conversation | Prompt) else record.prompt
    assert messages[:4] == (RULES, *EARLIER, USER) and record.tools


def test_tools_go_along_into_pairs_and_prompts() -> None:
    values = {"prompt": "2+3?", "responses": ["5", "6"], "rankings": [1, 2], "tools": [{"name": "add"}]}
    kinds: tuple[RecordKind, ...] = ("preference", "prompt")
    for kind in kinds:
        record = read(values, kind)
        assert isinstance(record, Preference | Prompt) and record.tools


@pytest.mark.parametrize("values", [
    {"instruction": "Add.", "input": "2 and 3", "completions": [{"response": "5", "overall_score": 1}]},
    {"instruction": "Add.", "input": "2 and 3", "instances": [{"input": "", "output": "5"}]},
])  # fmt: skip
def test_an_input_belongs_to_the_instruction(values: dict[str, Any]) -> None:
    record = read(values, "prompt")
    assert isinstance(record, Prompt) and record.messages == (Message("user", "Add.\n2 and 3"),)


@pytest.mark.parametrize("label", [0.0, 1.0, 0, True, "0.0", "1.0"])
def test_labels_as_numbers(label: Any) -> None:
    record = read({"prompt": "2+3?", "completion": "5", "label": label}, "rating")
    assert isinstance(record, Rating) and record.label == bool(float(label))


def test_calls_and_thoughts_under_older_names() -> None:
    call = {"name": "add", "arguments": '{"a": 2}'}
    turns = [{"role": "user", "content": "2+3?"}, {"role": "assistant", "content": "Let me add.", "function_call": call},
             {"role": "assistant", "content": "5", "thinking": "easy", "function_call": {"name": None, "arguments": None}}]  # fmt: skip
    record = read({"messages": turns}, "conversation")
    assert isinstance(record, Conversation)
    assert record.messages[1] == Message("assistant", "Let me add.", tool_calls=({"name": "add", "arguments": {"a": 2}},))
    assert record.messages[2] == Message("assistant", "<think>\neasy\n</think>\n\n5")


def test_gsm8k_keeps_a_column_of_the_row() -> None:
    values = {"question": "2+3?", "answer": "#### 5", "final": "five"}
    record = read(values, "conversation")
    assert isinstance(record, Conversation) and record.columns["final"] == "five"


def test_a_topic_is_no_label() -> None:
    assert matches(Row({"question": "x", "answer": "y", "label": "sport"}, AT)) == ["prompt_completion"]


def test_the_short_answer_is_the_reference() -> None:
    record = read({"problem": "2+3?", "solution": "2 and 3 are 5", "answer": "5"}, "prompt")
    assert isinstance(record, Prompt) and record.reference == "5"


def test_half_a_character_is_refused() -> None:
    for values in ({"prompt": "2+3?", "completion": "5\ud83d"}, {"messages": [{"role": "user", "content": "\ud83d"}, {"role": "assistant", "content": "5"}]}):
        with pytest.raises(DataError, match=r"holds half a character \(\\ud83d\)"):
            read(values, "conversation")


def test_ultrafeedback_without_a_prompt_column() -> None:
    turns = [{"role": "user", "content": "2+3?"}]
    record = read({"messages": [*turns, {"role": "assistant", "content": "5"}], "chosen": [*turns, {"role": "assistant", "content": "5"}], "rejected": [*turns, {"role": "assistant", "content": "6"}]}, "preference")
    assert isinstance(record, Preference) and (record.prompt, record.chosen) == ((USER,), (ANSWER,))


def test_columns_and_settings_of_somebodys_own_are_left_alone() -> None:
    other = turns_of(Message("user", "z"), Message("assistant", "a"))
    record = read({"prompt": "2+3?", "chosen": "5", "rejected": "6", "messages": other}, "preference")
    assert isinstance(record, Preference) and record.prompt == (USER,) and record.columns == {"messages": other}
    turns = [turns_of(USER)[0], {**turns_of(ANSWER)[0], "thinking": False, "function_call": "none"}]
    record = read({"messages": turns}, "conversation")
    assert isinstance(record, Conversation) and record.messages == (USER, ANSWER)
    record = read({"system_prompt": "", "question": "2+3?", "response": "5", "history": "2020"}, "conversation")
    assert isinstance(record, Conversation) and record.messages == (USER, ANSWER) and record.columns == {"history": "2020"}
