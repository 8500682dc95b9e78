"""Rules that say whether an answer is right.

    check = build_checker(Checker(type="numeric"))
    check(Prompt(messages=(Message("user", "12 * 100?"),), reference="1,200"), "That makes 1200.")   # 1.0

A checker that raises or returns something else than a number in [0, 1] raises `CheckError`, which names the row and
the function. It is for the caller to count: a failed check is not a wrong answer.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import math
import re
import sys
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from types import ModuleType
from typing import Any, assert_never

from whet.config.rollout import Checker
from whet.errors import ConfigError, DataError
from whet.schema.records import Prompt

Check = Callable[[Prompt, str], float]

# A sign belongs to the number unless it stands after a digit, letter or bracket: "7-3" ends in 3, "x = -3" in -3.
_WHOLE = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)"
_NUMBER = re.compile(rf"(?:(?<![\w)\]])[-\u2212]\$?)?(?:{_WHOLE}(?:\.[0-9]+)?|(?<![\w.])\.[0-9]+)")


class CheckError(DataError):
    """An answer that could not be checked: the row or the function is at fault, not the answer."""


def build_checker(config: Checker) -> Check:
    """The function of a checker section. Raises ConfigError where a custom function cannot be imported."""
    match config.type:
        case "exact":
            return _exact
        case "contains":
            return _contains
        case "numeric":
            return _numeric
        case "custom":
            assert config.path is not None, "the config model requires it"
            return _custom(config.path)
        case _:
            assert_never(config.type)


def last_number(text: str) -> Decimal | None:
    """The last number in a text: thousands separators removed, `3.50` equal to `3.5`, a leading minus kept."""
    found = _NUMBER.findall(text)
    if not found:
        return None
    return Decimal(re.sub(r"[,$]", "", found[-1]).replace("\N{MINUS SIGN}", "-"))


def _exact(prompt: Prompt, completion: str) -> float:
    return float(completion.strip() == _reference(prompt).strip())


def _contains(prompt: Prompt, completion: str) -> float:
    return float(_reference(prompt).strip() in completion)


def _numeric(prompt: Prompt, completion: str) -> float:
    expected = last_number(_reference(prompt))
    if expected is None:
        raise CheckError("the reference has no number", file=str(prompt.origin), found=repr(prompt.reference))
    return float(last_number(completion) == expected)


def _reference(prompt: Prompt) -> str:
    if prompt.reference is None or not prompt.reference.strip():
        raise CheckError(
            "no reference to check against", file=str(prompt.origin), fix="add one, or use checker.type=custom"
        )
    return prompt.reference


def _custom(path: str) -> Check:
    function = load_function(path, field="checker.path")
    takes = inspect.signature(function).parameters.values()
    every = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in takes)
    named = {parameter.name for parameter in takes}

    def check(prompt: Prompt, completion: str) -> float:
        columns: dict[str, Any] = dict(prompt.columns)
        if prompt.reference is not None:
            columns["reference"] = prompt.reference
        columns = {
            name: value
            for name, value in columns.items()
            if name not in ("prompt", "completion") and (every or name in named)
        }
        try:
            value = function(question(prompt), completion, **columns)
        except Exception as error:  # whatever a user's function raises is a fact about this row
            raise CheckError(
                f"{path} raised {type(error).__name__}: {error}",
                file=str(prompt.origin),
                fix="mend the function or the row",
            ) from error
        return _fraction(value, path, prompt)

    return check


def question(prompt: Prompt) -> str:
    """Text of the last user message."""
    return next((message.text for message in reversed(prompt.messages) if message.role == "user"), "")


def _fraction(value: object, path: str, prompt: Prompt) -> float:
    if not isinstance(value, int | float) or math.isnan(value) or not 0 <= value <= 1:
        raise CheckError(f"{path} must return a number in [0, 1]", file=str(prompt.origin), found=repr(value))
    return float(value)


def load_function(path: str, *, field: str) -> Callable[..., Any]:
    """The function at `module:function` or `FILE.py:function`."""
    place, _, name = path.rpartition(":")
    if not place or not name:
        raise ConfigError(
            "no such function", field=field, found=repr(path), fix="write module:function or FILE.py:function"
        )
    try:
        module = _load_file(place) if place.endswith(".py") else importlib.import_module(place)
    except Exception as error:  # an import runs the user's code, which may raise anything
        raise ConfigError(
            f"cannot be imported: {type(error).__name__}: {error}", field=field, found=repr(path)
        ) from error
    function: Callable[..., Any] | None = vars(module).get(name)
    if function is None or not callable(function):
        known = sorted(
            key
            for key, value in vars(module).items()
            if inspect.isfunction(value) and value.__module__ == module.__name__
        )
        raise ConfigError(f"{place} has no function {name!r}", field=field, fix=f"it has: {', '.join(known) or 'none'}")
    return function


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
