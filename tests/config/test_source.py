"""Reading plan files: YAML 1.2 scalars, JSON, line numbers, and writing that reads back the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from whet.config.node import plain
from whet.config.source import parse_value, read_source, scalar, to_yaml
from whet.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 1e-5), ("5.", 5.0), (".5", 0.5), ("1e5", 1e5), ("-3", -3), ("+1", 1), ("0", 0), ("012", "012"),
        ("1_000", "1_000"), ("1:30", "1:30"), ("0x1f", "0x1f"), ("2026-01-01", "2026-01-01"), ("true", True),
        ("yes", "yes"), ("no", "no"), ("null", None), ("~", None), ("", None), ("-", "-"), (".", "."), ("a: b", "a: b"),
        ("-.inf", float("-inf")),
    ],
)  # fmt: skip
def test_scalars_are_those_of_yaml_1_2(text: str, value: object) -> None:
    assert scalar(text) == value
    assert type(scalar(text)) is type(value)


def test_every_value_knows_file_line_and_path(tmp_path: Path) -> None:
    file = tmp_path / "plan.yaml"
    file.write_text("# a comment\nmodel:\n  path: m\n\ntrain: {epochs: 2}\nstages:\n  - sft\n  - kind: dpo\n")
    root = read_source(file)
    epochs = root.value["train"].value["epochs"]
    assert (epochs.value, epochs.file, epochs.line, epochs.path) == (2, str(file), 5, "train.epochs")
    assert root.value["model"].value["path"].line == 3
    assert [stage.line for stage in root.value["stages"].value] == [7, 8]
    assert root.value["stages"].value[1].value["kind"].path == "stages.1.kind"


def test_json_with_tabs_and_escapes_keeps_lines(tmp_path: Path) -> None:
    value = {"run": "r", "data": {"system": "a\tb, 😀", "columns": {"a/b": "c"}}, "x": ["sft", 1e-5, None]}
    file = tmp_path / "plan.json"
    file.write_text(json.dumps(value, indent="\t"))
    assert plain(read_source(file)) == value
    assert read_source(file).value["data"].line == 3


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.yaml", "run: a\nmodel: {path: x\n", "a.yaml:3: not valid YAML"),
        ("a.yaml", "run: a\nseed: 1\nrun: b\n", "a.yaml:3: run: key written twice (found first on line 1)"),
        ("a.yaml", "- a\n", "a.yaml: a plan is a mapping of keys (found a list)"),
        ("a.yaml", "a: &x\n  b: *x\n", "a.yaml:2: nested too deeply"),
        ("a.yaml", "? [a]\n: b\n", "a.yaml:1: a key must be text"),
        ("a.yaml", "run: a\nseed: \x07\n", "a.yaml:2: no plan has this character (found U+0007); delete it"),
        ("a.yaml", "run: a\nepochs: !!int x\n", "a.yaml:2: not valid YAML: no plan has tags, such as !!int; write"),
        ("a.yaml", "run: a\ntrain: !include no.yaml\n", "a.yaml:2: not valid YAML: no plan has tags, such as !include"),
        ("a.yaml", "run: a\ntrain: !foo {a: 1}\n", "a.yaml:2: not valid YAML: no plan has tags, such as !foo"),
        ("a.yaml", "d: &d {a: 1}\ntrain:\n  <<: *d\n", "a.yaml:3: train.<<: merge keys are not read; write the keys"),
        ("a.yaml", "run: " + "[" * 5000, "a.yaml: nested too deeply"),
        ("a.json", '{"run": ' + "[" * 100_000, "a.json: nested too deeply"),
        ("a.json", '{"run": "a",\n "run" "b"}', "a.json:2: not valid JSON"),
        ("a.json", '{"run": "a",\n "run": "b"}', "a.json:2: run: key written twice"),
    ],
)
def test_a_broken_file_is_named_with_its_line(in_tmp: Path, name: str, text: str, message: str) -> None:
    Path(name).write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_source(name)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("name", ["a.yaml", "a.json"])
def test_what_has_too_many_digits_for_a_number_is_text(in_tmp: Path, name: str) -> None:
    Path(name).write_text(f'{{"seed": {"9" * 5000}}}')
    assert plain(read_source(name)) == {"seed": "9" * 5000}
    assert plain(parse_value("9" * 5000, "seed")) == "9" * 5000


def test_a_file_that_cannot_be_read(in_tmp: Path) -> None:
    Path("latin.yaml").write_bytes(b"run: caf\xe9\n")
    for name, message in (("no.yaml", "no such plan file"), (".", "cannot read the plan"), ("latin.yaml", "not UTF-8")):
        with pytest.raises(ConfigError, match=message):
            read_source(name)


def test_an_override_is_a_bare_word_unless_it_begins_like_yaml() -> None:
    assert plain(parse_value("Hint: be nice, [ok]", "data.system")) == "Hint: be nice, [ok]"
    mixture = parse_value("[a.json, {path: b.json, weight: 1e-1}]", "data.files")
    assert plain(mixture) == ["a.json", {"path": "b.json", "weight": 0.1}]
    assert plain(parse_value("'1e-5'", "run")) == "1e-5"
    assert plain(parse_value("", "model.adapter")) is None


_SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
_KEYS = st.text(min_size=1)
_TREES = st.recursive(_SCALARS, lambda inner: st.lists(inner) | st.dictionaries(_KEYS, inner), max_leaves=8)


@settings(max_examples=25)
@given(st.dictionaries(st.text(min_size=1), _TREES))
def test_what_is_written_reads_back_the_same(tmp_path_factory: pytest.TempPathFactory, value: dict[str, Any]) -> None:
    file = tmp_path_factory.mktemp("yaml") / "a.yaml"
    file.write_text(to_yaml(value), encoding="utf-8", newline="")
    assert plain(read_source(file)) == value


@pytest.mark.parametrize("text", ["1e-5", "null", "012", "1_000", "2026-01-01", ".inf", "~", "", "true", "\u2028"])
def test_text_that_looks_like_something_else_stays_text(in_tmp: Path, text: str) -> None:
    Path("a.yaml").write_text(to_yaml({"a": text}), encoding="utf-8")
    assert plain(read_source("a.yaml")) == {"a": text}
