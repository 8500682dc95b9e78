"""What a published folder tells processors: the checkpoint's own words, but for a chat template that was replaced."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, ProcessorMixin

from whet.models.load import load_tokenizer
from whet.models.processor_files import copy_processor

NEW = "{# new #}{% for turn in messages %}{{ turn.content }}<|im_end|>{% endfor %}"
PICTURES = "{# for pictures #}{% for turn in messages %}{{ turn.content }}<|im_end|>{% endfor %}"


def with_old_file(folder: Path) -> None:
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": PICTURES}))


def with_that_alone(folder: Path) -> None:
    with_old_file(folder)
    (folder / "chat_template.jinja").unlink()


def with_both_in_settings(folder: Path) -> None:
    own = (folder / "chat_template.jinja").read_text()
    with_that_alone(folder)
    (folder / "chat_template.json").unlink()
    add(folder / "tokenizer_config.json", chat_template=own)
    add(folder / "processor_config.json", chat_template=PICTURES, patch_size=14)


def add(file: Path, **settings: Any) -> None:
    known = json.loads(file.read_text()) if file.is_file() else {}
    file.write_text(json.dumps(known | settings))


KINDS = [with_old_file, with_that_alone, with_both_in_settings]


@pytest.fixture(params=KINDS)
def source(request: pytest.FixtureRequest, tiny_vlm_checkpoint: Path, tmp_path: Path) -> Path:
    """A vision-language checkpoint with two templates, of which transformers' processor takes the second."""
    folder = tmp_path / "source"
    shutil.copytree(tiny_vlm_checkpoint, folder)
    prepare: Callable[[Path], None] = request.param
    prepare(folder)
    assert ProcessorMixin.get_processor_dict(str(folder))[0]["chat_template"] == PICTURES
    return folder


def published(source: Path, folder: Path, *, template: Path | None) -> dict[str, Any]:
    """What a processor reads in a folder that the tokenizer was saved in."""
    tokenizer = load_tokenizer(str(source), chat_template=None if template is None else str(template))
    tokenizer.save_pretrained(folder)
    copy_processor(str(source), folder)
    found: dict[str, Any] = ProcessorMixin.get_processor_dict(str(folder))[0]
    return found


def test_a_template_that_was_replaced_stays_behind(source: Path, tmp_path: Path) -> None:
    (tmp_path / "new.jinja").write_text(NEW)
    out = tmp_path / "out"
    settings = published(source, out, template=tmp_path / "new.jinja")
    assert settings["chat_template"] == AutoTokenizer.from_pretrained(out).chat_template == NEW
    assert settings.get("patch_size") == (14 if (source / "processor_config.json").exists() else None)
    name = "preprocessor_config.json"
    assert (out / name).read_bytes() == (source / name).read_bytes()


def test_without_another_each_keeps_its_own(source: Path, tmp_path: Path) -> None:
    """LLaVA's tokenizer once had one of its own that knows no pictures."""
    out = tmp_path / "out"
    assert published(source, out, template=None)["chat_template"] == PICTURES
    assert AutoTokenizer.from_pretrained(out).chat_template == AutoTokenizer.from_pretrained(source).chat_template
    for name in ("preprocessor_config.json", "processor_config.json", "chat_template.json"):
        assert (out / name).is_file() == (source / name).is_file()
        assert not (out / name).is_file() or (out / name).read_bytes() == (source / name).read_bytes()


def test_templates_by_name(tiny_vlm_checkpoint: Path, tmp_path: Path) -> None:
    """An older way to keep several; the default one is the tokenizer's own."""
    source, out = tmp_path / "source", tmp_path / "out"
    shutil.copytree(tiny_vlm_checkpoint, source)
    (source / "chat_template.jinja").unlink()
    named = [{"name": "default", "template": NEW}, {"name": "tool_use", "template": f"{NEW}tools"}]
    add(source / "tokenizer_config.json", chat_template=named)
    add(source / "processor_config.json", chat_template=PICTURES)
    assert published(source, out, template=None)["chat_template"] == PICTURES
