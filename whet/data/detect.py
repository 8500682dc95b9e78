"""Which format rows are in, told from the names of their fields (and, where names do not suffice, a look inside).

Formats stand on three levels: rows that compare or grade, rows that teach, rows that only ask. The highest level with
a match wins, since such a row also looks like those below it; two matches on one level are ambiguous, and a person
has to say which.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from whet.config.data import Format
from whet.data.conversations import ANSWER_NAMES, HUMAN, PROMPT_NAMES, TURNS_NAMES, final_answer
from whet.data.graded import LABEL_NAMES, RANK_NAMES, VALUE_NAMES, VALUES_NAMES, is_label
from whet.data.preferences import CHOSEN_NAMES, REJECTED_NAMES
from whet.data.row import Row
from whet.errors import DataError, nearest

Test = Callable[[Row], bool]
SAMPLE = 100
"""Rows looked at."""


def _any(row: Row, names: Sequence[str]) -> bool:
    return any(name in row for name in names)


def _asks(row: Row) -> bool:
    return _any(row, PROMPT_NAMES)


def _turns_with(row: Row, key: str) -> bool:
    """Whether the row has a list of turns in the dialect with this key. CSV cells hold it as JSON text."""
    for name in TURNS_NAMES:
        value = row.values.get(name)
        if isinstance(value, list) and value and isinstance(value[0], Mapping) and key in value[0]:
            return True
        if isinstance(value, str) and value.lstrip().startswith("[") and f'"{key}"' in value:
            return True
    return False


def _is_transcript(row: Row) -> bool:
    return all(
        isinstance(row.values.get(name), str) and row.values[name].startswith(HUMAN) for name in ("chosen", "rejected")
    )


def _has_completions(row: Row) -> bool:
    value = row.values.get("completions")
    return isinstance(value, list) and bool(value) and isinstance(value[0], Mapping) and "response" in value[0]


def _compares(row: Row) -> bool:
    return _any(row, REJECTED_NAMES) and (_any(row, CHOSEN_NAMES) or _any(row, TURNS_NAMES))


def _is_worked(row: Row) -> bool:
    answer = row.values.get("answer")
    return isinstance(answer, str) and final_answer(answer) is not None


def _is_labelled(row: Row) -> bool:
    """Whether there is a yes or no; a label of another sort (a topic, a class) is no judgement."""
    return any(is_label(row.values.get(name)) for name in LABEL_NAMES)


def _teaches(row: Row) -> bool:
    return _asks(row) and _any(row, ANSWER_NAMES)


LEVELS: tuple[dict[Format, Test], ...] = (
    {
        "pku": lambda row: (
            {"response_0", "response_1"} <= row.values.keys() and _any(row, ("better_response_id", "safer_response_id"))
        ),
        "ultrafeedback": lambda row: "instruction" in row and _has_completions(row),
        "hh": lambda row: _is_transcript(row) and not _asks(row),
        "preference": lambda row: _compares(row) and not (_is_transcript(row) and not _asks(row)),
        "ranking": lambda row: "responses" in row and _any(row, RANK_NAMES),
        "weighted": lambda row: "responses" in row and "weights" in row,
        "scored": lambda row: (
            _asks(row)
            and (
                ("responses" in row and _any(row, VALUES_NAMES)) or (_any(row, ANSWER_NAMES) and _any(row, VALUE_NAMES))
            )
        ),
        "kto": lambda row: _is_labelled(row) and (_any(row, TURNS_NAMES) or _teaches(row)),
    },
    {
        "messages": lambda row: _turns_with(row, "role"),
        "sharegpt": lambda row: _turns_with(row, "from"),
        "self_instruct": lambda row: "instruction" in row and "instances" in row,
        "openorca": lambda row: {"system_prompt", "question", "response"} <= row.values.keys(),
        "alpaca": lambda row: "instruction" in row and "output" in row,
        "gsm8k": lambda row: "question" in row and _is_worked(row),
        "prompt_completion": lambda row: (
            _teaches(row) and not any(LEVELS[1][name](row) for name in ("openorca", "alpaca", "gsm8k"))
        ),
    },
    {"prompt": _asks},
)


def fits(row: Row) -> list[Format]:
    """Every format a row could be read in, on any level."""
    return [name for level in LEVELS for name, test in level.items() if test(row)]


def matches(row: Row) -> list[Format]:
    """The formats a row could be in: those of the highest level that has any."""
    for level in LEVELS:
        found: list[Format] = [name for name, test in level.items() if test(row)]
        if found:
            return found
    return []


def detect(rows: Sequence[Row]) -> Format:
    """The format of a file, from its first rows.

    Raises DataError where none or several fit, or where rows of another format stand among the others. A row that only
    lacks a field of the common format is left for reading, which says so with the field's name.
    """
    found = [(row, matches(row)) for row in rows]
    for row, names in found:
        if len(names) > 1:
            raise DataError(
                f"rows could be {' or '.join(names)}",
                file=row.origin.file,
                line=row.origin.line,
                fix=f"choose by data.format={names[0]}",
            )
    if not any(names for _, names in found):
        raise _unknown(rows[0])
    keys = {format: {key for row, names in found if names == [format] for key in row.values} for format in LEVEL_OF}
    # A row without its answer looks like a prompt: it counts for the format whose other rows have all its fields.
    counted = [(row, _complete(row, names[0], keys)) for row, names in found if names]
    common = Counter(format for _, format in counted).most_common(1)[0][0]
    for row, format in counted:
        if format != common:
            raise DataError(
                f"a {format} row among {common} rows",
                file=row.origin.file,
                line=row.origin.line,
                found=f"fields {', '.join(row.values)}",
                fix="give each format a file of its own",
            )
    return common


LEVEL_OF: dict[Format, int] = {name: level for level, tests in enumerate(LEVELS) for name in tests}


def _complete(row: Row, format: Format, keys: Mapping[Format, set[str]]) -> Format:
    """The format of a higher level that this row would be in, were its fields filled in; else its own."""
    higher = [name for name in keys if LEVEL_OF[name] < LEVEL_OF[format] and row.values.keys() <= keys[name]]
    return max(higher, key=lambda name: LEVEL_OF[name]) if higher else format


def _unknown(row: Row) -> DataError:
    fields = ", ".join(row.values) or "none"
    known = (*PROMPT_NAMES, *ANSWER_NAMES, *TURNS_NAMES, *CHOSEN_NAMES, *REJECTED_NAMES, "responses", "instances")
    guesses = [(name, nearest(name, known)) for name in row.values]
    guess = next(((name, close) for name, close in guesses if close and close != name), None)
    if set(row.values) == {"text"}:
        fix = "if each text is a question to answer, set data.columns={prompt: text}"
    elif guess:
        fix = f"did you mean {guess[1]!r} by {guess[0]!r}? Rename it, or set data.columns={{{guess[1]}: {guess[0]}}}"
    else:
        fix = "say which column is which by data.columns, e.g. {prompt: YOURS, completion: YOURS}"
    return DataError(
        "no known format has these fields",
        file=row.origin.file,
        line=row.origin.line,
        found=f"fields {fields}",
        fix=fix,
    )


def known_columns() -> set[str]:
    """Every name a `columns` mapping may have on its left."""
    other = {
        "input",
        "history",
        "system",
        "system_prompt",
        "tools",
        "image",
        "images",
        "responses",
        "weights",
        "instances",
        "completions",
        "reference",
        "margin",
        "chosen_score",
        "rejected_score",
        "response_0",
        "response_1",
        "better_response_id",
        "safer_response_id",
    }
    groups: Any = (
        PROMPT_NAMES,
        ANSWER_NAMES,
        TURNS_NAMES,
        CHOSEN_NAMES,
        REJECTED_NAMES,
        LABEL_NAMES,
        RANK_NAMES,
        VALUE_NAMES,
        VALUES_NAMES,
    )
    return other.union(*groups)
