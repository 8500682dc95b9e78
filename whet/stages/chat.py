"""A conversation with a model in the terminal: streamed, with memory, and every exchange can become a training row.

    whet chat runs/first/stages/02-dpo/adapter
    whet chat Qwen/Qwen3-0.6B --adapter runs/first/stages/01-sft/adapter --compare
    whet chat NAME --server http://127.0.0.1:8000/v1

It reads lines from standard input, so it can be piped: `echo "2 plus 3?" | whet chat MODEL`.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass, field
from io import TextIOWrapper
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel

from whet.config.engine import Http
from whet.config.model import Model, Vision
from whet.data.convert import writer_of
from whet.data.decode import BadPicture, size_of
from whet.data.picture_files import bytes_of
from whet.data.render import Renderer
from whet.errors import RunError, UserError, whole
from whet.models.four_bit import trained_on
from whet.models.load import compute_dtype, load_model, pick_device
from whet.rollout.build import Answering, native_engine
from whet.rollout.engine import Engine, answers
from whet.rollout.http import http_engine
from whet.rollout.native import NativeEngine
from whet.runs.files import json_line, writing
from whet.runs.given import resolve
from whet.schema.records import Conversation as Record
from whet.schema.records import Message, Part
from whet.schema.rollouts import Asked, Sampling
from whet.stages.rendering import renderer_of

HELP = """\
  exit, quit      leave
  /reset          forget the conversation
  /system TEXT    set the system message; without TEXT, remove it
  /image PATH     show a picture with the next message
  /save           add the conversation to the file of training rows
  /help           these lines"""
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""Characters that could steer a terminal; line breaks and tabs stay."""


def chat(
    model: str,
    *,
    adapter: str | None,
    system: str | None,
    temperature: float,
    top_p: float,
    max_new_tokens: int,
    seed: int,
    compare: bool,
    precision: str,
    save: Path,
    server: str | None = None,
    token_env: str | None = None,
    vision: Vision | None = None,
) -> None:
    """Talk until `exit`, `quit` or the end of the input. With `server` the model is the one of that name there.

    Raises ModelError where the model cannot be loaded.
    """
    sampling = Sampling(max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p)
    if server is not None:
        if compare or adapter is not None:
            raise UserError("a server has a model of its own", field="--server", fix="leave out --adapter, --compare")
        if vision is not None and vision != Vision():
            raise UserError("a server has limits of its own", field="--server", fix="leave out --min/max-pixels")
        with closing(http_engine(served(server, model, token_env))) as engine:
            spoken = ServerSpeaker(engine=engine, sampling=sampling, seed=seed)
            Conversation(speaker=spoken, save=save, system=system).run(lines())
        return
    ref = resolve(model, adapter)
    if compare and ref.adapter is None:
        raise UserError("nothing to compare with", field="--compare", fix="name an adapter: --adapter DIR")
    config = Model(
        path=ref.path, adapter=ref.adapter, quantization=trained_on(ref.adapter), vision=vision or Vision()
    )  # fmt: skip
    loaded = load_model(ref, config, dtype=compute_dtype(precision, pick_device(config.device)))
    renderer = renderer_of(ref, config)
    speaker = Speaker(
        model=loaded,
        engine=native_engine(loaded, Answering.by(renderer, batch_size=1, exact=True)),
        renderer=renderer,
        sampling=sampling,
        seed=seed,
    )
    Conversation(speaker=speaker, save=save, compare=compare, system=system).run(lines())


def served(server: str, model: str, token_env: str | None) -> Http:
    """Raises UserError where it is no URL."""
    if not server.startswith(("http://", "https://")):
        raise UserError("must be a URL", field="--server", found=repr(server), fix="e.g. http://127.0.0.1:8000/v1")
    return Http(urls=(server,), model=model, token_env=token_env, retries=2)


def lines() -> Iterator[str]:
    """What the person writes, line by line; with a prompt where a person sits at the other end."""
    if isinstance(sys.stdin, TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")  # `Conversation.run` says which line is no text
    if not sys.stdin.isatty():
        yield from (line.rstrip("\n") for line in sys.stdin)
        return
    import readline  # noqa: F401  importing it gives `input` its editing and history

    print("exit or quit leaves, /help lists the commands")
    while True:
        try:
            yield input("\nyou  ")
        except (EOFError, KeyboardInterrupt):
            return


@dataclass(frozen=True, slots=True, kw_only=True)
class Speaker:
    """A model that answers a conversation piece by piece."""

    model: torch.nn.Module
    engine: NativeEngine
    renderer: Renderer
    sampling: Sampling
    seed: int

    def say(self, messages: tuple[Message, ...], *, adapted: bool = True) -> Iterator[str]:
        """The answer as it is drawn. Raises ValueError where the conversation does not fit the model."""
        request = self.renderer.ask(messages).request(f"turn {len(messages)}", self.sampling, self.seed)
        with self._without_adapter() if not adapted else nullcontext():
            yield from self.engine.stream(request)

    def _without_adapter(self) -> AbstractContextManager[Any]:
        assert isinstance(self.model, PeftModel), "compare needs an adapter"
        off: AbstractContextManager[Any] = self.model.disable_adapter()
        return off


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSpeaker:
    """A model behind an API: its answer comes in one piece."""

    engine: Engine
    sampling: Sampling
    seed: int

    def say(self, messages: tuple[Message, ...], *, adapted: bool = True) -> Iterator[str]:
        """Raises ValueError with the reason where there is no answer."""
        asked = Asked(prompt_ids=(), messages=messages).request(f"turn {len(messages)}", self.sampling, self.seed)
        (completion,) = answers(self.engine, [asked])
        if completion.error is not None:
            raise ValueError(completion.error)
        yield completion.text


@dataclass(slots=True, kw_only=True)
class Conversation:
    """What was said so far, and the commands."""

    speaker: Speaker | ServerSpeaker
    save: Path
    compare: bool = False
    system: str | None = None
    turns: list[Message] = field(default_factory=list)
    pictures: list[str] = field(default_factory=list)
    """Go with the next message."""

    @property
    def messages(self) -> tuple[Message, ...]:
        head = (Message("system", self.system),) if self.system else ()
        return (*head, *self.turns)

    def run(self, lines: Iterator[str]) -> None:
        for line in lines:
            text = line.strip()
            if text.lower() in ("exit", "quit"):
                return
            if whole(text) != text:
                print("(the line cannot be read as text and is left out; write it in UTF-8)")
            elif text.startswith("/"):
                print(self.command(text))
            elif text:
                self.answer(text)

    def command(self, text: str) -> str:
        """Do what a line starting with a slash says; returns what to tell the person."""
        name, _, rest = text.partition(" ")
        match name:
            case "/reset":
                self.turns.clear()
                self.pictures.clear()
                return "The conversation is forgotten."
            case "/system":
                self.system = rest.strip() or None
                return "The system message is set." if self.system else "There is no system message now."
            case "/image":
                return self._image(rest.strip())
            case "/save":
                return self._save()
            case "/help":
                return HELP
            case _:
                return f"There is no command {name}; /help lists them."

    def answer(self, text: str) -> None:
        """Print the answer as it comes, and remember it. An interrupted answer and its question are forgotten."""
        shown, self.pictures = self.pictures, []
        parts = (*(Part("image", path) for path in shown), Part("text", text))
        self.turns.append(Message("user", parts if shown else text))
        try:
            if self.compare:
                self._print(adapted=False, title="without the adapter")
            said = self._print(adapted=True, title="with the adapter" if self.compare else "")
        except KeyboardInterrupt:
            self.turns.pop()
            print("\n(interrupted, and forgotten)")
        except (ValueError, UserError) as error:
            self.turns.pop()
            print(f"({error}; /reset starts anew)")
        else:
            self.turns.append(Message("assistant", said))

    def _print(self, *, adapted: bool, title: str) -> str:
        if title:
            print(f"[{title}]")
        pieces = []
        for piece in self.speaker.say(self.messages, adapted=adapted):
            pieces.append(piece)
            print(CONTROL.sub("", piece), end="", flush=True)
        print(flush=True)
        return "".join(pieces)

    def _image(self, name: str) -> str:
        """Show a picture, if it is one."""
        path = Path(name).expanduser().absolute()
        try:
            height, width = size_of(bytes_of(str(path)))
        except BadPicture as bad:
            return f"({bad.problem}: {bad.found or path})"
        self.pictures.append(str(path))
        return f"{path.name} ({width}×{height}) goes with your next message."

    def _save(self) -> str:
        if not self.turns:
            return "There is nothing to save yet."
        row = writer_of("messages")(Record(messages=self.messages))
        try:
            self._append(json_line(row))
        except RunError as error:
            return f"({error})"
        return f"Saved to {self.save}: {len(self.turns) // 2} exchange{'s' if len(self.turns) > 2 else ''}."

    def _append(self, line: str) -> None:
        """Add a line to the file, which may be the person's own: a last row without a line break stays."""
        with writing(self.save):
            self.save.parent.mkdir(parents=True, exist_ok=True)
            with self.save.open("a+b") as file:
                if file.tell():
                    file.seek(-1, os.SEEK_END)
                    line = line if file.read() == b"\n" else f"\n{line}"
                file.write(line.encode())
