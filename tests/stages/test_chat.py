"""Chat over a pipe: commands, memory, saved rows that training reads, adapter on and off."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest
import torch

from tests.data.drawn import draw
from tests.rollout.stub import Stub
from whet.config.data import Data
from whet.config.model import Lora, Model, Vision
from whet.data.sources import read_records
from whet.errors import ModelError, UserError
from whet.models.load import load_model, load_tokenizer, save_trained
from whet.rollout.native import NativeEngine
from whet.runs.files import read_jsonl
from whet.schema.artifacts import ModelRef
from whet.stages.chat import chat

DEFAULTS = {
    "adapter": None, "system": None, "temperature": 0.0, "top_p": 1.0, "max_new_tokens": 5, "seed": 1,
    "compare": False, "precision": "fp32",
}  # fmt: skip


@pytest.fixture
def talk(tiny_checkpoint, tmp_path, monkeypatch, capsys):
    def run(*lines, model=None, **changes):
        monkeypatch.setattr(sys, "stdin", io.StringIO("".join(line + "\n" for line in lines)))
        chat(str(model or tiny_checkpoint), **{**DEFAULTS, "save": tmp_path / "rows" / "chat.jsonl", **changes})
        return capsys.readouterr().out

    return run


@pytest.fixture
def heard(monkeypatch, tiny_checkpoint):
    """Prompts the engine was given, as text; answers are `yes 1`, `yes 2`, ..."""
    tokenizer, prompts = load_tokenizer(str(tiny_checkpoint)), []

    def stream(self, request):
        prompts.append(tokenizer.decode(list(request.prompt_ids)))
        yield from ("yes ", f"{len(prompts)}")

    monkeypatch.setattr(NativeEngine, "stream", stream)
    return prompts


@pytest.fixture
def adapter(tiny_checkpoint, tmp_path):
    config = Model(path=str(tiny_checkpoint), lora=Lora(rank=4), device="cpu")
    model = load_model(ModelRef(path=str(tiny_checkpoint)), config, dtype=torch.float32, trainable=True)
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    save_trained(model, load_tokenizer(str(tiny_checkpoint)), tmp_path / "adapter")
    return tmp_path / "adapter"


def test_a_real_model_streams_and_repeats_itself_with_the_same_seed(talk):
    first = talk("What is the capital of France?", "exit", "never asked", temperature=1.0)
    assert first == talk("What is the capital of France?", temperature=1.0)
    assert first != talk("What is the capital of France?", temperature=1.0, seed=2)


def test_turns_are_remembered_until_reset(talk, heard):
    assert talk("first question", "second question", "/reset", "third question", "quit") == (
        "yes 1\nyes 2\nThe conversation is forgotten.\nyes 3\n"
    )
    assert "first question" in heard[1]
    assert "yes 1" in heard[1]
    assert "question" not in heard[2].replace("third question", "")


def test_the_system_message_can_be_set_and_removed(talk, heard):
    talk("one", "/system Be brief.", "two", "/system", "three", system="Be kind.")
    assert ["Be kind." in heard[0], "Be brief." in heard[1], "Be brief." in heard[2]] == [True, True, False]


def test_saved_rows_are_training_rows(talk, heard, tmp_path):
    out = talk("/save", "one", "two", "/save", "/reset", "three", "/save", system="Be kind.")
    assert "nothing to save" in out
    assert "2 exchanges." in out
    rows = read_jsonl(tmp_path / "rows" / "chat.jsonl")
    assert rows[0]["messages"][:3] == [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "yes 1"},
    ]
    records, ledger = read_records(Data(files=(str(tmp_path / "rows" / "chat.jsonl"),)), ("conversation",))
    assert [len(record.messages) for record in records] == [5, 3]
    assert ledger.describe() == "2 read, 2 kept"


def test_a_row_is_saved_behind_all_that_the_file_holds(talk, heard, tmp_path):
    """Rows of somebody's own need not end in a line break, and no place to save to ends no conversation."""
    (tmp_path / "own.jsonl").write_text('{"prompt": "mine"}')
    talk("first", "/save", "second", "/save", save=tmp_path / "own.jsonl")
    assert [len(row.get("messages", ())) for row in read_jsonl(tmp_path / "own.jsonl")] == [0, 2, 4]
    said = talk("third", "/save", "fourth", save=tmp_path)
    assert "cannot write" in said and said.endswith("yes 4\n") and "yes 3" in heard[3]


@pytest.mark.parametrize("line", [b"caf\xe9", b"/system caf\xe9"])
def test_a_line_that_is_no_text_is_left_out(talk, heard, monkeypatch, line):
    stdin = io.TextIOWrapper(io.BytesIO(line + b"\nhello\n"), encoding="utf-8")
    monkeypatch.setattr(io, "StringIO", lambda text: stdin)
    said = talk()
    assert said.startswith("(the line cannot be read as text") and said.endswith("yes 1\n")
    assert len(heard) == 1 and "hello" in heard[0] and "caf" not in heard[0]


def test_unknown_commands_and_empty_lines_reach_no_model(talk, heard):
    out = talk("/wat", "", "   ", "/help")
    assert "no command /wat" in out
    assert "/system TEXT" in out
    assert heard == []


def test_compare_answers_with_the_adapter_off_and_on(talk, adapter):
    out = talk("What is the capital of France?", adapter=str(adapter), compare=True)
    without, with_it = out.removeprefix("[without the adapter]\n").split("[with the adapter]\n")
    assert without == talk("What is the capital of France?")
    assert with_it == talk("What is the capital of France?", adapter=str(adapter))
    assert without != with_it


def test_an_adapter_directory_brings_its_checkpoint(talk, adapter):
    assert talk("hello", model=adapter) == talk("hello", adapter=str(adapter))


def test_an_adapter_is_asked_by_the_template_it_was_trained_with(talk, heard, adapter, tiny_checkpoint):
    template = "{% for turn in messages %}# {{ turn.content }}{{ eos_token }}{% endfor %}"
    (adapter / "chat_template.jinja").write_text(template)
    talk("hello", model=adapter)
    talk("hello", adapter=str(adapter))
    talk("hello")
    assert [prompt.startswith("# hello") for prompt in heard] == [True, True, False]


@pytest.mark.parametrize("text", ["{", "[]", "null", "{}", '{"base_model_name_or_path": null}'])
def test_an_adapter_directory_that_does_not_name_it(talk, adapter, text):
    (adapter / "adapter_config.json").write_text(text)
    with pytest.raises(ModelError, match=r"^model: does not say which checkpoint it was trained on .*adapter_config"):
        talk("hello", model=adapter)


def test_words_cannot_steer_the_terminal(talk, monkeypatch):
    monkeypatch.setattr(NativeEngine, "stream", lambda self, request: iter(["a\x1b[2Jb\tc\n", "\x9bd"]))
    assert talk("hi") == "a[2Jb\tc\nd\n"


def test_a_conversation_that_does_not_fit_is_said_and_forgotten(talk):
    out = talk("word " * 3000, "hello")
    assert "/reset starts anew" in out
    assert len(out.splitlines()) >= 2


def test_an_interrupted_answer_is_forgotten(talk, monkeypatch, heard):
    def stream(self, request):
        yield "half"
        raise KeyboardInterrupt

    whole = NativeEngine.stream
    monkeypatch.setattr(NativeEngine, "stream", stream)
    assert "interrupted" in talk("question")
    monkeypatch.setattr(NativeEngine, "stream", whole)


def test_mistakes_are_one_clear_line(talk, tiny_checkpoint, tmp_path):
    with pytest.raises(UserError, match="nothing to compare"):
        talk(compare=True)
    with pytest.raises(ModelError, match="no such directory"):
        talk(model=tmp_path / "absent")


def test_a_model_behind_a_server(talk, monkeypatch, tmp_path):
    monkeypatch.setenv("no_proxy", "*")
    with Stub() as stub:
        said = talk("Hi", "And now?", "exit", model="m", system="Be short.", server=stub.url)
    roles = [[message["role"] for message in body["messages"]] for body in stub.bodies]
    assert roles == [["system", "user"], ["system", "user", "assistant", "user"]]
    assert stub.bodies[0]["model"] == "m" and said.count("answer ") == 2


@pytest.mark.parametrize("words", [
    {"server": "localhost"}, {"server": "http://a/v1", "adapter": "x"},
    {"server": "http://a/v1", "vision": Vision(max_pixels=784)},
])  # fmt: skip
def test_a_server_is_a_url_and_has_a_model_of_its_own(talk, words):
    with pytest.raises(UserError, match="--server"):
        talk("exit", **words)


def test_pictures_go_with_the_next_message(talk, monkeypatch, tiny_vlm_checkpoint, tmp_path):
    draw(tmp_path / "cat.png", 90, 70)
    asked = []

    def stream(self, request):
        asked.append(request)
        yield f"yes {len(asked)}"

    monkeypatch.setattr(NativeEngine, "stream", stream)
    (tmp_path / "words.png").write_text("just some words")
    said = talk(
        f"/image {tmp_path / 'cat.png'}", "what is it?", "and now?", f"/image {tmp_path / 'words.png'}",
        "/image nowhere.png", "/save", model=tiny_vlm_checkpoint, vision=Vision(max_pixels=1600, min_pixels=784),
    )  # fmt: skip
    assert "cat.png (90×70) goes with your next message." in said
    assert "(the picture is none that can be read: " in said and "(the picture is missing: " in said
    shown = [[(Path(picture.source).name, picture.num_tokens) for picture in request.pictures] for request in asked]
    assert shown == [[("cat.png", 1)]] * 2
    (row,) = read_jsonl(tmp_path / "rows" / "chat.jsonl")
    assert row["images"] == [str(tmp_path / "cat.png")] and row["messages"][0]["content"] == "<image>what is it?"


def test_a_text_model_says_that_it_takes_no_pictures(talk, heard, tmp_path):
    draw(tmp_path / "cat.png")
    said = talk(f"/image {tmp_path / 'cat.png'}", "what is it?", "and you?")
    assert "this checkpoint takes none" in said and said.endswith("yes 1\n") and len(heard) == 1
