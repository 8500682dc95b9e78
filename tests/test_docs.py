"""The documents say what the program does: commands parse, keys exist, plans load, rows are recognised, links resolve.

The Chinese pages are held to the English ones: the same headings, blocks, tables, commands and keys.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import typer.main
import yaml
from pydantic import BaseModel

from whet.cli import app
from whet.config.catalogue import entries, paths, stage_models, top_keys
from whet.config.load import load_data, load_plan
from whet.config.verl import Verl
from whet.data.detect import detect
from whet.data.formats import KIND, read_row
from whet.data.row import Row
from whet.errors import ConfigError
from whet.schema.records import Origin

ROOT = Path(__file__).resolve().parents[1]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
HEADING = re.compile(r"^(#+) (.*)$", re.MULTILINE)
SPAN = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
LINK = re.compile(r"\]\(([^)\s]+)\)")
OVERRIDE = re.compile(r"[a-z_0-9]+(\.[a-z_0-9-]+)*=.*", re.DOTALL)
KEY = re.compile(r"[a-z_]+(\.[a-z_]+)+")
FILE_ENDINGS = (".json", ".jsonl", ".yaml", ".py", ".sh", ".md", ".txt", ".html", ".safetensors", ".parquet", ".csv")


@dataclass(frozen=True)
class Page:
    """One Markdown file, taken apart."""

    path: Path

    @property
    def text(self) -> str:
        return self.path.read_text(encoding="utf-8")

    @property
    def name(self) -> str:
        return self.path.relative_to(ROOT).as_posix()

    @property
    def prose(self) -> str:
        """The text without its code blocks."""
        return FENCE.sub("", self.text)

    def blocks(self, *languages: str) -> list[str]:
        return [body for language, body in FENCE.findall(self.text) if language in languages]

    def spans(self) -> list[str]:
        return SPAN.findall(self.prose)

    def tables(self) -> list[list[list[str]]]:
        """Tables as rows of cells, headers first, the rule between left out."""
        tables: list[list[list[str]]] = []
        inside = False
        for line in self.prose.splitlines():
            if not line.startswith("|"):
                inside = False
            elif not inside:
                tables.append([_cells(line)])
                inside = True
            elif not set(line) <= set("|-: "):
                tables[-1].append(_cells(line))
        return tables

    def commands(self) -> list[list[str]]:
        """Every `whet ...` written as a command, as words: lines of shell blocks, and spans of several words."""
        shell = "\n".join(self.blocks("sh", "bash")).replace("\\\n", " ")
        lines = [*shell.splitlines(), *(span for span in self.spans() if " " in span)]
        return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("whet ")]

    def overrides(self) -> list[str]:
        """`a.b=c` outside of commands."""
        words = [word for span in self.spans() if not span.startswith("whet ") for word in span.split()]
        return [word for word in words if "." in word.partition("=")[0] and OVERRIDE.fullmatch(word)]


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip().strip("|"))]


ENGLISH = [Page(ROOT / "README.md"), *(Page(path) for path in sorted((ROOT / "docs").glob("*.md")))]
OTHERS = [Page(ROOT / name) for name in ("CONTRIBUTING.md", "CHANGELOG.md", "examples/README.md")]


def chinese(page: Page) -> Page:
    return Page(ROOT / "README.zh-CN.md" if page.name == "README.md" else ROOT / "docs" / "zh" / page.path.name)


def both(name: str) -> list[Page]:
    """A page of docs/ in both languages."""
    return [Page(ROOT / "docs" / name), Page(ROOT / "docs" / "zh" / name)]


PAGES = [*ENGLISH, *map(chinese, ENGLISH), *OTHERS]
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
every_pair = pytest.mark.parametrize("page", ENGLISH, ids=lambda page: page.name)


@every_pair
def test_chinese_page_has_the_same_frame(page: Page) -> None:
    other = chinese(page)
    for part in (_levels, _languages, _shapes):
        assert part(other) == part(page), f"{other.name} differs from {page.name} in its {part.__name__.strip('_')}"


def _levels(page: Page) -> list[str]:
    return [level for level, _ in HEADING.findall(page.prose)]


def _languages(page: Page) -> list[str]:
    return [language for language, _ in FENCE.findall(page.text)]


def _shapes(page: Page) -> list[tuple[int, int]]:
    return [(len(table), len(table[0])) for table in page.tables()]


@every_pair
def test_chinese_page_names_the_same_commands_and_keys(page: Page) -> None:
    other = chinese(page)
    assert sorted(other.commands()) == sorted(page.commands())
    assert sorted(set(map(_plain, other.overrides()))) == sorted(set(map(_plain, page.overrides())))
    assert sorted(key_spans(other)) == sorted(key_spans(page))
    code = ("yaml", "json", "python", "sh")
    assert [_code(body) for body in other.blocks(*code)] == [_code(body) for body in page.blocks(*code)]


def _plain(override: str) -> str:
    return override.partition("=")[0]


def _code(block: str) -> list[str]:
    """A block's lines without comments: those are translated."""
    lines = [line.split(" #")[0].rstrip() for line in block.splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def test_no_chinese_page_is_left_behind() -> None:
    assert {path.name for path in (ROOT / "docs" / "zh").glob("*.md")} == {page.path.name for page in ENGLISH[1:]}


@every_page
def test_commands_parse(page: Page) -> None:
    for words in page.commands():
        if words[0].startswith("-"):
            assert words[0] in ("--help", "--version")
            continue
        command, rest = find_command(words, page)
        if rest:  # without arguments it is a mention of the verb
            command.make_context(" ".join(words[:2]), list(rest))
            check_keys(words, rest, page)


def find_command(words: list[str], page: Page) -> tuple[typer.core.TyperCommand, list[str]]:
    """The command that words name, below groups, and its arguments."""
    command, rest = typer.main.get_command(app), words
    while hasattr(command, "commands"):
        assert rest and rest[0] in command.commands, f"{page.name}: no verb in `whet {' '.join(words)}`"
        command, rest = command.commands[rest[0]], rest[1:]
    return command, rest


def check_keys(words: list[str], rest: list[str], page: Page) -> None:
    """Keys on a command line exist, and a single stage's line makes a plan."""
    keys = [word for word in rest if OVERRIDE.fullmatch(word) and not word.startswith("-")]
    if words[0] == "data":
        load_data(keys)
        return
    for word in keys:
        assert_key(word.partition("=")[0], page)
    if words[0] in stage_models() and any(key.startswith("model.path=") for key in keys):
        load_plan(None, keys, kind=words[0])


def assert_key(key: str, page: Page) -> None:
    assert known(key), f"{page.name}: no plan has the key {key}"


def known(key: str) -> bool:
    """Whether a plan can have a key; a stage's name (here: its kind) or `stages.NAME` may stand in front.

    `reward` is a section and a kind of stage: `reward.type` is a key as it stands.
    """
    parts = [part for part in key.split(".") if not part.isdecimal()]
    if parts[0] == "verl":  # of `whet export verl`, and of no plan
        return len(parts) == 2 and parts[1] in Verl.model_fields
    parts = parts[1:] if parts[0] == "stages" and len(parts) > 1 else parts
    if parts[0] in (*stage_models(), "round") and len(parts) > 1 and ".".join(parts) not in paths():
        parts = parts[1:]
    tasks = ("exact", "overlap", "perplexity", "win_rate", "judgement")
    if parts[0] in ("tasks", "watch") and len(parts) > 2 and parts[1] in tasks:
        parts.pop(1)
    path = ".".join(parts)
    return path in paths() or path.rpartition(".")[0] in ("data.columns", "tasks.data.columns")


@every_page
def test_overrides_and_keys_in_the_text_exist(page: Page) -> None:
    for override in page.overrides():
        assert_key(override.partition("=")[0], page)
    for key in key_spans(page):
        assert_key(key, page)


def key_spans(page: Page) -> list[str]:
    """Spans that are a key and nothing else. In a table of another pipeline's names the first column is not ours."""
    foreign = [cell for table in page.tables() if len(table[0]) == 3 and table[0][2] in READY for cell in _first(table)]
    theirs = {span for cell in foreign for span in SPAN.findall(cell)}
    spans = [span for span in page.spans() if KEY.fullmatch(span) and not span.endswith(FILE_ENDINGS)]
    return [span for span in spans if span.split(".")[0] in top_keys() and span not in theirs - set(paths())]


def _first(table: list[list[str]]) -> list[str]:
    return [row[0] for row in table]


READY = {"ready": {"yes", "not yet"}, "可用": {"是", "尚无"}}
"""Head of the last column of a comparison -> what may stand below it."""


@pytest.mark.parametrize("page", both("from_the_seeds.md"), ids=lambda page: page.name)
def test_comparison_says_of_every_row_whether_it_is_there(page: Page) -> None:
    tables = page.tables()
    assert len(tables) >= 5
    for table in tables:
        words = READY[table[0][-1]]
        for there, here, ready in table[1:]:
            assert ready in words, f"{page.name}: {there}: {ready}"
            assert here or ready in ("not yet", "尚无"), f"{page.name}: {there} is nowhere"


@every_pair
def test_comparison_agrees_in_both_languages(page: Page) -> None:
    ours = [row[-1] for table in page.tables() if table[0][-1] in READY for row in table[1:]]
    theirs = [row[-1] for table in chinese(page).tables() if table[0][-1] in READY for row in table[1:]]
    assert [{"是": "yes", "尚无": "not yet"}[word] for word in theirs] == ours


@every_page
def test_plans_load(page: Page) -> None:
    for block in page.blocks("yaml"):
        plan = yaml.safe_load(block)
        if "stages" in plan:
            load_plan(plan)


@every_page
def test_python_compiles(page: Page) -> None:
    for block in page.blocks("python"):
        compile(block, page.name, "exec")


@pytest.mark.parametrize("page", both("data.md"), ids=lambda page: page.name)
def test_example_rows_are_the_format_they_stand_under(page: Page) -> None:
    seen = set()
    for format, row in example_rows(page):
        found = detect([row])
        assert found == format, f"{page.name}: the example of {format} is read as {found}"
        assert read_row(row, found, KIND[found])
        seen.add(format)
    assert seen == set(KIND) - {"text"}, "every format has an example"


def example_rows(page: Page) -> Iterator[tuple[str, Row]]:
    """JSON blocks with the last format named at the beginning of a paragraph before them."""
    format = None
    for piece in re.split(r"\n\n+", page.text):
        start = re.match(r"`(\w+)`[:：]", piece)
        format = start.group(1) if start and start.group(1) in KIND else format
        if piece.startswith("#"):
            format = None
        block = FENCE.match(piece + "\n")
        if format and block and block.group(1) == "json":
            yield format, Row(json.loads(block.group(2)), Origin(file=page.name, line=1))


@pytest.mark.parametrize("page", both("plans.md"), ids=lambda page: page.name)
def test_every_key_is_explained_with_its_default(page: Page) -> None:
    rows = {SPAN.findall(row[0])[0]: row[1] for table in page.tables() if len(table[0]) == 3 for row in table[1:]}
    rows = {key: default for key, default in rows.items() if key in paths()}
    expected = {entry.path: entry for entry in entries() if _listed(entry.path)}
    assert rows.keys() >= expected.keys(), f"not explained: {', '.join(sorted(expected.keys() - rows.keys()))}"
    for key in expected:
        said = {_value(span) for span in SPAN.findall(rows[key])}
        true = {_value(json.dumps(e.default)) for e in entries() if e.path == key and _plain_default(e.default, key)}
        assert not true or not said or said == true, f"{page.name}: {key} has the default {true}, not {said}"


@pytest.mark.parametrize("page", both("engines.md"), ids=lambda page: page.name)
def test_every_key_of_an_engine_is_explained_with_its_default(page: Page) -> None:
    rows = {SPAN.findall(row[0])[0]: row[1] for table in page.tables() if len(table[0]) == 3 for row in table[1:]}
    expected = {entry.path for entry in entries() if entry.path.startswith("rollout.engine.")}
    expected = {path for path in expected if not path.startswith("rollout.engine.serve.")}  # an engine's own keys again
    assert rows.keys() & expected == expected, f"not explained: {', '.join(sorted(expected - rows.keys()))}"
    for key in expected:
        said = {_value(span) for span in SPAN.findall(rows[key])}
        plain = [e.default for e in entries() if e.path == key and not e.info.is_required()]
        true = {_value(json.dumps(default)) for default in plain if not isinstance(default, BaseModel)}
        assert key.endswith(".type") or not true or said == true, f"{page.name}: {key} has {true}, not {said}"


def _listed(path: str) -> bool:
    """Keys with a row of their own: sections that repeat another one are explained there, `reward` and engines on their
    own pages."""
    repeated = (
        "watch", "tasks.data.", "tasks.judge.", "tasks.checker.", "data.eval_files.", "objective.parts.objective.",
        "reward.", "engine.", "judge.engine.", "rollout.engine.", "source.rollout.", "exclude.", "seen.",
    )  # fmt: skip
    sections = (
        "model", "data", "train", "objective", "reference", "head", "rollout", "judge", "pairs", "reward", "value",
        "accept", "functions", "launch",
    )  # fmt: skip
    return not path.startswith(repeated) and path not in sections


def _plain_default(value: object, key: str) -> bool:
    """Whether a default is printed as it is: a section is described, and a type is named by the stage's default."""
    if isinstance(value, tuple) and any(isinstance(entry, BaseModel) for entry in value):
        return False
    plain = value is None or isinstance(value, bool | int | float | list | tuple | str)
    return plain and value != "" and not key.endswith(".type")


def _value(text: str) -> str:
    """One spelling for a value, so that 1e-5 and 0.00001 are the same."""
    return json.dumps(yaml.safe_load(text) if not _number(text) else float(text))


def _number(text: str) -> bool:
    return re.fullmatch(r"-?[0-9.]+(e-?[0-9]+)?", text) is not None


@every_page
def test_links_resolve(page: Page) -> None:
    for link in LINK.findall(page.prose):
        if "://" in link:
            continue
        target, _, anchor = link.partition("#")
        path = (page.path.parent / target).resolve() if target else page.path
        assert path.exists(), f"{page.name}: {link} leads nowhere"
        if anchor:
            assert anchor in anchors(Page(path)), f"{page.name}: no heading {anchor} in {path.name}"


def anchors(page: Page) -> set[str]:
    """Anchors as GitHub makes them from headings."""
    headings = [title.lower().replace("`", "") for _, title in HEADING.findall(page.prose)]
    return {re.sub(r"[^\w\- ]", "", title).strip().replace(" ", "-") for title in headings}


@every_page
def test_nothing_unsaid_is_left_over(page: Page) -> None:
    """Marks of unfinished work do not ship."""
    assert not re.search(r"\b(TODO|FIXME|XXX|TBD)\b", page.text)


def test_the_checks_can_fail() -> None:
    page = ENGLISH[0]
    assert not known("train.learning_rte") and not known("nothing.at.all")
    with pytest.raises(AssertionError, match="no verb"):
        find_command(["trane", "plan.yaml"], page)
    with pytest.raises(ConfigError, match="learning_rate"):
        load_plan(None, ["model.path=m", "data.files=f", "train.learning_rte=1"], kind="sft")
