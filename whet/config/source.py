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
from whet.errors import ConfigError

MAX_DEPTH = 40
"""Deeper nesting than any plan has; an alias that contains itself would have no end."""
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
    """PyYAML with the scalars of YAML 1.2."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012  PyYAML reads it from the class


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
        return _without_lines(_parse(text, "override", path=path))
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
        json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"not valid JSON: {error.msg}", file=name, line=error.lineno) from None
    return text.replace("\t", " ")


def _parse(text: str, file: str, *, path: str = "") -> Node:
    loader = _Loader(text)
    try:
        tree = loader.get_single_node()
    except yaml.YAMLError as error:
        raise _yaml_error(error, file, path) from None
    finally:
        loader.dispose()
    if tree is None:
        return Node({}, file, 1, path)
    return _convert(tree, file, path, tree.start_mark.line + 1, depth=0)


def _yaml_error(error: yaml.YAMLError, file: str, path: str) -> ConfigError:
    mark = getattr(error, "problem_mark", None)
    line = mark.line + 1 if mark and file != "override" else None
    problem = getattr(error, "problem", None) or str(error).splitlines()[0]
    return ConfigError(
        f"not valid YAML: {problem}",
        file=file,
        line=line,
        field=path or None,
        fix="check quotes, colons and indentation",
    )


def _convert(tree: yaml.Node, file: str, path: str, line: int, depth: int) -> Node:
    if depth > MAX_DEPTH:
        raise ConfigError("nested too deeply", file=file, line=line, fix="an anchor may contain itself")
    match tree:
        case yaml.MappingNode():
            return _mapping(tree, file, path, line, depth)
        case yaml.SequenceNode():
            entries = [
                _convert(entry, file, join(path, str(i)), entry.start_mark.line + 1, depth + 1)
                for i, entry in enumerate(tree.value)
            ]
            return Node(entries, file, line, path)
        case _:
            return Node(_construct(tree.tag, tree.value), file, line, path)


def _mapping(tree: yaml.MappingNode, file: str, path: str, line: int, depth: int) -> Node:
    entries: dict[str, Node] = {}
    for key_node, value_node in tree.value:
        key_line = key_node.start_mark.line + 1
        if not isinstance(key_node, yaml.ScalarNode):
            raise ConfigError("a key must be text", file=file, line=key_line, field=path or None)
        key = str(key_node.value)
        if key in entries:
            first = entries[key].line
            raise ConfigError(
                "key written twice",
                file=file,
                line=key_line,
                field=join(path, key),
                found=f"first on line {first}",
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
            return int(text)
        case "float":
            return float(re.sub(r"\.(?=[in])", "", text, flags=re.IGNORECASE))
        case _:
            # JSON writes what lies beyond 16 bits as two escapes; together they are one character.
            return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _without_lines(node: Node) -> Node:
    """An override stands on no line."""
    value = node.value
    if isinstance(value, dict):
        value = {key: _without_lines(entry) for key, entry in value.items()}
    elif isinstance(value, list):
        value = [_without_lines(entry) for entry in value]
    return Node(value, node.file, None, node.path)


def to_yaml(value: object) -> str:
    """Plain values as YAML that `read_source` gives back unchanged."""
    return str(yaml.dump(value, Dumper=PlanDumper, sort_keys=False, allow_unicode=True, width=10_000))
