"""What pydantic found wrong with a plan, as one line a person can act on.

plan.yaml:7: train.epochs: must be a whole number (found 2.5)
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from whet.config.base import MOST
from whet.config.catalogue import entries, paths, stage_models, suggest, top_keys
from whet.config.node import Node, describe, join
from whet.config.rules import TAG
from whet.config.values import NO_ZERO_BYTE
from whet.errors import ConfigError, nearest

FIXES = {
    "model.path": "give a checkpoint directory or hub id, e.g. model.path=Qwen/Qwen3-0.6B",
    "model": "give a checkpoint directory or hub id, e.g. model.path=Qwen/Qwen3-0.6B",
}
PATTERNS = {
    r"^https?://": "must begin with http:// or https://",
    r"^[^/]+/.+$": "must be TASK/METRIC, e.g. held_out/accuracy",
    TAG: "must begin with a letter, and be made of letters, digits, - and _",
    NO_ZERO_BYTE: "must not hold the byte 0",
}
"""Rules of texts in words; any other is that of names."""


@dataclass(frozen=True, slots=True)
class Issue:
    """One complaint at one place."""

    node: Node
    path: str
    """Dotted path as the user wrote it."""
    problem: str
    found: str | None = None
    fix: str | None = None


def plan_error(error: ValidationError, root: Node) -> ConfigError:
    """The first mistake in words, the others counted. `root` is what was validated, as nodes."""
    details = error.errors(include_url=False)
    places = [detail["loc"] for detail in details]
    inner = [detail for detail in details if not any(_holds(detail["loc"], place) for place in places)]
    issues = _distinct([_issue(detail, root) for detail in inner])
    first, more = issues[0], len(issues) - 1
    fix = "; ".join(text for text in (first.fix, f"and {more} more" if more else None) if text)
    return ConfigError(
        first.problem,
        file=first.node.file,
        line=first.node.line,
        field=first.path or None,
        found=first.found,
        fix=fix or None,
    )


def _holds(outer: tuple[int | str, ...], place: tuple[int | str, ...]) -> bool:
    """A list is called too short where its entries are what is wrong."""
    return len(outer) < len(place) and place[: len(outer)] == outer and bool(outer)


def _distinct(issues: list[Issue]) -> list[Issue]:
    """One issue a place: the arms of a union are joined by "or", and a section is not blamed for what is inside it."""
    joined: dict[str, Issue] = {}
    for issue in issues:
        known = joined.get(issue.path)
        if known is None:
            joined[issue.path] = issue
        elif issue.problem.startswith("must be ") and issue.problem.removeprefix("must be ") not in known.problem:
            problem = f"{known.problem} or {issue.problem.removeprefix('must be ')}"
            joined[issue.path] = Issue(known.node, known.path, problem, known.found, known.fix)
    outer = {path for path in joined for other in joined if path != other and other.startswith(path + ".")}
    return [issue for path, issue in joined.items() if path not in outer] or list(joined.values())


def _issue(detail: Mapping[str, Any], root: Node) -> Issue:
    kind = str(detail["type"])
    node, key = _descend(root, detail["loc"], ends_with_key=kind in ("missing", "extra_forbidden"))
    if kind == "extra_forbidden":
        return _unknown(node.value[key], node)
    if kind == "missing":
        path = join(node.path, str(key))
        return Issue(node, path, "is required", fix=FIXES.get(path))
    if kind.startswith("union_tag"):
        return _wrong_tag(detail, node)
    if kind == "misplaced":
        node = _descend(node, detail["ctx"]["keys"], ends_with_key=False)[0]
        return Issue(node, node.path, detail["ctx"]["problem"], fix=detail["ctx"]["fix"])
    if kind == "value_error":
        node = _meant(node, str(detail["ctx"]["error"]))
    fix = FIXES.get(node.path) if isinstance(node.value, str | None) else None
    if kind == "literal_error" and isinstance(node.value, str):
        fix = _suggest_word(node.value, detail["ctx"]["expected"])
    if kind == "int_type" and isinstance(node.value, int | float) and node.value > MOST:
        return Issue(node, node.path, f"must be at most {MOST}", found=describe(node.value))
    return Issue(node, node.path, _words(kind, detail), found=_found(kind, node), fix=fix)


def _meant(section: Node, problem: str) -> Node:
    """The key of a section that a complaint about it names: one of the command line, else the first."""
    places = [(match.start(), node) for key, node in _below(section, "")
              if (match := re.search(rf"(?<![\w.]){re.escape(key)}(?!\w)", problem))]  # fmt: skip
    places.sort(key=lambda place: (place[1].file != "override", place[0], -len(place[1].path)))
    return places[0][1] if places else section


def _below(section: Node, prefix: str) -> Iterator[tuple[str, Node]]:
    """Every key that was written in a section and the sections in it, and what stands there."""
    for key, entry in section.value.items() if isinstance(section.value, dict) else ():
        yield prefix + key, entry
        yield from _below(entry, f"{prefix}{key}.")


def _descend(root: Node, location: tuple[int | str, ...], *, ends_with_key: bool) -> tuple[Node, str | int]:
    """The node a pydantic location names. Tags of unions stand in locations but not in plans; they are passed over,
    also where a section has a key of its tag's name: `reward: {type: model, model: x}`."""
    node, last, entered = root, len(location) - 1, True
    for position, step in enumerate(location):
        if position == last and ends_with_key:
            return node, step
        if entered and step in (node.get("type"), node.get("kind")):
            entered = False
            continue
        inside = node.value.get(step) if isinstance(node.value, dict) else None
        if isinstance(node.value, list) and isinstance(step, int) and step < len(node.value):
            inside = node.value[step]
        node, entered = inside or node, inside is not None
    return node, ""


def _unknown(node: Node, holder: Node) -> Issue:
    """A key no model has. An override that went further down is named whole."""
    while node.file == "override" and isinstance(node.value, dict) and len(node.value) == 1:
        node = next(iter(node.value.values()))
    general = _general(node.path)
    kind = holder.get("kind")
    elsewhere = sorted({entry.kind for entry in entries() if entry.path == general and entry.kind})
    if general in paths() and kind in stage_models() and elsewhere and kind not in elsewhere:
        return Issue(
            node, node.path, f"a stage of kind {kind} has no such key", fix=f"it belongs to {', '.join(elsewhere)}"
        )
    near = suggest(general)
    if near in (None, general):
        return Issue(node, node.path, "unknown key", fix="`whet explain` lists every key")
    return Issue(node, node.path, "unknown key", fix=f"did you mean {near}?")


def _general(path: str) -> str:
    """The key without its place in lists: `stages.0.train.lr` -> `train.lr`, `tasks.2.data.x` -> `tasks.data.x`."""
    parts = path.split(".")
    if parts[0] == "stages" and len(parts) > 2:
        parts = parts[2:]
    elif len(parts) > 1 and parts[1] in top_keys() and ".".join(parts[:2]) not in paths():
        parts = parts[1:]  # the name of a stage
    return ".".join(part for part in parts if not part.isdecimal())


def _wrong_tag(detail: Mapping[str, Any], node: Node) -> Issue:
    """A section whose `kind` or `type` is missing or unknown."""
    key = str(detail["ctx"]["discriminator"]).strip("'")
    entry = node.value.get(key) if isinstance(node.value, dict) else node if isinstance(node.value, str) else None
    if entry is None:
        return Issue(
            node,
            join(node.path, key),
            "is required",
            fix=f"`whet explain {_general(join(node.path, key))}` lists the choices",
        )
    near = _suggest_word(str(entry.value), detail["ctx"]["expected_tags"])
    return Issue(
        entry,
        entry.path,
        f"must be one of {_unquoted(detail['ctx']['expected_tags'])}",
        found=describe(entry.value),
        fix=near,
    )


def _suggest_word(word: str, expected: str) -> str | None:
    near = nearest(word, _unquoted(expected).replace(" or ", ", ").split(", "))
    return f"did you mean {near}?" if near else None


def _unquoted(expected: str) -> str:
    return expected.replace("'", "")


def _found(kind: str, node: Node) -> str | None:
    return None if kind == "value_error" else describe(node.value)


def _words(kind: str, detail: Mapping[str, Any]) -> str:
    """The rule that was broken."""
    context = detail.get("ctx", {})
    match kind:
        case "greater_than_equal":
            return f"must be at least {_number(context['ge'])}"
        case "greater_than":
            return f"must be greater than {_number(context['gt'])}"
        case "less_than_equal":
            return f"must be at most {_number(context['le'])}"
        case "less_than":
            return f"must be less than {_number(context['lt'])}"
        case "literal_error" if " " in context["expected"]:
            return f"must be one of {_unquoted(context['expected']).replace(' or ', ', ')}"
        case "literal_error":
            return f"must be {_unquoted(context['expected'])}"
        case "int_type" | "int_parsing" | "int_from_float" | "int_parsing_size":
            return "must be a whole number"
        case "float_type" | "float_parsing" | "finite_number":
            return "must be a number"
        case "bool_type" | "bool_parsing":
            return "must be true or false"
        case "string_type":
            return "must be text"
        case "string_pattern_mismatch":
            return PATTERNS.get(context["pattern"], "must be made of letters, digits, - and _")
        case "string_too_short":
            return "must not be empty"
        case "string_too_long":
            return f"must have at most {context['max_length']} characters"
        case "model_type" | "model_attributes_type" | "dict_type":
            return "must be a section of keys"
        case "tuple_type" | "list_type":
            return "must be a list"
        case "too_short" if context["min_length"] == 1:
            return "must have at least 1 entry"
        case "too_long" | "too_short":
            return f"must have {context.get('max_length', context.get('min_length'))} entries"
        case "value_error":
            return str(context["error"])
        case _:
            return str(detail["msg"])


def _number(bound: int | float) -> str:
    return str(int(bound)) if bound == int(bound) else f"{bound:g}"
