"""Plan files as nodes: YAML and JSON, read with line numbers, and written so that reading gives the same again.

YAML is read with the scalars of version 1.2: `1e-5` is a number, `yes` and `012` are text. JSON is YAML to this reader.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from whet.config.node import Node, describe, from_python, join
from whet.errors import ConfigError, whole

MAX_DEPTH = 40
"""Deeper nesting than any plan has; an alias that contains itself would have no end."""
CORE = "tag:yaml.org,2002:"
"""What YAML writes as `!!`."""
MOST_DIGITS = 300
"""Python reads 4300; what has more than these is no number to any key, and stays text."""
_CORE_TYPES = (
    ("tag:yaml.org,2002:null", re.compile(r"~|null|Null|NULL|"), ("~", "n", "N", "")),
    ("tag:yaml.org,2002:bool", re.compile(r"true|True|TRUE|false|False|FALSE"), tuple("tTfF")),
    ("tag:yaml.org,2002:int", re.compile(r"[-+]?(0|[1-9][0-9]*)"), tuple("-+0123456789")),
    (
        "tag:yaml.org,2002:float",
        re.compile(
            r"[-+]?(\.[0-9]+|[0-9]+\.[0-9]*)([eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
        ),
        tuple("-+.0123456789"),
    ),
)


class _Loader(yaml.SafeLoader):
    """PyYAML with the scalars of YAML 1.2, and without tags: they would be passed over, `!include` too."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012  PyYAML reads it from the class

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if getattr(event, "tag", None) is not None:
            raise yaml.MarkedYAMLError(
                problem=f"no plan has tags, such as {str(event.tag).replace(CORE, '!!')}",
                problem_mark=event.start_mark, note="write the value without it",
            )  # fmt: skip
        return super().compose_node(parent, index)


class PlanDumper(yaml.SafeDumper):
    """Writes text that this reader, and a YAML 1.1 reader, give back as it was: `1e-5` as text is quoted."""


for _tag, _pattern, _first in _CORE_TYPES:
    _whole = re.compile(rf"^(?:{_pattern.pattern})$")
    _Loader.add_implicit_resolver(_tag, _whole, list(_first))
    PlanDumper.add_implicit_resolver(_tag, _whole, list(_first))


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    """Line ends that are not `\\n` survive only where they are written as escapes."""
    style = '"' if any(end in text for end in "\r\x85\u2028\u2029") else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


PlanDumper.add_representer(str, _represent_text)


def read_source(source: str | Path | Mapping[str, Any] | None) -> Node:
    """The plan as nodes; None is an empty plan. Raises ConfigError for a file that cannot be read as a mapping."""
    if source is None:
        return Node({}, None, None, "")
    if isinstance(source, Mapping):
        return from_python(source)
    name = str(source)
    text = _read(name)
    if name.endswith(".json"):
        text = _checked_json(text, name)
    root = _parse(text, name)
    if not root.is_dict:
        raise ConfigError(
            "a plan is a mapping of keys",
            file=name,
            found=describe(root.value),
            fix="start with `model:` and `stages:`",
        )
    return root


def scalar(text: str) -> Any:
    """A bare word read as YAML reads it: number, true/false, null, else the text itself.

    >>> scalar("1e-5"), scalar("null"), scalar("a: b")
    (1e-05, None, 'a: b')
    """
    for tag, pattern, _ in _CORE_TYPES:
        if re.fullmatch(pattern, text):
            return _construct(tag, text)
    return text


def parse_value(text: str, path: str) -> Node:
    """The right side of `a.b=text`: a list, a mapping or a quoted text where it begins like one, else a bare word."""
    if text[:1] in ("[", "{", "'", '"'):
        return _parse(text, "override", path=path)
    return Node(scalar(text.strip()), "override", None, path)


def _read(name: str) -> str:
    try:
        return Path(name).read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ConfigError("no such plan file", file=name, fix="check the path") from None
    except UnicodeDecodeError as error:
        raise ConfigError(
            "not UTF-8 text", file=name, found=f"byte {error.start}", fix="save the plan as UTF-8"
        ) from None
    except OSError as error:
        raise ConfigError("cannot read the plan", file=name, found=error.strerror or str(error)) from None


def _checked_json(text: str, name: str) -> str:
    """JSON with blanks for tabs: apart from those it is YAML, whose reader keeps line numbers."""
    try:
        json.loads(text, parse_int=str)
    except json.JSONDecodeError as error:
        raise ConfigError(f"not valid JSON: {error.msg}", file=name, line=error.lineno) from None
    except RecursionError:
        raise _too_deep(name) from None
    return text.replace("\t", " ")


def _parse(text: str, file: str, *, path: str = "") -> Node:
    try:
        tree = _Loader(text).get_single_node()
    except yaml.reader.ReaderError as error:
        raise ConfigError(
            "no plan has this character",
            file=file,
            line=_line(text.count("\n", 0, error.position), file),
            field=path or None,
            found=f"U+{ord(text[error.position]):04X}",
            fix="delete it",
        ) from None
    except yaml.YAMLError as error:
        raise _yaml_error(error, file, path) from None
    except RecursionError:
        raise _too_deep(file, path) from None
    if tree is None:
        return Node({}, file, _line(0, file), path)
    return _convert(tree, file, path, _line(tree.start_mark.line, file), depth=0)


def _line(index: int, file: str) -> int | None:
    """The number of a line; an override stands on none."""
    return index + 1 if file != "override" else None


def _yaml_error(error: yaml.YAMLError, file: str, path: str) -> ConfigError:
    mark = getattr(error, "problem_mark", None)
    line = _line(mark.line, file) if mark else None
    problem = getattr(error, "problem", None) or str(error).splitlines()[0]
    return ConfigError(
        f"not valid YAML: {problem}",
        file=file,
        line=line,
        field=path or None,
        fix=getattr(error, "note", None) or "check quotes, colons and indentation",
    )


def _too_deep(file: str, path: str = "", line: int | None = None) -> ConfigError:
    return ConfigError(
        "nested too deeply", file=file, line=line, field=path or None, fix="an anchor may contain itself"
    )


def _convert(tree: yaml.Node, file: str, path: str, line: int | None, depth: int) -> Node:
    if depth > MAX_DEPTH:
        raise _too_deep(file, line=line)
    match tree:
        case yaml.MappingNode():
            return _mapping(tree, file, path, line, depth)
        case yaml.SequenceNode():
            entries = [
                _convert(entry, file, join(path, str(i)), _line(entry.start_mark.line, file), depth + 1)
                for i, entry in enumerate(tree.value)
            ]
            return Node(entries, file, line, path)
        case _:
            return Node(_construct(tree.tag, tree.value), file, line, path)


def _mapping(tree: yaml.MappingNode, file: str, path: str, line: int | None, depth: int) -> Node:
    entries: dict[str, Node] = {}
    for key_node, value_node in tree.value:
        key_line = _line(key_node.start_mark.line, file)
        if not isinstance(key_node, yaml.ScalarNode):
            raise ConfigError("a key must be text", file=file, line=key_line, field=path or None)
        key = str(key_node.value)
        if key == "<<" and key_node.style is None:
            raise ConfigError(
                "merge keys are not read", file=file, line=key_line, field=join(path, key),
                fix="write the keys out, or put what stages share at the top of the plan",
            )  # fmt: skip
        if key in entries:
            first = entries[key].line
            raise ConfigError(
                "key written twice",
                file=file,
                line=key_line,
                field=join(path, key),
                found=f"first on line {first}" if first else None,
                fix="keep one",
            )
        entries[key] = _convert(value_node, file, join(path, key), key_line, depth + 1)
    return Node(entries, file, line, path)


def _construct(tag: str, text: str) -> Any:
    match tag.rpartition(":")[2]:
        case "null":
            return None
        case "bool":
            return text.lower() == "true"
        case "int":
            return int(text) if len(text) <= MOST_DIGITS else text
        case "float":
            return float(re.sub(r"\.(?=[in])", "", text, flags=re.IGNORECASE))
        case _:
            return whole(text)  # JSON writes what lies beyond 16 bits as two escapes


def to_yaml(value: object) -> str:
    """Plain values as YAML that `read_source` gives back unchanged."""
    return str(yaml.dump(value, Dumper=PlanDumper, sort_keys=False, allow_unicode=True, width=10_000))
