"""Token ids of many texts that have much in common: each piece between two control tokens is tokenised once.

    <|im_start|>user\\n2+3?<|im_end|>\\n<|im_start|>assistant\\n           a prompt
    <|im_start|>user\\n2+3?<|im_end|>\\n<|im_start|>assistant\\n5<|im_end|>  the same prompt, answered

    ids(text) = ids(<|im_start|>user\\n2+3?) + ids(<|im_end|>\\n) + ids(<|im_start|>assistant\\n) ...

This is exact, not nearly so: a tokenizer cuts out its control tokens before anything else, and what lies between two of
them never sees the other side. A piece keeps the token it begins with, so that words behind a control token are not
taken for the beginning of a text, where SentencePiece-like tokenizers add a space. A tokenizer that does not keep to
this on a probe, or is not of the `tokenizers` library, is given whole texts.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, pairwise
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_WORDS = ("What is 2 + 30?", " \n\n Über\u0301 ", "", "\n", "  x", "你好。\n\n", "\u0301'll 100000 ", "▁<|Ġ> ")
"""Between control tokens for the probe: spaces, line breaks, combining marks and nothing at all, at either edge."""


class Pieces:
    """Tokenises texts of one chat template."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, sample: str, words: Mapping[str, str] = MappingProxyType({})
    ) -> None:
        """`sample` is a text of the template: the control tokens in it are where texts are cut.

        `words` are marks and the control tokens that somebody wrote where they stand: they become ordinary letters.
        """
        self._tokenizer = tokenizer
        self._marks = re.compile("|".join(map(re.escape, words))) if words else None
        self._backend: Any = tokenizer.backend_tokenizer if tokenizer.is_fast else None
        self._cuts = cutting_tokens(self._backend, sample) if self._backend else ()
        self._cut = re.compile("|".join(map(re.escape, self._cuts)))
        self.exact = bool(self._cuts) and self._holds()
        """Whether texts are cut; else they are tokenised whole."""
        # A control token is found by all of its letters: cut in two it is none.
        self._spelled = {
            mark: [*chain.from_iterable(self._whole([token[:1], token[1:]]))] for mark, token in words.items()
        }

    def ids(self, texts: Iterable[str]) -> dict[str, list[int]]:
        """Token ids of each distinct text; the texts hold their control tokens already.

        The work on the pieces is shared among the cores, unless TOKENIZERS_PARALLELISM is set to false.
        """
        distinct = list(dict.fromkeys(texts))
        if self._marks and any(map(self._marks.search, distinct)):
            return self._spelled_out(distinct)
        if not self.exact:
            return dict(zip(distinct, self._whole(distinct), strict=True))
        cut = [self._parts(text) for text in distinct]
        pieces = list(dict.fromkeys(chain.from_iterable(cut)))
        known = dict(zip(pieces, self._encode(pieces), strict=True))
        return {
            text: list(chain.from_iterable([known[piece] for piece in parts]))
            for text, parts in zip(distinct, cut, strict=True)
        }

    def _spelled_out(self, texts: Sequence[str]) -> dict[str, list[int]]:
        """Ids of texts with marks: those of what stands between them, and of the letters that they stand for."""
        assert self._marks is not None
        between = {text: self._marks.split(text) for text in texts}
        known = self.ids(part for parts in between.values() for part in parts)
        ids = {}
        for text, parts in between.items():
            ids[text] = list(known[parts[0]])
            for mark, part in zip(self._marks.findall(text), parts[1:], strict=True):
                ids[text] += self._spelled[mark] + known[part]
        return ids

    def _parts(self, text: str) -> list[str]:
        """The text cut before each control token."""
        starts = [match.start() for match in self._cut.finditer(text)]
        return [text[start:end] for start, end in pairwise((0, *starts, len(text))) if start < end]

    def _encode(self, pieces: Sequence[str]) -> list[list[int]]:
        settle(self._backend)
        return [encoding.ids for encoding in self._backend.encode_batch_fast(pieces, add_special_tokens=False)]

    def _whole(self, texts: Sequence[str]) -> list[list[int]]:
        if not texts:
            return []
        return list(self._tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"])

    def _holds(self) -> bool:
        """Whether pieces give the ids of whole texts, for a text in which all cuts stand among all probe words."""
        self.exact = True
        marks = [mark for _ in _WORDS for mark in (*self._cuts, *reversed(self._cuts))]
        words = [_WORDS[number % len(_WORDS)] for number in range(len(marks))]
        text = "".join(word + mark for word, mark in zip(words, marks, strict=True))
        texts = [text, text + _WORDS[0], *(mark + word for mark in self._cuts for word in _WORDS)]
        return list(self.ids(texts).values()) == self._whole(list(dict.fromkeys(texts)))


def cutting_tokens(backend: Any, sample: str) -> tuple[str, ...]:
    """The added tokens of a fast tokenizer that occur in `sample` and are found wherever their letters stand.

    Left out are those that depend on what surrounds them: matched after normalisation, as whole words only, taking the
    spaces before them along, or letting their letters be part of another token, where that one would win.
    """
    added = [token for token in backend.get_added_tokens_decoder().values() if token.content]
    contents = [token.content for token in added]
    return tuple(
        token.content
        for token in added
        if token.content in sample
        and token.content == token.content.strip()
        and not (token.normalized or token.single_word or token.lstrip)
        and not any(_touch(token.content, other) for other in contents)
    )


def _touch(one: str, other: str) -> bool:
    """Whether the two can stand in a text so that they share letters (a token with itself: at different places)."""
    if one != other and (one in other or other in one):
        return True
    sizes = range(1, min(len(one), len(other)))
    return any(one[-size:] == other[:size] or other[-size:] == one[:size] for size in sizes)


def settle(backend: Any) -> None:
    """Take away the padding and truncation that an earlier call may have left in a fast tokenizer."""
    if backend.padding is not None:
        backend.no_padding()
    if backend.truncation is not None:
        backend.no_truncation()


def definition_of(tokenizer: PreTrainedTokenizerBase) -> str:
    """A fast tokenizer's whole definition, without the padding and truncation that an earlier call left in it."""
    settle(tokenizer.backend_tokenizer)
    state = tokenizer.backend_tokenizer.to_str()
    assert isinstance(state, str)
    return state
