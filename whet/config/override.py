"""`a.b=c` on the command line: sets one key of the plan, whatever it says.

    train.epochs=2    model.lora=null    data.files=[a.json, b.json]    stages.sft.train.epochs=2    sft.train.epochs=2

List entries are named by number, or by `name` (stages and tasks; without one, a stage by its kind, a task by its type).
"""

from __future__ import annotations

from collections.abc import Sequence

from whet.config.catalogue import paths, top_keys
from whet.config.node import Node, describe, join
from whet.config.source import parse_value
from whet.errors import ConfigError, nearest


def apply_overrides(root: Node, overrides: Sequence[str], *, kind: str | None = None) -> Node:
    """The plan with every override applied in order. `kind` is the verb's, where a single stage is run."""
    for text in overrides:
        key, equals, value = text.partition("=")
        key = key.strip()
        if not equals or not all(key.split(".")):
            raise ConfigError(
                "not an override", file="override", found=repr(text), fix="write key=value, e.g. train.epochs=2"
            )
        root = _set(root, _address(root, key, kind), parse_value(value, key), key)
    return root


def is_repeat(stage: Node) -> bool:
    """Whether an entry of `stages` is rounds of stages instead of one."""
    return stage.is_dict and "repeat" in stage.value


def stage_names(stages: Sequence[Node]) -> list[str]:
    """The name of each stage: its own, else its kind, with a number where that is taken. Rounds are called `round`."""
    taken = {str(stage.get("name")) for stage in stages if is_named(stage)}
    numbers: dict[str, int] = {}
    names = []
    for stage in stages:
        name = str(stage.get("name"))
        if not is_named(stage):
            kind = str(stage.value if isinstance(stage.value, str) else stage.get("kind"))
            kind = name = "round" if is_repeat(stage) else kind
            while name in taken:
                numbers[kind] = numbers.get(kind, 1) + 1
                name = f"{kind}-{numbers[kind]}"
            taken.add(name)
        names.append(name)
    return names


def is_named(stage: Node) -> bool:
    """Whether a stage says its name; null and an empty text are none."""
    return stage.get("name") not in (None, "")


def _address(root: Node, key: str, kind: str | None) -> list[str]:
    """The path to walk: a stage's name in front stands for `stages.NAME`, and for nothing where a verb runs just it.

    `reward` names a section and a kind of stage: what follows decides, `reward.type` or `reward.train.epochs`.
    """
    segments = key.split(".")
    if len(segments) == 1:
        return segments
    stages = root.value.get("stages")
    listed = stage_names(stages.value) if stages is not None and isinstance(stages.value, list) else []
    inside = _in_rounds(stages.value, listed) if listed and kind is None and stages is not None else {}
    names = [*listed, *inside] if kind is None else [kind, str(root.get("name"))]
    both = segments[0] in top_keys() and segments[0] in names
    if segments[0] in top_keys() and not (both and ".".join(segments[:2]) not in paths()):
        return segments
    if kind is not None:
        return segments[1:] if segments[0] in names else segments
    if segments[0] in inside and segments[0] not in listed:
        return ["stages", inside[segments[0]], "stages", *segments]
    if segments[0] in names:
        return ["stages", *segments]
    near = nearest(segments[0], names)
    if near and not nearest(segments[0], top_keys()):
        raise ConfigError(
            "unknown key", file="override", field=key, fix=f"did you mean {'.'.join([near, *segments[1:]])}?"
        )
    return segments


def _in_rounds(stages: Sequence[Node], names: Sequence[str]) -> dict[str, str]:
    """Names of stages that are repeated, and of the rounds they belong to."""
    found: dict[str, str] = {}
    for stage, name in zip(stages, names, strict=True):
        body = stage.value.get("stages") if is_repeat(stage) else None
        if body is not None and isinstance(body.value, list):
            found |= dict.fromkeys(stage_names(body.value), name)
    return found


def _set(node: Node | None, segments: Sequence[str], value: Node, key: str, depth: int = 0) -> Node:
    """`node` with `value` at `segments`; sections that are absent or null are made on the way."""
    if not segments:
        return value
    first, rest = segments[0], segments[1:]
    if node is None or node.value is None:
        path = ".".join(key.split(".")[:depth])
        node = Node([] if first == "0" else {}, "override", None, path)
    if isinstance(node.value, list):
        entries = list(node.value)
        index = _index(node, first, key)
        entries[index : index + 1] = [
            _set(entries[index] if index < len(entries) else None, rest, value, key, depth + 1)
        ]
        return node.replace(entries)
    if isinstance(node.value, str) and node.path.startswith("stages."):
        node = node.replace({"kind": Node(node.value, node.file, node.line, join(node.path, "kind"))})
    if isinstance(node.value, str) and node.path.rpartition(".")[2] in ("engine", "launch", "sharding"):
        node = node.replace({"type": Node(node.value, node.file, node.line, join(node.path, "type"))})
    if not isinstance(node.value, dict):
        raise ConfigError(
            f"{node.path} has no keys",
            file="override",
            field=key,
            found=describe(node.value),
            fix="set the whole of it",
        )
    return node.with_entry(first, _set(node.value.get(first), rest, value, key, depth + 1))


def _index(node: Node, name: str, key: str) -> int:
    """Position of a list entry by number (one past the end adds an entry) or by name."""
    if name.isdecimal():
        if int(name) > len(node.value):
            raise ConfigError(f"no entry {name}", file="override", field=key, found=f"{len(node.value)} entries")
        return int(name)
    of_stages = node.path.split(".")[-1] == "stages"
    names = stage_names(node.value) if of_stages else [_entry_name(entry) for entry in node.value]
    if name in names:
        return names.index(name)
    near = nearest(name, names)
    raise ConfigError(
        f"no entry called {name!r}",
        file="override",
        field=key,
        found=", ".join(names) or "an empty list",
        fix=f"did you mean {near!r}?" if near else "use a name or a number",
    )


def _entry_name(entry: Node) -> str:
    return str(entry.get("name") or entry.get("type") or entry.get("path") or "")
