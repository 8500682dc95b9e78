"""Functions of the user's in place of the parts of rejection sampling: `functions` of a plan.

    read(files)        -> rows                      instead of reading the files of `data`
    format(row)        -> a text or messages        instead of finding the question in a row
    generate(requests) -> answers                   instead of an engine
    save(rows, folder)                              instead of accepted.jsonl and its siblings

Each part is replaced by itself, the others stay whet's. What a function raises is said with its place in the file.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from whet.config.data import Data, Source
from whet.data.jsonrows import RawRow
from whet.data.ledger import Ledger
from whet.data.locate import Place, image_folders, read_place
from whet.data.sources import stream_records
from whet.errors import ConfigError, DataError
from whet.experience.sampled import Row
from whet.rewards.worker import NoFunction, load_function
from whet.schema.records import Message, Origin, Prompt
from whet.schema.rollouts import Completion, FinishReason, Request

Function = Callable[..., Any]


def function_of(name: str, path: str) -> Function:
    """The function at a path. Raises ConfigError, for `functions.NAME`, where there is none."""
    try:
        return load_function(path)
    except NoFunction as error:
        raise ConfigError(str(error), field=f"functions.{name}", found=repr(path), fix=error.fix) from None


@contextmanager
def of_yours(name: str, path: str) -> Iterator[None]:
    """Say where a function of the user's raised what it raised."""
    try:
        yield
    except Exception as error:
        raise ConfigError(
            f"raised {_raised(error)}", field=f"functions.{name}", found=path, fix="mend the function"
        ) from error


def _raised(error: Exception) -> str:
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({Path(last.filename).name}, line {last.lineno})"


def prompts_of(
    data: Data, folders: Mapping[str, Path], read: str | None, format: str | None
) -> Callable[[Ledger], Iterator[Prompt]]:
    """What gives the prompts, anew on every call; what becomes of the rows is written into the ledger it is given."""
    reader = function_of("read", read) if read is not None else None
    formatter = function_of("format", format) if format is not None else None

    def rows(place: Place, ledger: Ledger) -> Iterator[Iterator[RawRow | DataError]]:
        files = (_read(reader, data, place.name),) if reader is not None else read_place(place, ledger)
        for file in files:
            yield file if formatter is None else _formatted(file, formatter)

    def prompts(ledger: Ledger) -> Iterator[Prompt]:
        places = None if read is None else [_nowhere(read, data)]
        asked = data if formatter is None else data.model_copy(update={"format": "prompt"})
        for record in stream_records(asked, ("prompt",), ledger, folders=folders, places=places, opener=rows):
            assert isinstance(record, Prompt), "only prompts were asked for"
            yield record

    return prompts


def _nowhere(read: str, data: Data) -> Place:
    """Rows that a function gives lie in no file."""
    return Place(
        name=read, path=None, format=data.format, columns=data.columns, images=image_folders(data, None)
    )  # fmt: skip


def _read(reader: Function, data: Data, name: str) -> Iterator[RawRow]:
    files = [file.path if isinstance(file, Source) else file for file in data.files]
    with of_yours("read", name):
        rows = iter(reader(files))
    number = 0
    while True:
        with of_yours("read", name):
            row = next(rows, None)
        if row is None:
            return
        number += 1
        if not isinstance(row, str | dict):
            raise ConfigError(
                "must give texts or mappings", field="functions.read", found=type(row).__name__, fix="see the documents"
            )
        yield Origin(file=name, line=number), row


def _formatted(rows: Iterable[RawRow | DataError], formatter: Function) -> Iterator[RawRow | DataError]:
    """The rows with what the function makes of each as their prompt. What it raises concerns its row alone."""
    for raw in rows:
        if isinstance(raw, DataError):
            yield raw
            continue
        origin, row = raw
        try:
            asked = formatter(row)
        except Exception as error:  # whatever a user's function raises is a fact about this row
            yield DataError(f"functions.format raised {_raised(error)}", file=origin.file, line=origin.line)
            continue
        if isinstance(asked, Mapping):
            yield origin, dict(asked)
        elif isinstance(asked, str | list):
            columns = row if isinstance(row, dict) else {}
            yield origin, {**columns, "prompt": asked}
        else:
            yield DataError(
                "functions.format must give a text, messages or a mapping", file=origin.file, line=origin.line,
                found=type(asked).__name__,
            )  # fmt: skip


class FunctionEngine:
    """The user's function as an engine. It is asked for some requests at a time, and answers them in their order."""

    batched = True

    def __init__(self, path: str, count: Callable[[str], int]) -> None:
        """`count` gives the number of tokens of a text."""
        self._path, self._function, self._count = path, function_of("generate", path), count

    def generate(self, requests: Iterable[Request]) -> Iterator[Completion]:
        asked = list(requests)
        with of_yours("generate", self._path):
            answers = list(self._function([request_row(request) for request in asked]))
        if len(answers) != len(asked):
            raise ConfigError(
                f"must give an answer for each of {len(asked)} requests", field="functions.generate",
                found=f"{len(answers)} answers",
            )  # fmt: skip
        for request, answer in zip(asked, answers, strict=True):
            yield self._completion(request, answer)

    def _completion(self, request: Request, answer: object) -> Completion:
        """A text, or a mapping with one; anything else is no answer, and says so."""
        text: object = answer
        finish: FinishReason = "stop"
        if isinstance(answer, Mapping):
            text, finish = answer.get("text"), "length" if answer.get("finish_reason") == "length" else "stop"
        if isinstance(text, str):
            return Completion(
                key=request.key, ids=(), text=text, logprobs=(), finish_reason=finish, counted_tokens=self._count(text)
            )
        reason = "none was given" if answer is None else f"functions.generate gave {str(answer)[:60]!r}"
        return Completion(key=request.key, ids=(), text="", logprobs=(), finish_reason="error", error=reason)

    def sync(self, version: int) -> None:
        """Nothing of whet's is behind it."""

    def close(self) -> None:
        """Nothing is held."""


def request_row(request: Request) -> Row:
    """A request as the user's function sees it."""
    return {
        "key": request.key,
        "messages": [_message(message) for message in request.messages],
        "seed": request.seed,
        **asdict(request.sampling),
    }


def _message(message: Message) -> Row:
    if isinstance(message.content, str):
        return {"role": message.role, "content": message.content}
    parts = [{"type": part.type, part.type: part.value} for part in message.content]
    return {"role": message.role, "content": parts}


class FunctionSave:
    """The user's function in place of the files: it takes the rows one at a time and writes what it likes."""

    def __init__(self, path: str) -> None:
        self._path, self._function = path, function_of("save", path)

    def __call__(self, rows: Iterator[Row], folder: Path) -> None:
        with of_yours("save", self._path):
            self._function(rows, str(folder))
