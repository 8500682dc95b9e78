"""Fonts of the charts, and the characters that none of them has."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cache

from matplotlib import font_manager

from whet.report.figures import Figure, Histogram, Intervals

CJK_FONTS = (
    "Noto Sans CJK SC",
    "Noto Sans SC",
    "Noto Sans CJK JP",
    "Source Han Sans SC",
    "Source Han Sans CN",
    "PingFang SC",
    "Hiragino Sans GB",
    "Heiti SC",
    "Heiti TC",
    "Microsoft YaHei",
    "SimHei",
    "WenQuanYi Micro Hei",
    "WenQuanYi Zen Hei",
    "Droid Sans Fallback",
    "Arial Unicode MS",
)
"""With Chinese characters: of Linux, macOS and Windows, the better ones first."""
MOST_NAMED = 12
"""Characters that a sentence names."""


def families() -> tuple[str, ...]:
    """Installed fonts in the order in which a character is looked for."""
    installed = set(font_manager.get_font_names())
    return "DejaVu Sans", *(name for name in CJK_FONTS if name in installed)


def lacking(figures: Iterable[Figure]) -> str | None:
    """Which characters of the charts are drawn as boxes, and what helps, in a sentence; None where all have a glyph."""
    known = _characters(families())
    shown = dict.fromkeys(letter for figure in figures for text in _texts(figure) for letter in text)
    missing = [letter for letter in shown if letter.isprintable() and ord(letter) not in known]
    if not missing:
        return None
    more = f" and {len(missing) - MOST_NAMED} more" if len(missing) > MOST_NAMED else ""
    return (
        f"The charts have boxes in place of {' '.join(missing[:MOST_NAMED])}{more}: no font they know on this machine "
        "has them. For Chinese, Japanese and Korean install Noto Sans CJK (Debian and Ubuntu: fonts-noto-cjk) and "
        "write the report again."
    )


@cache
def _characters(names: tuple[str, ...]) -> frozenset[int]:
    fonts = (font_manager.get_font(font_manager.findfont(name)) for name in names)
    return frozenset(code for font in fonts for code in font.get_charmap())


def _texts(figure: Figure) -> Iterator[str]:
    """Every word of a chart that somebody may have chosen."""
    if isinstance(figure, Histogram):
        yield from (figure.xlabel, figure.ylabel)
    elif isinstance(figure, Intervals):
        for group, bars in figure.groups:
            yield from (group, *(bar.label for bar in bars))
    else:
        for panel in figure.panels:
            yield from (panel.ylabel, *(series.label for series in panel.series), *(words for _, words in panel.levels))
        yield from (words for _, words in figure.marks)
