"""The other end of `whet.rewards.process`: a process that calls one function again and again.

    in    pickles: the path of the function and how it is called, then calls
    out   JSON lines: {"ready": ...} or {"problem": ...}, then {"begin": n} and {"end": n, "value" or "error": ...}

A function that hangs can be ended with its process only: Python has no other way to stop a regular expression or a
large power. What the function prints goes to standard error.
"""

from __future__ import annotations

import asyncio
import faulthandler
import importlib
import importlib.util
import inspect
import json
import os
import pickle
import queue
import signal
import sys
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import ModuleType
from typing import IO, Any

from whet.rewards.value import LONGEST_ERROR, read_value

ORPHAN_SECONDS = 10.0
"""A call that takes so much longer than allowed has lost its parent: the process ends itself."""

Numbered = tuple[int, tuple[Any, ...], dict[str, Any]]
"""A call: its number, positional arguments, columns."""


class NoFunction(Exception):
    """The path names no function: what is wrong, and what may help."""

    def __init__(self, problem: str, fix: str | None = None) -> None:
        super().__init__(problem)
        self.fix = fix


def main() -> None:
    """Serve until the other end closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then closes this process
    calls, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "w", encoding="utf-8")
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(2, 1)
    path, timeout, concurrency = pickle.load(calls)
    try:
        function = load_function(path)
    except NoFunction as error:
        _tell(replies, {"problem": str(error), "fix": error.fix})
        return
    _tell(replies, {"ready": columns_taken(function)})
    if inspect.iscoroutinefunction(function):
        asyncio.run(_serve_async(function, calls, replies, timeout, concurrency))
    else:
        _serve(function, calls, replies, timeout)


def load_function(path: str) -> Callable[..., Any]:
    """The function at `module:function` or `FILE.py:function`. Raises NoFunction."""
    place, _, name = path.rpartition(":")
    if not place or not name:
        raise NoFunction("no such function", "write module:function or FILE.py:function")
    _let_find(Path(place).parent if place.endswith(".py") else Path())
    _let_find(Path())
    try:
        module = _load_file(place) if place.endswith(".py") else importlib.import_module(place)
    except Exception as error:  # an import runs the user's code, which may raise anything
        raise NoFunction(f"cannot be imported: {type(error).__name__}: {error}") from error
    function: Callable[..., Any] | None = vars(module).get(name)
    if function is None or not callable(function):
        known = sorted(
            key
            for key, value in vars(module).items()
            if inspect.isfunction(value) and value.__module__ == module.__name__
        )
        raise NoFunction(f"{place} has no function {name!r}", f"it has: {', '.join(known) or 'none'}")
    return function


def columns_taken(function: Callable[..., Any]) -> list[str] | None:
    """Names of the parameters, or None where the function takes any. One without a signature takes no columns."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:
        return []
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters):
        return None
    return [parameter.name for parameter in parameters]


def _serve(function: Callable[..., Any], calls: IO[bytes], replies: IO[str], timeout: float) -> None:
    """One call after another."""
    waiting: queue.SimpleQueue[Numbered] = queue.SimpleQueue()
    _read(calls, waiting.put)
    while True:
        number, args, columns = waiting.get()
        _tell(replies, {"begin": number})
        reply = _called(function, args, columns, timeout)
        if inspect.isawaitable(reply):
            reply = asyncio.run(_awaited(reply, timeout))
        _tell(replies, {"end": number} | reply)


async def _serve_async(
    function: Callable[..., Any], calls: IO[bytes], replies: IO[str], timeout: float, concurrency: int
) -> None:
    """Calls in order, as many at a time as are allowed."""
    loop = asyncio.get_running_loop()
    waiting: asyncio.Queue[Numbered] = asyncio.Queue()
    _read(calls, lambda call: loop.call_soon_threadsafe(waiting.put_nowait, call))

    async def work() -> None:
        while True:
            number, args, columns = await waiting.get()
            _tell(replies, {"begin": number})
            reply = _called(function, args, columns, timeout)
            if inspect.isawaitable(reply):
                reply = await _awaited(reply, timeout)
            _tell(replies, {"end": number} | reply)

    await asyncio.gather(*(work() for _ in range(concurrency)))


def _read(calls: IO[bytes], put: Callable[[Numbered], object]) -> None:
    """Hand on what comes in, from a thread of its own: once nobody waits any more the process ends, call or not."""

    def read() -> None:
        try:
            while True:
                put(pickle.load(calls))
        except EOFError:
            os._exit(0)

    threading.Thread(target=read, daemon=True).start()


def _called(function: Callable[..., Any], args: tuple[Any, ...], columns: dict[str, Any], timeout: float) -> Any:
    """The reply to a call, or the awaitable that will give the value."""
    with open(os.devnull, "w") as nothing:
        faulthandler.dump_traceback_later(2 * timeout + ORPHAN_SECONDS, exit=True, file=nothing)
        try:
            value = function(*args, **columns)
        except Exception as error:  # whatever a user's function raises is a fact about this call
            return _raised(error)
        finally:
            faulthandler.cancel_dump_traceback_later()
    return value if inspect.isawaitable(value) else read_value(value)


async def _awaited(value: Awaitable[Any], timeout: float) -> dict[str, Any]:
    try:
        async with asyncio.timeout(timeout) as limit:
            said = await value
    except Exception as error:
        return {"error": f"took longer than {timeout:g} s"} if limit.expired() else _raised(error)
    return read_value(said)


def _raised(error: Exception) -> dict[str, Any]:
    return {"error": f"raised {type(error).__name__}: {error}"[:LONGEST_ERROR]}


def _tell(replies: IO[str], message: dict[str, Any]) -> None:
    replies.write(json.dumps(message) + "\n")
    replies.flush()


def _let_find(folder: Path) -> None:
    """Modules of the user's stand where the command is called or beside the file, and `whet` does not look there."""
    if (name := str(folder.resolve())) not in sys.path:
        sys.path.append(name)  # behind what is installed: a folder here may be called like a package


def _load_file(place: str) -> ModuleType:
    file = Path(place)
    if not file.is_file():
        raise FileNotFoundError(f"no such file: {place}")
    name = f"whet_user_{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None, "a .py path has a loader"
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickling look their module up by name
    spec.loader.exec_module(module)
    return module
