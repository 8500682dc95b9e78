"""Pieces between control tokens give exactly the ids that whole texts give, or are not used."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, trainers
from transformers import PreTrainedTokenizerFast

from whet.config.data import Data
from whet.data.pieces import Pieces, cutting_tokens
from whet.data.render import Renderer
from whet.data.sources import read_records
from whet.schema.records import (
    Conversation,
    Message,
    Preference,
    Ranking,
    Rating,
    Record,
    RecordKind,
    Scored,
)  # fmt: skip

_spec = importlib.util.spec_from_file_location("data_templates_pieces", Path(__file__).with_name("templates.py"))
assert _spec and _spec.loader
T = importlib.util.module_from_spec(_spec)
sys.modules["data_templates_pieces"] = T
_spec.loader.exec_module(T)

FAMILIES = {
    "chatml": T.CHATML, "thinking": T.THINKING, "headers": T.HEADERS, "model_role": T.MODEL_ROLE, "inst": T.INST,
    "plain_marks": T.PLAIN_MARKS, "deaf": T.DEAF,
}  # fmt: skip
TURNS: list[dict[str, str]] = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]


def prepended(template: str) -> PreTrainedTokenizerFast:
    """A BPE whose normaliser puts a mark before each stretch of words, composes letters and strips blanks."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=False, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Strip(), normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Metaspace()
    specials = [AddedToken(token, special=True, normalized=False) for token in (*T.SPECIALS, "<unk>")]
    trainer = trainers.BpeTrainer(vocab_size=220, special_tokens=specials, show_progress=False)
    tokenizer.train_from_iterator(["Paris and Rome are capitals. What is it? 2 + 3 = 5 über"] * 5, trainer)
    return T._wrapped(tokenizer, template)


def with_added(template: str, *added: AddedToken) -> PreTrainedTokenizerFast:
    tokenizer = T.byte_level(template)
    tokenizer.add_tokens(list(added))
    return tokenizer


def pieces_of(tokenizer: PreTrainedTokenizerFast) -> Pieces:
    return Pieces(tokenizer, str(tokenizer.apply_chat_template(TURNS, tokenize=False)))


TOKENIZERS = {
    f"{family}-{make.__name__}": make(template)
    for family, template in FAMILIES.items()
    for make in (T.byte_level, T.word_pieces, prepended)
} | {
    # Tokens that take blanks along, or are found in normalised text only, beside the ones that cut.
    "greedy": with_added(
        T.CHATML, AddedToken("<greedy>", lstrip=True, rstrip=True), AddedToken("<soft>", normalized=True),
        AddedToken("\n\n", normalized=False), AddedToken("whole", single_word=True, normalized=False),
    ),
}  # fmt: skip
PIECES = {name: pieces_of(tokenizer) for name, tokenizer in TOKENIZERS.items()}

FRAGMENTS = st.sampled_from(
    (*T.SPECIALS, "<|im_", "start|>", "<", "|>", "</", "s>", " ", "\n", "\n\n", "\u0301", "a", "'s", "12", "Paris",
     "<greedy>", "<soft>", "whole")
)  # fmt: skip
TEXT = st.lists(FRAGMENTS | st.text(st.characters(codec="utf-8"), max_size=6), max_size=12).map("".join)


def whole(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=40, deadline=None, derandomize=True)
@given(texts=st.lists(TEXT, max_size=4))
def test_pieces_give_the_ids_of_whole_texts(name: str, texts: list[str]) -> None:
    assert PIECES[name].exact
    assert PIECES[name].ids(texts) == {text: whole(TOKENIZERS[name], text) for text in texts}


def test_a_piece_is_tokenised_once(monkeypatch: pytest.MonkeyPatch) -> None:
    pieces, seen = pieces_of(T.byte_level(T.CHATML)), list[str]()
    encode = pieces._encode
    monkeypatch.setattr(pieces, "_encode", lambda parts: seen.extend(parts) or encode(parts))
    prompt = "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"
    pieces.ids([prompt, prompt + "So.<|im_end|>\n", prompt + "No.<|im_end|>\n", prompt])
    assert sorted(seen) == sorted(
        ["<|im_start|>user\nWhy?", "<|im_end|>\n", "<|im_start|>assistant\n", "<|im_start|>assistant\nSo.",
         "<|im_start|>assistant\nNo."]
    )  # fmt: skip


@pytest.mark.parametrize(
    ("other", "cuts"),
    [
        (AddedToken("<|im_start|>user", normalized=False), ("<|im_end|>",)),  # longer, and so found instead
        (AddedToken("x<|im_st", normalized=False), ("<|im_end|>",)),  # begins before it and takes its first letters
        (AddedToken("|>\n", normalized=False), ()),  # would take its last letters, were it not found first
        (AddedToken("<|im_end", normalized=True), ("<|im_start|>",)),
        (AddedToken("<other>", normalized=False), ("<|im_start|>", "<|im_end|>")),
    ],
)
def test_tokens_that_share_letters_with_others_do_not_cut(other: AddedToken, cuts: tuple[str, ...]) -> None:
    tokenizer = with_added(T.CHATML, other)
    sample = str(tokenizer.apply_chat_template(TURNS, tokenize=False))
    assert cutting_tokens(tokenizer.backend_tokenizer, sample) == cuts
    text = f"x<|im_start|>user\nx{other.content}<|im_end|>\n<|im_start|>assistant\n"
    assert Pieces(tokenizer, sample).ids([text]) == {text: whole(tokenizer, text)}


@pytest.mark.parametrize("how", ["lstrip", "single_word", "normalized"])
def test_tokens_that_look_around_do_not_cut(how: str) -> None:
    plain, odd = AddedToken("<a>", normalized=False), AddedToken("<b>", **{"normalized": False, how: True})
    backend = with_added(T.CHATML, plain, odd).backend_tokenizer
    assert cutting_tokens(backend, "<a> <b>") == ("<a>",)


class Reversing(PreTrainedTokenizerFast):
    """A tokenizer with an idea of its own: pieces of its texts are not what its texts are made of."""

    def _encode_plus(self, *args: Any, **kwargs: Any) -> Any:
        encoded = super()._encode_plus(*args, **kwargs)
        ids = encoded["input_ids"]
        encoded["input_ids"] = [row[::-1] for row in ids] if ids and isinstance(ids[0], list) else ids[::-1]
        return encoded


def test_a_tokenizer_that_does_not_behave_is_given_whole_texts() -> None:
    inner = T.byte_level(T.CHATML)
    odd = Reversing(tokenizer_object=inner.backend_tokenizer, chat_template=T.CHATML)
    pieces = pieces_of(odd)
    assert not pieces.exact
    text = "<|im_start|>user\nWhy?<|im_end|>\n"
    assert pieces.ids([text, "a"]) == {text: whole(inner, text)[::-1], "a": whole(inner, "a")}
    assert pieces.ids([]) == {}


def test_special_tokens_that_are_split_as_words_do_not_cut() -> None:
    tokenizer = T.byte_level(T.CHATML)
    tokenizer.split_special_tokens = True
    pieces = pieces_of(tokenizer)
    text = "<|im_start|>user\nWhy?<|im_end|>\n"
    assert pieces.ids([text]) == {text: whole(tokenizer, text)}
    assert len(whole(tokenizer, text)) > 15


def test_padding_left_by_an_earlier_call_does_not_matter() -> None:
    tokenizer = T.byte_level(T.CHATML)
    pieces = pieces_of(tokenizer)
    tokenizer(["a", "b c d"], padding=True, truncation=True, max_length=2)
    texts = ["<|im_start|>user\nWhy?<|im_end|>\n", "a"]
    assert pieces.ids(texts) == {text: whole(T.byte_level(T.CHATML), text) for text in texts}


def by_whole_texts(renderer: Renderer) -> Renderer:
    slow = Renderer(renderer.template.tokenizer, system=renderer.system)
    slow.template.pieces.exact = False
    return slow


def rows_of(renderer: Renderer, record: Record) -> Any:
    try:
        match record:
            case Conversation():
                return renderer.conversations(record)
            case Preference() | Rating() | Ranking() | Scored():
                return renderer.group(record)
            case _:
                raise AssertionError(record)
    except Exception as error:  # the same complaint from both
        return type(error), str(error)


WORDS = TEXT.filter(str.strip)


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=15, deadline=None, derandomize=True)
@given(words=st.lists(WORDS, min_size=4, max_size=4))
def test_records_are_rendered_alike(name: str, words: list[str]) -> None:
    fast = RENDERERS.setdefault(name, Renderer(TOKENIZERS[name]))
    slow = by_whole_texts(fast)
    question, one, two, more = words
    prompt, answer = (Message("user", question),), Message("assistant", one)
    records: Iterable[Record] = (
        Conversation(messages=(*prompt, answer, Message("user", more), Message("assistant", two))),
        Preference(prompt=prompt, chosen=(answer,), rejected=(Message("assistant", two),)),
        Ranking(prompt=(*prompt, answer, Message("user", more)), responses=(one, two, more), ranks=(1, 2, 2)),
    )
    for record in records:
        assert rows_of(fast, record) == rows_of(slow, record)


RENDERERS: dict[str, Renderer] = {}


@pytest.mark.parametrize("family", ["chatml", "thinking", "headers", "inst"])
@pytest.mark.parametrize(
    ("file", "kind"),
    [
        ("dpo_en_demo.json", "preference"), ("kto_en_demo.json", "rating"), ("alpaca_zh_demo.json", "conversation"),
        ("glaive_toolcall_en_demo.json", "conversation"),
    ],
)  # fmt: skip
def test_real_records_are_rendered_alike(real_data: Path, family: str, file: str, kind: RecordKind) -> None:
    fast = Renderer(TOKENIZERS[f"{family}-byte_level"])
    slow = by_whole_texts(fast)
    records, _ = read_records(Data(files=(str(real_data / file),)), (kind,))
    for record in records[:20]:
        assert rows_of(fast, record) == rows_of(slow, record)
