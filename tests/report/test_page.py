"""The page in a real browser: nothing missing, nothing loaded from elsewhere, nothing escaped, at both widths."""

from __future__ import annotations

import json
import re
import shutil

import pytest
import yaml

from whet.errors import RunError
from whet.report import fonts
from whet.report.page import write_report

BROKEN = "[...document.images].filter(image => !image.complete || !image.naturalWidth).length"
WIDTH = "document.documentElement.scrollWidth"
STAGES = ("stage-sft", "stage-prepare", "stage-dpo")


def keep_only(run, *names):
    """A run that got no further: only these stages have a folder."""
    for folder in (run / "stages").iterdir():
        if folder.name not in names:
            shutil.rmtree(folder)


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, False), (390, True)])
def test_the_page_in_a_browser(page, browser, width, dark):
    browser.open(page, width, dark=dark)
    browser.ask("document.querySelectorAll('details').forEach(one => one.open = true)")
    assert browser.complaints() == []
    assert (browser.ask("document.images.length"), browser.ask(BROKEN)) == (14, 0)
    assert browser.ask(WIDTH) <= width
    assert [url for url in browser.requests() if not url.startswith("data:")] == [page.as_uri()]


def test_what_a_model_wrote_is_only_text(page, browser):
    browser.open(page, 1280)
    assert browser.ask("document.scripts.length") == 0
    assert "<script>" in browser.ask("document.body.textContent")
    assert "<script>console.error" not in page.read_text()


def test_a_text_ends_what_it_turns_round(finished_run, browser):
    """An Arabic prompt, or a sign that turns letters round, leaves what stands beside it."""
    keep_only(finished_run, "04-evaluate")
    samples = finished_run / "stages" / "04-evaluate" / "samples.jsonl"
    rows = [json.loads(line) | {"prompt": "\u202eabc\nxyz", "reference": "\u202eabc"} for line in samples.open()]
    samples.write_text("".join(json.dumps(row) + "\n" for row in rows))
    browser.open(write_report(finished_run), 1280)
    left = """(() => { const text = document.querySelector(SELECTOR).firstChild, range = document.createRange();
        const places = [...text.data].map((_, n) => (range.setStart(text, n), range.setEnd(text, n + 1),
            range.getBoundingClientRect().left));
        return [places[1] > places[3], places[5] < places[7]] })()"""
    assert browser.ask(left.replace("SELECTOR", "'.prompt .text'")) == [True, True]
    for selector in (".prompt .text", ".answer .text", ".reference span"):
        style = f"getComputedStyle(document.querySelector('{selector}')).unicodeBidi"
        assert browser.ask(style) == "plaintext"


@pytest.mark.parametrize("name", ["data", "plan", "answers", "evaluation", "alarms"])
def test_a_stage_may_be_called_like_a_section(finished_run, name):
    keep_only(finished_run, "03-dpo", "04-evaluate")
    file = finished_run / "stages" / "03-dpo" / "status.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"name": name}))
    html = write_report(finished_run).read_text()
    ids = re.findall(r' id="([^"]*)"', html)
    assert len(ids) == len(set(ids)) and f"stage-{name}" in ids
    assert set(re.findall(r'href="#([^"]*)"', html)) <= set(ids)


def test_missing_glyphs_are_said_once_in_words(finished_run, monkeypatch):
    monkeypatch.setattr(fonts.font_manager, "get_font_names", lambda: ["DejaVu Sans"])
    keep_only(finished_run, "04-evaluate")
    file = finished_run / "stages" / "04-evaluate" / "evaluation.json"
    file.write_text(file.read_text().replace('"sampled"', '"\u6570"').replace('"greedy"', '"\u5b66"'))
    with pytest.warns(UserWarning) as said:
        html = write_report(finished_run).read_text()
    assert [str(one.message).split(":")[0] for one in said] == ["The charts have boxes in place of 数 学"]
    assert "boxes in place of 数 学" in html


def test_evaluation_comes_first_with_its_sentence_and_the_judge(page):
    html = page.read_text()
    assert "sampled accuracy rose from 0.362 [0.324, 0.400] for sft to 0.608 [0.569, 0.647] for dpo" in html
    assert "the judge scores a right answer above a wrong one with chance 0.84" in html
    places = [html.index(f'id="{name}"') for name in ("evaluation", "answers", *STAGES, "data", "plan")]
    assert places == sorted(places)


def test_another_stage_with_the_same_task_on_another_file_stands_apart(finished_run):
    keep_only(finished_run, "04-evaluate")
    first, second = (finished_run / "stages" / name for name in ("04-evaluate", "05-again"))
    shutil.copytree(first, second)
    for folder, file in ((first, "x.jsonl"), (second, "y.jsonl")):
        tasks = [{"type": "exact", "name": "sampled", "data": {"files": [file]}}]
        (folder / "config.yaml").write_text(yaml.safe_dump({"tasks": tasks}))
    (second / "status.json").write_text(json.dumps({"name": "again", "kind": "evaluate", "status": "done"}))
    (second / "evaluation.json").write_text(json.dumps([
        {"stage": "dpo", "task": "sampled", "metric": "accuracy", "value": 0.9, "low": 0.8, "high": 0.95, "num": 100},
    ]))  # fmt: skip
    html = write_report(finished_run).read_text()
    assert "sampled (evaluate) accuracy rose from 0.362" in html and "sampled (again)" in html
    assert "0.608" in html and "0.900" in html and "to 0.900" not in html


def test_pictures_lie_beside_the_page(page):
    names = {path.name for path in page.parent.glob("*.png")}
    assert {"01-sft-loss.png", "03-dpo-rewards.png", "02-prepare-scores.png", "02-prepare-candidates.png"} <= names
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in page.parent.glob("*.png"))


def test_the_same_run_gives_the_same_page(finished_run):
    keep_only(finished_run, "02-prepare", "04-evaluate")
    first = write_report(finished_run).read_bytes()
    assert write_report(finished_run).read_bytes() == first


def test_a_red_flag_stands_at_the_head(page):
    head = page.read_text().split('id="evaluation"')[0]
    assert "Held-out loss rose from" in head


@pytest.mark.parametrize(
    "kept", [(), ("02-prepare",), ("03-dpo",), ("02-prepare", "04-evaluate")], ids=lambda kept: "+".join(kept)
)
def test_a_run_that_is_not_finished_shows_what_it_has(finished_run, browser, kept):
    keep_only(finished_run, *kept)
    page = write_report(finished_run)
    browser.open(page, 390)
    assert browser.complaints() == []
    assert (browser.ask(BROKEN), browser.ask(WIDTH)) == (0, 390)
    html = page.read_text()
    assert [f'<section id="stage-{name[3:]}"' in html for name in ("01-sft", "02-prepare", "03-dpo")] == [
        name in kept for name in ("01-sft", "02-prepare", "03-dpo")
    ]
    assert ('id="evaluation"' in html) == ("04-evaluate" in kept)


def test_a_stage_that_has_just_begun_or_failed(finished_run):
    keep_only(finished_run, "03-dpo")
    folder = finished_run / "stages" / "03-dpo"
    (folder / "metrics.jsonl").write_text('{"step": 1, "loss": null, "learning_rate": 1e-05}\n{"step": 2, "lo')
    status = json.loads((folder / "status.json").read_text())
    (folder / "status.json").write_text(
        json.dumps({**status, "status": "failed", "seconds": None, "error": "no <disk>"})
    )
    html = write_report(finished_run).read_text()
    assert "no &lt;disk&gt;" in html
    assert "not a finite number at 1 steps" in html


def test_no_run_is_one_clear_line(tmp_path):
    with pytest.raises(RunError, match="not a run directory"):
        write_report(tmp_path / "absent")
