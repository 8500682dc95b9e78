"""Rules about the form of a completion: a regular expression, tagged blocks, a JSON Schema."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path

import regex

from whet.config.rules import JsonSchema, Regex, Tags
from whet.errors import ConfigError
from whet.rewards.process import Call, Worker
from whet.rewards.reward import RuleReward, Unscored, no_answer
from whet.schema.records import Prompt
from whet.schema.rollouts import Completion, Score


def regex_form(config: Regex) -> RuleReward:
    """Raises ConfigError for a pattern that is none."""
    try:
        pattern = regex.compile(config.pattern)
    except regex.error as error:
        raise ConfigError(
            f"is no regular expression: {error}", field="reward.pattern", found=repr(config.pattern)
        ) from error

    def rule(prompt: Prompt, completion: Completion) -> float:
        match = pattern.fullmatch if config.match == "full" else pattern.search
        try:
            return float(match(completion.text, timeout=config.timeout) is not None)
        except TimeoutError:
            raise Unscored(f"the pattern took longer than {config.timeout:g} s") from None

    return RuleReward(rule=rule, gold=_reference, some_gold=True)


def tagged(config: Tags) -> RuleReward:
    def rule(prompt: Prompt, completion: Completion) -> float:
        opening = f"<{config.tags[0]}>" if config.opened else ""
        return float(has_blocks(opening + completion.text, config.tags, strict=config.strict))

    def gold(prompt: Prompt) -> str | None:
        """The reference in the last block, a word in the others."""
        if prompt.reference is None:
            return None
        *others, last = config.tags
        text = "".join(f"<{tag}>reasons</{tag}>\n" for tag in others) + f"<{last}>{prompt.reference}</{last}>"
        return text.removeprefix(f"<{config.tags[0]}>") if config.opened else text

    return RuleReward(rule=rule, gold=gold)


def has_blocks(text: str, tags: Sequence[str], *, strict: bool) -> bool:
    """Whether each tag is opened and closed exactly once, in order, around something that is not blank."""
    marks = [mark for tag in tags for mark in (f"<{tag}>", f"</{tag}>")]
    if any(text.count(mark) != 1 for mark in marks):
        return False
    outside, position = [], 0
    for opening, closing in zip(marks[::2], marks[1::2], strict=True):
        start, end = text.find(opening, position), text.find(closing, position)
        if start < 0 or end < start or not text[start + len(opening) : end].strip():
            return False
        outside.append(text[position:start])
        position = end + len(closing)
    return not strict or not "".join([*outside, text[position:]]).strip()


class JsonReward:
    """1.0 where a completion is JSON that the schema accepts. The check runs in a worker process."""

    some_gold = True

    def __init__(self, config: JsonSchema) -> None:
        """Raises ConfigError where jsonschema is not installed, or the schema cannot be read."""
        if importlib.util.find_spec("jsonschema") is None:
            raise ConfigError(
                "needs the package jsonschema", field="reward.type", found="json_schema",
                fix='install it by `pip install "whet[json]"`',
            )  # fmt: skip
        self._fenced, self._definition = config.fenced, json.dumps(_schema(config))
        self._worker = Worker("whet.rewards.accepts:accepts", timeout=config.timeout, what="the schema")
        (probe,) = self._worker.call([Call(args=("null", self._definition))])
        if probe.value is None:
            raise ConfigError("cannot be used", field="reward.definition", found=config.path, fix=probe.error)

    def score(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[Score]:
        scores = [no_answer(completion) for completion in completions]
        texts = [completion.text for completion, failed in zip(completions, scores, strict=True) if failed is None]
        calls = [Call(args=(unfenced(text) if self._fenced else text, self._definition)) for text in texts]
        rest = iter(self._worker.call(calls))
        return [next(rest) if score is None else score for score in scores]

    def gold(self, prompt: Prompt) -> str | None:
        return prompt.reference


def unfenced(text: str) -> str:
    """What stands inside the one code fence that a text consists of; any other text as it is."""
    body = text.strip()
    if not (body.startswith("```") and body.endswith("```") and body.count("```") == 2):
        return text
    first, line_break, rest = body.removesuffix("```").partition("\n")
    return rest if line_break and first in ("```", "```json") else text


def _schema(config: JsonSchema) -> object:
    if config.path is None:
        return config.definition
    try:
        return json.loads(Path(config.path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"the schema cannot be read: {error}", field="reward.path", found=repr(config.path),
            fix="name a file with a JSON Schema",
        ) from error  # fmt: skip


def _reference(prompt: Prompt) -> str | None:
    return prompt.reference
