"""What all sections of a plan share: frozen, strict about names and kinds, documented where the field stands."""

from __future__ import annotations

from functools import cache
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, ConfigDict, model_validator
from pydantic_core import PydanticCustomError

MOST = 2**31
"""Nothing a plan counts goes beyond it; what may, a seed, has a bound of its own."""


class Section(BaseModel):
    """A part of a plan. The text under a field is its documentation: `whet explain` prints it."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _of_their_kind(cls, data: object) -> object:
        """pydantic would take true for 1, 'off' for false, and a count that fills no memory there is."""
        if not isinstance(data, dict):
            return data
        return {key: _kept(value, *_scalars(cls, key)) if key in cls.model_fields else value
                for key, value in data.items()}  # fmt: skip


class _Refused:
    """Stands for a value of another kind than its field's: no field takes it, and pydantic says what it wants."""


def _kept(value: object, scalars: frozenset[object], bounded: bool) -> object:
    numbers = scalars & {int, float}
    match value:
        case list() | tuple():
            return [_kept(entry, scalars, bounded) for entry in value]
        case bool() if numbers and bool not in scalars:
            return _Refused()
        case int() | float() if bool in scalars and not numbers and not isinstance(value, bool):
            return _Refused()
        case int() | float() if numbers == {int} and not bounded and value > MOST:
            return _Refused()
        case str() if (numbers or bool in scalars) and str not in scalars and value not in scalars:
            return _Refused()
    return value


@cache
def _scalars(model: type[Section], name: str) -> tuple[frozenset[object], bool]:
    """The types of scalars and the words that a field takes, and whether it has an upper bound of its own."""
    info = model.model_fields[name]
    bounded = any(hasattr(rule, "le") or hasattr(rule, "lt") for rule in info.metadata)
    return frozenset(_within(info.annotation)), bounded


def _within(annotation: Any) -> set[object]:
    if isinstance(annotation, type) and annotation in (int, float, bool, str):
        return {annotation}
    if get_origin(annotation) is Literal:
        return set(get_args(annotation))
    if get_origin(annotation) is dict:
        return set()
    return {found for part in get_args(annotation) for found in _within(part)}


def misplaced(problem: str, *keys: str | int, fix: str | None = None) -> PydanticCustomError:
    """A mistake that a section finds further down, at these keys."""
    return PydanticCustomError("misplaced", "{problem}", {"problem": problem, "keys": keys, "fix": fix})


def named(value: object) -> object:
    """A bare word stands for the section of that `type` with its defaults: for unions that are chosen by it."""
    return {"type": value} if isinstance(value, str) else value
