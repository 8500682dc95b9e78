"""The report: one HTML file that needs nothing else, and its charts as PNG beside it.

    write_report(Path("runs/first"))        # runs/first/report/index.html

It can be written at any time: a run that stopped half way shows what it has. Whatever a model, a file or a person wrote
is text to this page: the template escapes everything, and the page's own policy forbids scripts and requests.
"""

from __future__ import annotations

import base64
import struct
import warnings
from dataclasses import dataclass
from importlib.resources import files
from itertools import chain
from pathlib import Path
from typing import Any

import jinja2

from whet.report import evaluation, judging, rejection
from whet.report.alarms import poor_answers
from whet.report.answers import side_by_side
from whet.report.charts import training_charts
from whet.report.completions import Browser, read_browser
from whet.report.figures import Chart
from whet.report.fonts import lacking
from whet.report.header import header
from whet.report.plots import DARK, LIGHT, draw
from whet.report.rounds import RoundsSection, read_rounds
from whet.report.rows import ledger_rows
from whet.report.shown_rows import ShownRow, read_shown_rows
from whet.report.tasks import told_apart
from whet.runs.files import write_text, writing
from whet.runs.reader import RunView, StageView, read_run


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """A chart as the page shows it."""

    chart: Chart
    light: str
    """PNG for a light page, as a data URI."""
    dark: str
    width: int
    """CSS pixels at natural size."""
    height: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StageSection:
    """What the page says about one stage."""

    stage: StageView
    charts: list[Drawn]
    judging: judging.Judging | None
    rejection: rejection.Rejection | None
    completions: Browser | None
    shown_rows: list[ShownRow]

    @property
    def alarms(self) -> list[str]:
        """Every red flag of the stage, for the head of the page."""
        found = [alarm for one in self.charts for alarm in one.chart.alarms]
        found += self.judging.alarms if self.judging else ()
        found += self.rejection.alarms if self.rejection else ()
        poor = poor_answers(self.stage.metrics)
        return [*found, *([poor] if poor else [])]


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawnRounds:
    """What the page says about one loop."""

    section: RoundsSection
    charts: list[Drawn]


def write_report(run: Path) -> Path:
    """Write the report of a run directory; returns the page. Raises RunError where `run` is none."""
    view = read_run(run)
    page = view.paths.report
    html = render(view, page.parent)
    write_text(page, html)
    return page


def render(run: RunView, folder: Path) -> str:
    """The page's HTML; the light charts are written into `folder` on the way."""
    order = model_order(run)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("whet.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    told = told_apart(run)
    chart = evaluation.intervals_chart(told.evaluation, order)
    intervals = _drawn(chart, folder, "00") if chart else None
    sections = [_section(number, stage, folder) for number, stage in enumerate(run.stages, start=1)]
    rounds = [
        DrawnRounds(section=one, charts=[_drawn(chart, folder, f"00-{one.name}") for chart in one.charts])
        for one in read_rounds(run)
    ]
    drawn = chain([intervals] if intervals else [], *(one.charts for one in rounds), *(one.charts for one in sections))
    boxes = lacking(one.chart.figure for one in drawn)
    if boxes:
        warnings.warn(boxes, stacklevel=3)
    context: dict[str, Any] = {
        "css": files("whet.report").joinpath("templates", "page.css").read_text(encoding="utf-8"),
        "run": run,
        "header": header(run),
        "table": evaluation.table(told.evaluation, order) if told.evaluation else None,
        "verdicts": [*evaluation.verdicts(told.evaluation, order), *judging.verdicts(run.stages)],
        "intervals": intervals,
        "boxes": boxes,
        "alarms": [(section.stage.name, alarm) for section in sections for alarm in section.alarms],
        "rounds": rounds,
        "answers": side_by_side([row for stage in told.stages for row in stage.samples], order),
        "sections": [section for section in sections if section.charts or section.judging or section.rejection],
        "ledgers": [row for stage in run.stages for row in ledger_rows(stage)],
    }
    return environment.get_template("page.html").render(context)


def model_order(run: RunView) -> list[str]:
    """Models in the order in which they come to be."""
    return ["base", *(stage.name for stage in run.stages)]


def _section(number: int, stage: StageView, folder: Path) -> StageSection:
    found = judging.read_judging(stage)
    sorted_out = rejection.read_rejection(stage)
    charts = [
        *training_charts(stage), *(found.charts if found else ()), *(sorted_out.charts if sorted_out else ())
    ]  # fmt: skip
    prefix = f"{number:02d}-{stage.name}"
    drawn = [_drawn(chart, folder, prefix) for chart in charts]
    return StageSection(
        stage=stage, charts=drawn, judging=found, rejection=sorted_out, completions=read_browser(stage),
        shown_rows=read_shown_rows(stage),
    )  # fmt: skip


def _drawn(chart: Chart, folder: Path, prefix: str) -> Drawn:
    """Draw a chart twice; the light one also becomes a file."""
    light, dark = draw(chart.figure, LIGHT), draw(chart.figure, DARK)
    path = folder / f"{prefix}-{chart.name}.png"
    with writing(path):
        folder.mkdir(parents=True, exist_ok=True)
        path.write_bytes(light)
    width, height = struct.unpack(">II", light[16:24])
    return Drawn(chart=chart, light=_uri(light), dark=_uri(dark), width=width // 2, height=height // 2)


def _uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()
