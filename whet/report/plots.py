"""Figures drawn with matplotlib as PNG, for a light and for a dark page."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import assert_never

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import MaxNLocator
from PIL import Image

from whet.report.figures import Figure, Histogram, Intervals, Lines, Panel, Role, Series
from whet.report.fonts import families
from whet.report.series import LARGEST, moving_average

WIDTH = 5.2
"""Inches; a chart is shown at 100 CSS pixels an inch and drawn twice as fine."""
DOTS_PER_INCH = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Theme:
    """Colours of a page. Hues after Okabe and Ito, told apart by colour-blind readers too."""

    paper: str
    ink: str
    faint: str
    grid: str
    roles: Mapping[Role, str]


LIGHT = Theme(
    paper="#ffffff", ink="#23272e", faint="#6c7480", grid="#e7e9ed",
    roles={
        "train": "#2166ac", "eval": "#c8501e", "chosen": "#14805e", "rejected": "#b8442f", "margin": "#7a4f9a",
        "accuracy": "#2166ac", "neutral": "#5c6572", "second": "#a06a00",
    },
)  # fmt: skip
DARK = Theme(
    paper="#1b1e24", ink="#e6e8eb", faint="#98a1ad", grid="#2d323a",
    roles={
        "train": "#6db1ee", "eval": "#f2935c", "chosen": "#4fc79c", "rejected": "#f0836e", "margin": "#c39be6",
        "accuracy": "#6db1ee", "neutral": "#a7b0bc", "second": "#e0ae4a",
    },
)  # fmt: skip


def draw(figure: Figure, theme: Theme = LIGHT) -> bytes:
    """The figure as PNG bytes; the same figure gives the same bytes."""
    with matplotlib.rc_context(_style(theme)):  # type: ignore[arg-type]
        match figure:
            case Lines():
                canvas = _lines(figure, theme)
            case Histogram():
                canvas = _histogram(figure, theme)
            case Intervals():
                canvas = _intervals(figure, theme)
            case _:
                assert_never(figure)
        return _png(canvas)


def _png(canvas: Canvas) -> bytes:
    """The picture in 64 colours: a third of the bytes, and no eye sees the difference in line art."""
    agg = FigureCanvasAgg(canvas)
    with warnings.catch_warnings():  # a warning for every character and every picture: `fonts.lacking` says it once
        warnings.filterwarnings("ignore", message=r"Glyph \d+ .* missing from", category=UserWarning)
        agg.draw()  # type: ignore[no-untyped-call]
    picture = Image.fromarray(np.asarray(agg.buffer_rgba())).convert("RGB")  # type: ignore[no-untyped-call]
    buffer = io.BytesIO()
    picture.quantize(64, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE).save(buffer, format="png")
    return buffer.getvalue()


def _axes(canvas: Canvas, num: int, *, left: float = 0.8, top: float = 0.08) -> list[Axes]:
    """Axes one above the other with fixed margins in inches, so that charts of a page line up."""
    width, height = canvas.get_size_inches()
    canvas.subplots_adjust(
        left=left / width, right=1 - 0.12 / width, top=1 - top / height, bottom=0.5 / height, hspace=0.12
    )
    axes = list(canvas.subplots(num, 1, sharex=True, squeeze=False)[:, 0])
    for ax in axes:
        ax.yaxis.set_label_coords(-0.66 / (width - left - 0.12), 0.5)
    return axes


def _style(theme: Theme) -> dict[str, object]:
    return {
        "font.family": [*families()],
        "font.size": 10,
        "text.parse_math": False,
        "text.color": theme.ink,
        "axes.labelcolor": theme.faint,
        "axes.edgecolor": theme.grid,
        "axes.facecolor": theme.paper,
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.spines.left": False,
        "figure.facecolor": theme.paper,
        "figure.dpi": DOTS_PER_INCH,
        "grid.color": theme.grid,
        "grid.linewidth": 0.8,
        "xtick.color": theme.faint,
        "ytick.color": theme.faint,
        "xtick.major.size": 0,
        "ytick.major.size": 0,
        "legend.frameon": False,
        "legend.borderaxespad": 0,
        "legend.fontsize": 9.5,
        "lines.linewidth": 1.8,
        "lines.solid_capstyle": "round",
    }


def _lines(figure: Lines, theme: Theme) -> Canvas:
    num = len(figure.panels)
    canvas = Canvas(figsize=(WIDTH, 3.1 if num == 1 else 0.5 + 1.75 * num))
    axes = _axes(canvas, num, top=0.34 if figure.marks or any(len(p.series) > 1 for p in figure.panels) else 0.1)
    for ax, panel in zip(axes, figure.panels, strict=True):
        _panel(ax, panel, theme)
        for place, words in figure.marks:
            ax.axvline(place, color=theme.faint, linewidth=1, linestyle=(0, (2, 2)), label=words)
        if ax is axes[0] and (len(panel.series) > 1 or figure.marks):
            ax.legend(loc="lower left", bbox_to_anchor=(-0.01, 1.0), ncols=4, handlelength=1.3, columnspacing=1.1)
    weights = {series.smooth for panel in figure.panels for series in panel.series if series.smooth is not None}
    smoothing = f"   (faint: every step; bold: moving average, {max(weights):g})" if weights else ""
    axes[-1].set_xlabel(figure.xlabel + smoothing, fontsize=9)
    axes[-1].xaxis.set_major_locator(MaxNLocator(7, integer=True))
    return canvas


def _panel(ax: Axes, panel: Panel, theme: Theme) -> None:
    for series in panel.series:
        _series(ax, series, theme)
    for value, words in panel.levels:
        ax.axhline(value, color=theme.faint, linewidth=1, linestyle=(0, (4, 3)))
        ax.annotate(
            words, (1, value), xycoords=("axes fraction", "data"), xytext=(0, 3), textcoords="offset points",
            ha="right", va="bottom", fontsize=9, color=theme.faint,
            bbox={"facecolor": theme.paper, "edgecolor": "none", "alpha": 0.8, "pad": 0.5},
        )  # fmt: skip
    ax.set_ylabel(panel.ylabel)
    if "\n" in panel.ylabel:  # two lines in the place of one
        ax.yaxis.label.set(va="center", fontsize=9, linespacing=1.0)
    ax.set_ylim(*panel.bounds)
    ax.yaxis.set_major_locator(MaxNLocator(5))
    ax.yaxis.set_major_formatter(_plain)
    ax.margins(x=0.02)


def _plain(value: float, place: float) -> str:
    """Tick labels without a factor hidden in the corner, and short: 1.5e-5."""
    return f"{value:g}".replace("e-0", "e-").replace("-", "\N{MINUS SIGN}")


def _series(ax: Axes, series: Series, theme: Theme) -> None:
    colour, values = theme.roles[series.role], _drawable(series.y)
    if series.smooth is not None:
        ax.plot(series.x, values, color=colour, alpha=0.28, linewidth=1)
        ax.plot(series.x, moving_average(values, series.smooth), color=colour, label=series.label)
    elif series.markers:
        ax.plot(
            series.x, values, color=colour, label=series.label, marker="o", markersize=5.5, markeredgewidth=1.4,
            markeredgecolor=theme.paper, linewidth=1.2,
        )  # fmt: skip
    else:
        ax.plot(series.x, values, color=colour, label=series.label, linewidth=1.4)


def _drawable(values: Sequence[float]) -> list[float]:
    """With a gap where a value is beyond fp32: the axes themselves would overflow."""
    return [value if abs(value) <= LARGEST else math.nan for value in values]


def _histogram(figure: Histogram, theme: Theme) -> Canvas:
    canvas = Canvas(figsize=(WIDTH, 2.7))
    (ax,) = _axes(canvas, 1)
    left, right = figure.edges[:-1], figure.edges[1:]
    widths = [high - low for low, high in zip(left, right, strict=True)]
    ax.bar(left, figure.counts, widths, align="edge", color=theme.roles["train"], edgecolor=theme.paper, linewidth=1.2)
    ax.grid(axis="x", visible=False)
    if figure.whole:
        ax.set_xticks([low + width / 2 for low, width in zip(left, widths, strict=True)])
        ax.set_xticklabels([f"{low + width / 2:g}" for low, width in zip(left, widths, strict=True)])
    ax.set_xlabel(figure.xlabel)
    ax.set_ylabel(figure.ylabel)
    ax.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    return canvas


def _intervals(figure: Intervals, theme: Theme) -> Canvas:
    rows = [(group, bar) for group, bars in figure.groups for bar in bars]
    canvas = Canvas(figsize=(WIDTH, 0.7 + 0.29 * len(rows) + 0.34 * len(figure.groups)))
    longest = max(len(bar.label) for _, bar in rows)
    (ax,) = _axes(canvas, 1, left=min(2.2, 0.25 + 0.085 * longest), top=0.02)
    place, ticks, names = 0.0, [], []
    for group, bars in figure.groups:
        ax.annotate(group, (0, place), xycoords=("axes fraction", "data"), fontweight="bold", va="center", fontsize=9.5)
        for index, bar in enumerate(bars):
            place += 0.9
            colour = theme.roles["train" if index == len(bars) - 1 else "neutral"]
            ax.plot([bar.low, bar.high], [place, place], color=colour, linewidth=2.4, alpha=0.55)
            ax.plot([bar.value], [place], "o", color=colour, markersize=7, markeredgecolor=theme.paper)
            ticks.append(place)
            names.append(bar.label)
        place += 1.15
    ax.set_yticks(ticks, names)
    ax.tick_params(axis="y", labelcolor=theme.ink)
    ax.set_ylim(place - 0.5, -0.6)
    ax.grid(axis="y", visible=False)
    ax.set_xlabel(figure.xlabel)
    return canvas
