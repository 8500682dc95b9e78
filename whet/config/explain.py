"""`whet explain`: what a key of the plan means, which values it takes, its default, and where it applies.

whet explain train.learning_rate      one key
whet explain train                    a section
whet explain                          everything, a line a key
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterable, Sequence
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from whet.config.catalogue import Entry, entries, entries_of, paths, sections, stage_models, suggest
from whet.config.verl import PREFIX, Verl
from whet.errors import ConfigError, nearest

WIDTH = 100
PLAN_KEYS = {
    "seed": "Fills every seed of the plan that is not set: data, train, rollout and tasks. A whole number.",
    "stages": "What is done, in order: sections with a `kind`; a bare word, such as `sft`, is that kind's defaults. "
    "A section with `repeat` and `stages` of its own is rounds (`whet explain repeat`).",
    "loops": "In plan.yaml of a run: what each `repeat` became, its stages by name. Not written by hand.",
}
REPEATED = (
    "watch", "tasks.data", "tasks.judge", "tasks.checker", "data.eval_files", "objective.parts.objective",
    "reward.parts.reward", "engine", "judge.engine", "reward.engine", "source.rollout", "exclude", "seen",
)  # fmt: skip
"""Sections with keys that stand elsewhere too; a long list leaves them out."""
SAME = (
    "watch.* has the keys of tasks.*; tasks.data.*, tasks.judge.*, tasks.checker.* those of data.*, judge.*,\n"
    "checker.*; objective.parts.objective.* those of objective.*; reward.parts.reward.* those of reward.*;\n"
    "engine.*, judge.engine.*, reward.engine.* those of rollout.engine.*; source.rollout.* those of rollout.*;\n"
    "exclude.*, seen.* those of data.*\n"
    "`whet export verl` has keys of its own: `whet explain verl`"
)
HEAD = """\
Keys of a plan. A section at the top (data, train, ...) is a default for every stage that has it; what a stage says
itself wins. Any key can be set on the command line: `train.epochs=2`, or `sft.train.epochs=2` for one stage.
"""


def explain(key: str | None = None) -> str:
    """The text for a key, a section, or (None) the whole plan. Raises ConfigError for a key that no plan has."""
    if key is None:
        return _everything()
    if f"{key}.".startswith(PREFIX):
        return _verl(key)
    texts = [_stage(key)] if key in stage_models() else []
    found = [entry for entry in entries() if entry.path == key]
    if found:
        inside = [entry for entry in entries() if entry.path.startswith(key + ".")]
        texts.append("\n".join([_one(key, found), *([_table(inside, strip=key + ".")] if inside else [])]))
    if texts:  # `reward` is a stage, and a section of others
        return "\n\n".join(texts)
    if key in PLAN_KEYS:
        return f"{key}\n{_wrapped(PLAN_KEYS[key])}"
    near = suggest(key)
    raise ConfigError(
        "no plan has this key", field=key, fix=f"did you mean {near}?" if near else "`whet explain` lists every key"
    )


def _everything() -> str:
    shown = [entry for entry in entries() if not entry.path.startswith(tuple(f"{key}." for key in REPEATED))]
    kinds = ", ".join(stage_models())
    rest = "\n".join(f"  {key:<30} {text}" for key, text in PLAN_KEYS.items())
    return f"{HEAD}\n{rest}\n{'':2}Kinds of stage: {kinds} (`whet explain sft`)\n\n{_table(shown)}\n{SAME}"


def _verl(key: str) -> str:
    """Keys of `whet export verl`, or one of them."""
    options = entries_of(Verl, PREFIX.rstrip("."))
    if key == PREFIX.rstrip("."):
        return f"Keys of `whet export verl`, on its command line: verl.nnodes=2\n{_table(options)}"
    found = [entry for entry in options if entry.path == key]
    if not found:
        near = nearest(key, [entry.path for entry in options])
        fix = f"did you mean {near}?" if near else "`whet explain verl` lists every key"
        raise ConfigError("`whet export verl` has no such key", field=key, fix=fix)
    return _one(key, found, where="`whet export verl`")


def _stage(kind: str) -> str:
    hidden = tuple(f"{key}." for key in REPEATED)
    own = [entry for entry in entries() if entry.kind == kind and not entry.path.startswith(hidden)]
    return f"{kind}: {(stage_models()[kind].__doc__ or '').strip()}\n{_table(own)}"


def _one(key: str, found: Sequence[Entry], *, where: str | None = None) -> str:
    """Everything about one key."""
    info = found[0].info
    lines = [key, *_texts(found), f"  type      {_values(found)}"]
    if not sections(info.annotation) or info.is_required():
        lines += [f"  default   {line}" for line in _defaults(found)]
    lines.append(f"  where     {where or _where(found)}")
    return "\n".join(lines)


def _texts(found: Sequence[Entry]) -> list[str]:
    """What the key means: its own text, one a type or kind of stage where they differ, else the texts of its types."""
    by_text: dict[str, list[str]] = {}
    for entry in found:
        if entry.info.description:
            by_text.setdefault(entry.info.description, []).append(entry.tag or entry.kind)
    if len(by_text) > 1:
        return [_wrapped(f"{', '.join(dict.fromkeys(kinds))}: {text}") for text, kinds in by_text.items()]
    models = dict.fromkeys(model for entry in found for model in sections(entry.info.annotation))
    typed = [model for model in models if "type" in model.model_fields] if len(models) > 1 else []
    meanings = [f"type {model.model_fields['type'].default}: {model.__doc__}" for model in typed]
    own = list(by_text) or ([] if typed else [str(model.__doc__) for model in models])
    return [_wrapped(text) for text in own + meanings]


def _values(found: Sequence[Entry]) -> str:
    words = [_type(entry.info.annotation, entry.info.metadata) for entry in found]
    return " | ".join(dict.fromkeys(words))


def _defaults(found: Sequence[Entry]) -> list[str]:
    """One line where all agree, else a line for each kind of stage or type that differs."""
    by_default: dict[str, list[str]] = {}
    for entry, default in _given(found):
        place = ", ".join(text for text in (entry.kind, f"type {entry.tag}" if entry.tag else "") if text)
        by_default.setdefault(default, []).append(place)
    if len(by_default) == 1:
        return list(by_default)
    return [f"{default} ({'; '.join(dict.fromkeys(places))})" for default, places in by_default.items()]


def _where(found: Sequence[Entry]) -> str:
    kinds = list(dict.fromkeys(entry.kind for entry in found if entry.kind))
    tags = list(dict.fromkeys(entry.tag for entry in found if entry.tag))
    where = f"stages: {', '.join(kinds)}" if kinds else "the plan"
    return where + (f"; type: {', '.join(tags)}" if tags else "")


def _table(rows: Iterable[Entry], *, strip: str = "") -> str:
    """A line a key: name, default, first sentence."""
    grouped: dict[str, list[Entry]] = {}
    for entry in rows:
        grouped.setdefault(entry.path, []).append(entry)
    lines = []
    for path, found in grouped.items():
        is_section = bool(sections(found[0].info.annotation))
        told = [entry for entry in found if entry.info.description or entry is found[0]]
        text = " / ".join(dict.fromkeys(entry.info.description or _meaning(found) for entry in told))
        default = "" if is_section else " / ".join(dict.fromkeys(default for _, default in _given(found)))
        default = default if len(default) <= 30 else default[:27] + "..."
        meaning = textwrap.shorten(text, WIDTH, placeholder=" ...")
        lines.append(f"  {path.removeprefix(strip):<30} {default:<14} {meaning}".rstrip())
    return "\n".join(lines)


def _meaning(found: Sequence[Entry]) -> str:
    """Of a key without a text of its own: what its section is, else which values it takes."""
    models = sections(found[0].info.annotation)
    return str(models[0].__doc__) if len(models) == 1 else _values(found)


def _given(found: Sequence[Entry]) -> list[tuple[Entry, str]]:
    """Each entry with its default. A `type` that tells sections apart has that of the section where none is written;
    its own in each of them is the type itself."""
    if len({entry.tag for entry in found}) < 2 or any(entry.default != entry.tag for entry in found):
        return [(entry, _default(entry)) for entry in found]
    section = found[0].path.rpartition(".")[0]
    chosen = [(entry, getattr(entry.default, "type", "required")) for entry in entries() if entry.path == section]
    return chosen or [(entry, "required") for entry in found]


def _default(entry: Entry) -> str:
    if entry.info.is_required():
        return "required"
    value = entry.default
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json")
    return value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False, default=str)


def _type(annotation: Any, limits: Iterable[Any] = ()) -> str:
    """A type in words: `whole number, at least 1, or null`."""
    origin, parts = get_origin(annotation), get_args(annotation)
    plain = {int: "whole number", float: "number", str: "text", bool: "true or false", NoneType: "null"}
    if annotation in plain:
        return ", ".join([plain[annotation], *_limits(limits)])
    if annotation is Any:
        return "anything"
    if origin is Annotated and not sections(annotation):
        return _type(parts[0], parts[1:])
    if origin is Literal:
        return f"one of {', '.join(map(str, parts))}" if len(parts) > 1 else str(parts[0])
    if origin in (Union, UnionType):
        inner = [part for part in parts if part is not NoneType]
        tagged = _tags(inner)
        words = list(dict.fromkeys(tagged if sections(part) and tagged else _type(part, limits) for part in inner))
        return " or ".join(words + (["null"] if NoneType in parts else []))
    if origin is tuple:
        return f"list of {_type(parts[0])}" if parts[-1] is Ellipsis else f"list of {len(parts)}: {_type(parts[0])}"
    if origin is dict:
        return f"mapping of {_type(parts[0])} to {_type(parts[1])}"
    return _tags([annotation]) or "section"


def _tags(annotations: Iterable[Any]) -> str | None:
    """Sections that their `type` tells apart; None where there are not several."""
    models = [model for annotation in annotations for model in sections(annotation)]
    types = dict.fromkeys(str(model.model_fields["type"].default) for model in models if "type" in model.model_fields)
    return f"section, type one of {', '.join(types)}" if len(types) > 1 else None


def _limits(limits: Iterable[Any]) -> list[str]:
    words = []
    for limit in limits:
        match limit:
            case FieldInfo(metadata=inner):
                words += _limits(inner)
            case Ge(ge=bound):
                words.append(f"at least {bound}")
            case Gt(gt=bound):
                words.append(f"greater than {bound}")
            case Le(le=bound):
                words.append(f"at most {bound}")
            case Lt(lt=bound):
                words.append(f"less than {bound}")
    return words


def _wrapped(text: str) -> str:
    return textwrap.fill(" ".join(text.split()), WIDTH, initial_indent="  ", subsequent_indent="  ")


def known_keys() -> tuple[str, ...]:
    """Every key `explain` answers for."""
    return tuple(dict.fromkeys([*paths(), *stage_models()]))
