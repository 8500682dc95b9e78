"""From `repeat: K` to an ordinary list of stages, so that whatever works for stages works for rounds.

    - repeat: 2                                   - {kind: prepare, name: prepare-1}
      stages: [prepare, dpo]             ->       - {kind: dpo, name: dpo-1}
                                                  - {kind: prepare, name: prepare-2}
                                                  - {kind: dpo, name: dpo-2}

Names are those of the round: `@prepare/FILE`, `start: prepare` and the like mean the stage of the same round where it
comes earlier in it. `round_start` is the model the round started from, `@NAME*/FILE` this and all earlier rounds' file
(in the stage NAME itself: the earlier ones'), `{round}` in a file's name the number of the round. Every other name
means what it means elsewhere in the plan.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from whet.config.catalogue import model_kinds
from whet.config.complain import plan_error
from whet.config.node import Node, describe, plain
from whet.config.override import is_repeat, stage_names
from whet.config.repeat import Repeat

ROUND_START = "round_start"
NAMES_MODEL = frozenset({"start", "model", "models", "against", "path"})
"""Keys under which a stage is named as a model."""

NAMES_FILE = frozenset({"files", "eval_files", "path"})
"""Keys under which `{round}` is the number of the round: a file of its own for each."""


def unroll(stages: Sequence[Node]) -> tuple[list[Node], list[Node]]:
    """The stages one after another, and an entry of `loops` for each `repeat`. Raises ConfigError for one that cannot
    be unrolled."""
    flat: list[Node] = []
    loops: list[Node] = []
    names = stage_names(stages)
    previous = "base"
    for entry, name in zip(stages, names, strict=True):
        if not is_repeat(entry):
            flat.append(entry)
            previous = name if _makes_model(entry, stages, names) else previous
            continue
        settings, body = _read(entry)
        body_names = stage_names(body)
        makers = [n for stage, n in zip(body, body_names, strict=True) if _makes_model(stage, body, body_names)]
        if not makers:
            raise entry.value["stages"].error("no stage of the rounds trains a model", fix="add one, e.g. dpo")
        _check_metric(entry, settings, body)
        start, rounds, models = previous, list[list[str]](), list[str]()
        for number in range(1, settings.repeat + 1):
            scope = _Scope(tuple(body_names), number, previous)
            flat += [scope.resolve(stage, index) for index, stage in enumerate(body)]
            rounds.append([scope.called(n) for n in body_names])
            previous = scope.called(makers[-1])
            models.append(previous)
        loops.append(_node(entry, {
            **settings.model_dump(mode="json"), "name": name, "start": start, "rounds": rounds, "models": models,
        }))  # fmt: skip
        previous = name
    return flat, loops


def _read(entry: Node) -> tuple[Repeat, list[Node]]:
    """The keys of a repeat, checked, and its stages as mappings with a kind."""
    listed = entry.value.get("stages")
    if listed is None or not isinstance(listed.value, list) or not listed.value:
        found = describe(listed.value) if listed is not None else None
        raise (listed or entry).error("a repeat has a list of stages", found=found, fix="e.g. stages: [prepare, dpo]")
    for stage in listed.value:
        if is_repeat(stage):
            raise stage.error("a repeat inside a repeat", fix="write its stages out")
    own = entry.replace({key: value for key, value in entry.value.items() if key != "stages"})
    try:
        settings = Repeat.model_validate(plain(own))
    except ValidationError as error:
        raise plan_error(error, own) from None
    return settings, listed.value


def _check_metric(entry: Node, settings: Repeat, body: Sequence[Node]) -> None:
    """`metric` is of a task that is measured in every round."""
    if settings.metric is None:
        return
    wanted = settings.metric.partition("/")[0]
    evaluations = [stage for stage in body if stage.get("kind") == "evaluate"]
    listed = [stage.get("tasks") for stage in evaluations]
    tasks = [task for found in listed if isinstance(found, list) for task in found]
    names = [str(task.get("name") or task.get("type")) for task in tasks]
    if not evaluations or (names and wanted not in names):
        raise entry.value["metric"].error(
            "no evaluate stage of the rounds has such a task", found=repr(wanted),
            fix=f"its tasks are {', '.join(names)}" if names else "add an evaluate stage to the rounds",
        )  # fmt: skip


def _makes_model(stage: Node, others: Sequence[Node], names: Sequence[str]) -> bool:
    """Whether `previous` is another model behind this stage. A merged reward model is no language model."""
    kind = stage.get("kind")
    if kind == "merge" and stage.is_dict and (start := stage.get("start")) in names:
        return not is_repeat(others[names.index(start)]) and others[names.index(start)].get("kind") != "reward"
    return isinstance(kind, str) and kind in model_kinds()


@dataclass(frozen=True, slots=True)
class _Scope:
    """One round: what its names stand for."""

    names: tuple[str, ...]
    number: int
    start: str

    def called(self, name: str, number: int | None = None) -> str:
        return f"{name}-{number or self.number}"

    def resolve(self, stage: Node, index: int) -> Node:
        """The stage as it stands in this round."""
        if not stage.is_dict:
            raise stage.error("a stage is a kind or a mapping", found=describe(stage.value))
        entries = {key: self._walk(entry, key, index) for key, entry in stage.value.items() if key != "name"}
        if stage.get("kind") == "prompts":
            entries["seen"] = self._with_earlier(entries.get("seen", stage.replace({})), index)
        named = stage.value.get("name", stage).replace(self.called(self.names[index]))
        return stage.replace({"kind": stage.value.get("kind", stage), "name": named} | entries)

    def _with_earlier(self, seen: Node, index: int) -> Node:
        """The prompts of earlier rounds, beside what is called seen already."""
        if not seen.is_dict:
            return seen
        name = self.names[index]
        earlier = [f"@{self.called(name, number)}/prompts.jsonl" for number in range(1, self.number)]
        files = seen.value.get("files", seen.replace([]))
        listed = files.value if isinstance(files.value, list) else [files]
        known = [entry.value for entry in listed]
        return seen.with_entry("files", files.replace(
            [*listed, *(files.replace(file) for file in earlier if file not in known)]
        ))  # fmt: skip

    def _walk(self, node: Node, key: str, index: int) -> Node:
        value = node.value
        if isinstance(value, dict):
            return node.replace({name: self._walk(entry, name, index) for name, entry in value.items()})
        if isinstance(value, list):
            return node.replace([one for entry in value for one in self._entries(entry, key, index)])
        return node.replace(self._word(node, key, index)) if isinstance(value, str) else node

    def _entries(self, entry: Node, key: str, index: int) -> list[Node]:
        """An entry of a list; `@NAME*/FILE` is one a round."""
        place = entry.value if isinstance(entry.value, str) else entry.get("path")
        name, slash, file = place[1:].partition("/") if isinstance(place, str) and place[:1] == "@" else ("", "", "")
        if not name.endswith("*") or name[:-1] not in self.names:
            return [self._walk(entry, key, index)]
        place_of = self.names.index(name[:-1])
        last = self.number if place_of < index else self.number - 1
        files = [f"@{self.called(name[:-1], number)}{slash}{file}" for number in range(1, last + 1)]
        if isinstance(entry.value, str):
            return [entry.replace(text) for text in files]
        return [entry.with_entry("path", entry.value["path"].replace(text)) for text in files]

    def _word(self, node: Node, key: str, index: int) -> str:
        text = str(node.value)
        if key in NAMES_FILE:
            text = text.replace("{round}", str(self.number))
        if text.startswith("@"):
            name, slash, file = text[1:].partition("/")
            return f"@{self._stage(name, node, index)}{slash}{file}" if name in self.names else text
        if key in NAMES_MODEL and text == ROUND_START:
            return self.start
        return self._stage(text, node, index) if key in NAMES_MODEL and text in self.names else text

    def _stage(self, name: str, node: Node, index: int) -> str:
        if self.names.index(name) >= index:
            raise node.error(
                f"{name!r} comes later in its round", found=describe(node.value),
                fix=f"`{ROUND_START}` is the model a round starts from; `@{name}*/FILE` a file of all earlier rounds",
            )  # fmt: skip
        return self.called(name)


def _node(entry: Node, values: Mapping[str, Any]) -> Node:
    """Values under the place of the entry they came from."""

    def convert(value: Any) -> Node:
        if isinstance(value, Mapping):
            return entry.replace({key: convert(inner) for key, inner in value.items()})
        if isinstance(value, list | tuple):
            return entry.replace([convert(inner) for inner in value])
        return entry.replace(value)

    return convert(values)
