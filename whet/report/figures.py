"""What a chart shows, as data: built by `charts`, drawn by `plots`.

Lines(panels=(Panel(ylabel="loss", series=(Series("train", x, y, role="train", smooth=True),)),))
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

Role = Literal["train", "eval", "chosen", "rejected", "margin", "accuracy", "neutral", "second"]
"""What a line means; the same meaning has the same colour on every chart."""

Numbers = Sequence[float]
"""NaN is a gap."""


@dataclass(frozen=True, slots=True)
class Series:
    """One line."""

    label: str
    x: Numbers
    y: Numbers
    role: Role
    smooth: float | None = None
    """Weight of the moving average; the raw line then stands faint behind it. None draws the values alone."""
    markers: bool = False
    """Few measured points rather than a curve of every step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One pair of axes."""

    ylabel: str
    series: tuple[Series, ...]
    levels: tuple[tuple[float, str], ...] = ()
    """Horizontal lines to compare with: value and words."""
    bounds: tuple[float | None, float | None] = (None, None)
    """Ends of the y axis; None follows the data."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lines:
    """Panels one above the other, on one x axis."""

    panels: tuple[Panel, ...]
    marks: tuple[tuple[float, str], ...] = ()
    """Vertical lines: the best checkpoint."""
    xlabel: str = "optimiser step"


@dataclass(frozen=True, slots=True, kw_only=True)
class Histogram:
    """Counts between edges; with `whole` the bars stand on whole numbers."""

    edges: Numbers
    counts: Numbers
    xlabel: str
    ylabel: str
    whole: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """A value with its interval."""

    label: str
    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Intervals:
    """Values with intervals, a group for each task, on one x axis."""

    groups: tuple[tuple[str, tuple[Bar, ...]], ...]
    xlabel: str


Figure = Lines | Histogram | Intervals


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """A figure with its words: what it is, what is healthy, what is not, and what is not here."""

    name: str
    """File name without suffix."""
    title: str
    about: str
    figure: Figure
    alarms: tuple[str, ...] = field(default=())
    """Red flags that fired, each a sentence."""
