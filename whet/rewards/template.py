"""Texts that ask a judge: those that ship with whet, by name, or the user's own file.

A placeholder is `{name}`. Only the placeholders of the template are filled, all in one pass: braces in an answer, or
even the word `{response}` in an instruction, arrive at the judge as they were written.
"""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path

from whet.errors import ConfigError, nearest
from whet.runs.files import write_text

SHIPPED: dict[str, tuple[str, ...]] = {
    "additive": ("instruction", "response"),
    "score_first": ("instruction", "response"),
    "pairwise": ("instruction", "first", "second"),
    "listwise": ("instruction", "responses"),
    "meta": ("instruction", "response", "first", "second"),
}
"""The templates that ship, and what each is filled with."""


def write_template(name: str, file: Path | None) -> None:
    """Write a template that ships into a new file, or print it. Raises ConfigError where there is none of this name,
    or the file exists."""
    text = read_template(name, SHIPPED.get(name, ()), field="judge-template")
    if file is None:
        print(text)
        return
    if file.exists():
        raise ConfigError("is there already", field=str(file), fix="name a new file")
    write_text(file, text + "\n")
    print(f"wrote {file}; name it in the plan, e.g. judge.template={file}")


def read_template(name: str, placeholders: tuple[str, ...], *, field: str = "judge.template") -> str:
    """The text of a shipped template or of a file, without its last line break.

    Raises ConfigError where there is no such template, or it lacks a placeholder.
    """
    if name in SHIPPED:
        text = files("whet.rewards").joinpath("templates", f"{name}.txt").read_text(encoding="utf-8")
    elif Path(name).is_file():
        try:
            text = Path(name).read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise ConfigError(
                "the template is not UTF-8", field=field, found=f"{name}, byte {error.start}", fix="save it as UTF-8"
            ) from None
        except OSError as error:
            raise ConfigError("the template cannot be read", field=field, found=f"{name}: {error.strerror}") from None
    else:
        near = nearest(name, SHIPPED)
        fix = f"did you mean {near}?" if near else f"give a text file, or one of: {', '.join(SHIPPED)}"
        raise ConfigError("no such template", field=field, found=repr(name), fix=fix)
    absent = [placeholder for placeholder in placeholders if f"{{{placeholder}}}" not in text]
    if absent:
        names = ", ".join(f"{{{placeholder}}}" for placeholder in absent)
        raise ConfigError(f"the template lacks {names}", field=field, found=name, fix="put it where the text belongs")
    return text.rstrip("\n")


def fill(template: str, values: dict[str, str]) -> str:
    """The template with each `{name}` of `values` replaced."""
    names = "|".join(map(re.escape, values))
    return re.sub(rf"\{{({names})\}}", lambda match: values[match[1]], template)
