"""Words of any script: what is read as one word stays one, however its characters are written."""

from __future__ import annotations

import unicodedata

import pytest

from whet.data.words import words


@pytest.mark.parametrize(
    "text", ["हिन्दी भाषा", "ภาษาไทย ไม่ยาก", "தமிழ் மொழி", "বাংলা ভাষা", "עִבְרִית קָשָׁה", "Việt ngữ", "naïve café"]
)
def test_a_mark_belongs_to_its_word(text: str) -> None:
    composed = [unicodedata.normalize("NFC", word) for word in text.lower().split()]
    assert words(text) == composed == words(unicodedata.normalize("NFD", text))


def test_a_mark_alone_is_no_word() -> None:
    assert words("\u0301 a_b \u2764\ufe0f 三点\u0301 x") == ["a", "b", "三", "点", "x"]
