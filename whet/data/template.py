"""The checkpoint's own chat template: text and token ids of a prompt, and of the turn that answers it.

    prompt    = template(turns before the answer, add_generation_prompt=True)
    answered  = template(turns with the answer)              must begin with `prompt`, checked for every turn
    response  = ids of `answered` after the ids of `prompt`, up to the token that ends the turn

So the prompt's ids are exactly those an engine is given, and the response's are what it would have to generate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError

from whet.data.abilities import Abilities
from whet.data.pictures import KNOWN
from whet.data.pieces import Pieces
from whet.data.places import MARKS, guarded, pictures_in, token_text
from whet.data.row import quote
from whet.errors import DataError, ModelError
from whet.schema.records import Message, Origin, Part

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from whet.data.pictures import PictureReader

_PROBE = "whet-probe"


class Template:
    """A tokenizer's chat template, probed once. Raises ModelError where it has none that can be trained on."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, reader: PictureReader | None = None) -> None:
        self.tokenizer = tokenizer
        self.name = tokenizer.name_or_path or "the tokenizer"
        self.place = "" if reader is None else token_text(tokenizer, reader.place_id)
        """The token by which the template says that a picture stands there; empty where it cannot."""
        reserved = () if reader is None else (token_text(tokenizer, index) for index in reader.reserved_ids)
        self._marks = {token: mark for token, mark in zip(reserved, MARKS, strict=False) if token}
        self.knows_system = True
        """False where the template refuses or ignores system turns: their text then begins the first user turn."""
        self.tool_template: str | None = None
        """For turns beside descriptions of tools, where the tokenizer has another for them."""
        self._choose(reader)
        if not self.chat_template:
            raise ModelError(
                "has no chat template, so turns cannot be written as the model expects them",
                file=self.name,
                fix="give a Jinja file by model.chat_template, or use the instruct checkpoint",
            )
        self._special = frozenset(tokenizer.all_special_ids) | {
            index for index, token in tokenizer.added_tokens_decoder.items() if token.special
        }
        self._blank: dict[tuple[int, ...], bool] = {}
        text = self.probe_text()
        seen = self._seen_text() if self.place else ""
        self.pieces = Pieces(tokenizer, text + seen, {mark: token for token, mark in self._marks.items()})
        self.end_id = self._probe_end(text)
        """Token that ends an assistant turn: the last one a response learns, and where an engine has to stop."""
        self.knows_system = self._takes_system()
        self._abilities = Abilities(lambda messages, tools: self._written(messages, tools, ask=False, origin=None))

    @property
    def chosen(self) -> object:
        """What it writes by."""
        return self.chat_template if self.tool_template is None else (self.chat_template, self.tool_template)

    def text(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]],
        *,
        ask: bool,
        origin: Origin | None = None,
    ) -> str:
        """The template's text; with `ask`, up to where the assistant begins to speak.

        Raises DataError where it refuses the turns, leaves out a kind of them, or writes another number of pictures
        than they hold.
        """
        self._abilities.check(messages, tools, origin)
        return self._written(messages, tools, ask=ask, origin=origin)

    def _written(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]], *, ask: bool, origin: Origin | None
    ) -> str:
        turns = [self._turn(message, origin) for message in self._foldable(messages)]
        try:
            text = self.tokenizer.apply_chat_template(
                turns, chat_template=(self.tool_template if tools else None) or self.chat_template,
                tools=list(tools) or None, add_generation_prompt=ask, tokenize=False,
            )  # fmt: skip
        except (TemplateError, TypeError, ValueError, RecursionError) as error:
            raise DataError(
                "the chat template refuses these turns",
                file=origin.file if origin else None,
                line=origin.line if origin else None,
                field="messages",
                found=f"{'/'.join(message.role for message in messages)}: {' '.join(str(error).split())}",
                fix="bring the turns into the order the template wants, or set model.chat_template",
            ) from error
        if not isinstance(text, str):
            raise TypeError(f"apply_chat_template gave {type(text).__name__}")
        if self.place:
            self._count(text, messages, origin)
        return text

    def ids(self, text: str) -> list[int]:
        """Token ids of rendered text: the template has written all special tokens itself."""
        return self.pieces.ids((text,))[text]

    def words(self, said: str) -> str:
        """What somebody said, as `ids` takes it: a placeholder in it is letters."""
        return guarded(said, self._marks)

    def answered(
        self,
        prompt: str,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]],
        origin: Origin,
    ) -> str:
        """The text of turns of which the last answers `prompt`.

        Raises ModelError where the template does not continue the prompt, so that no boundary exists.
        """
        text = self.text(messages, tools, ask=False, origin=origin)
        if text.startswith(prompt):
            return text
        shorter = min(len(prompt), len(text))
        at = next((i for i in range(shorter) if prompt[i] != text[i]), shorter)
        raise ModelError(
            f"the chat template writes an answered turn that does not begin with its prompt ({origin})",
            file=self.name,
            found=f"prompt goes on {quote(prompt[at : at + 40])}, the turn {quote(text[at : at + 40])}",
            fix="give a template without that difference by model.chat_template",
        )

    def response(self, prompt: str, answered: str, ids: Mapping[str, list[int]], origin: Origin) -> list[int]:
        """Ids of the turn that answers `prompt`, its end-of-turn token included; `ids` holds those of both texts.

        Raises ModelError where the turn cannot be told from the prompt, or does not end like others.
        """
        before, whole = ids[prompt], ids[answered]
        if whole[: len(before)] == before:
            return self._ended(whole[len(before) :], origin)
        # A token would straddle the boundary: the answer is tokenised by itself, which is what an engine does, since it
        # never takes back a token of its prompt.
        alone = self.ids(answered[len(prompt) :])
        if self._decode([*before, *alone]) == self._decode(whole):
            return self._ended(alone, origin)
        raise ModelError(
            f"the tokens of prompt and answer cannot be told apart ({origin})",
            file=self.name,
            found=quote(prompt[-20:] + "|" + answered[len(prompt) : len(prompt) + 20]),
            fix="end the template's generation prompt with a special token or a line break",
        )

    def _decode(self, ids: Sequence[int]) -> str:
        text = self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        assert isinstance(text, str)
        return text

    def _ended(self, ids: list[int], origin: Origin) -> list[int]:
        """The ids up to the end-of-turn token; what the template writes after it belongs to the next turn's prompt."""
        end = len(ids) - ids[::-1].index(self.end_id) if self.end_id in ids else 0
        if not end or not self._says_nothing(tuple(ids[end:])):
            raise ModelError(
                f"the chat template does not end this turn like others ({origin})",
                file=self.name,
                found=quote(self._decode(ids[-12:])),
                fix="give another template by model.chat_template",
            )
        return ids[:end]

    def _says_nothing(self, ids: tuple[int, ...]) -> bool:
        """Whether these are spaces at most. Remembered, since a template ends nearly all turns alike."""
        if ids not in self._blank:
            self._blank[ids] = not self._decode(ids).strip()
        return self._blank[ids]

    def _choose(self, reader: PictureReader | None) -> None:
        """The tokenizer's template, or the processor's where only that one has a place for pictures; and whether it
        takes plain text for what a turn says, or a list of parts only (LLaVA's)."""
        own, its = self.tokenizer.chat_template, None if reader is None else reader.chat_template
        if isinstance(own, dict):  # several of names that transformers knows
            named: dict[str, str] = own
            own, self.tool_template = named.get("default"), named.get("tool_use")
        self.chat_template, self._listed = own or its, False
        if not self.place:
            return
        for template, listed in ((own, False), (own, True), (its, False), (its, True)):
            self.chat_template, self._listed = template, listed
            if template and self._sees():
                return
        self.chat_template, self._listed = own or its, False

    def _sees(self) -> bool:
        """Whether the template writes both what is said in plain turns and where a picture stands."""
        try:
            plain = self._written((Message("user", _PROBE),), (), ask=True, origin=None)
        except DataError:
            return False
        return _PROBE in plain and _PROBE in self._seen_text()

    def _seen_text(self) -> str:
        """A question about a picture."""
        try:
            turns = (Message("user", (Part("image", _PROBE), Part("text", _PROBE))),)
            return self._written(turns, (), ask=True, origin=None)
        except DataError:
            return ""

    def _count(self, text: str, messages: Sequence[Message], origin: Origin | None) -> None:
        written, wanted = text.count(self.place), len(pictures_in(messages))
        if written != wanted:
            raise DataError(
                f"the chat template writes {written} pictures for {wanted}",
                file=origin.file if origin else None,
                line=origin.line if origin else None,
                field="images",
                found="/".join(message.role for message in messages if pictures_in((message,))) or None,
                fix="let pictures stand in user turns, or give a template that takes them by model.chat_template",
            )

    def probe_text(self) -> str:
        """A question and its answer, as the template writes them now: some write the date."""
        turns = (Message("user", "question"), Message("assistant", _PROBE))
        try:
            text = self._written(turns, (), ask=False, origin=None)
        except DataError as error:
            raise ModelError(
                "has a chat template that cannot write a question and its answer", file=self.name, found=error.found
            ) from error
        if _PROBE not in text:
            raise ModelError(
                "has a chat template that leaves out what the assistant says",
                file=self.name,
                fix="give another by model.chat_template",
            )
        return text

    def _probe_end(self, text: str) -> int:
        """The first special token after the words of an assistant turn."""
        after = self.ids(text.rpartition(_PROBE)[2])
        end = next((token for token in after if token in self._special), None)
        if end is None:
            raise ModelError(
                "has a chat template that ends assistant turns without a special token: no model could learn to stop",
                file=self.name,
                found=quote(text.rpartition(_PROBE)[2]),
                fix="let the template write eos_token after each assistant turn (model.chat_template)",
            )
        return end

    def _takes_system(self) -> bool:
        try:
            turns = (Message("system", _PROBE), Message("user", "question"))
            return _PROBE in self._written(turns, (), ask=True, origin=None)
        except DataError:
            return False

    def _turn(self, message: Message, origin: Origin | None) -> dict[str, Any]:
        """A message as templates read it, calls in the OpenAI form."""
        content: object
        if isinstance(message.content, str):
            words = self.words(message.content)
            content = [{"type": "text", "text": words}] if self._listed else words
        elif not self.place:
            raise DataError(
                "holds pictures, and this checkpoint takes none",
                file=origin.file if origin else None,
                line=origin.line if origin else None,
                field="images",
                fix=f"use rows without pictures, or a checkpoint of {KNOWN}",
            )
        else:
            content = [
                {"type": "text", "text": self.words(part.value)} if part.type == "text" else {"type": "image"}
                for part in message.content
            ]
        turn: dict[str, Any] = {"role": message.role, "content": content}
        if message.tool_calls:
            turn["tool_calls"] = [{"type": "function", "function": dict(call)} for call in message.tool_calls]
        return turn

    def _foldable(self, messages: Sequence[Message]) -> Sequence[Message]:
        """The turns as the template can take them: see `knows_system`."""
        if not messages or messages[0].role != "system" or self.knows_system:
            return messages
        system, *others = messages
        if not others or others[0].role != "user":
            return [replace(system, role="user"), *others]
        first = others[0]
        content: str | tuple[Part, ...]
        if isinstance(first.content, str):
            content = f"{system.text}\n\n{first.content}"
        else:
            content = (Part("text", f"{system.text}\n\n"), *first.content)
        return [replace(first, content=content), *others[1:]]
