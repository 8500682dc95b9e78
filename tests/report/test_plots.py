import io
import math
import warnings

import pytest
from PIL import Image

from whet.report import fonts
from whet.report.figures import Bar, Histogram, Intervals, Lines, Panel, Series
from whet.report.plots import DARK, LIGHT, draw
from whet.report.series import moving_average, step_series

FIGURES = [
    Lines(
        panels=(Panel(ylabel="loss", series=(Series("train", [1, 2, 3], [1.0, math.nan, 0.5], "train", smooth=0.6),)),)
    ),
    Lines(panels=(Panel(ylabel="loss", series=(Series("train", [1], [math.nan], "train", markers=True),)),)),
    Histogram(edges=[0, 1, 2], counts=[3, 4], xlabel="score", ylabel="answers"),
    Intervals(groups=(("任务 · accuracy", (Bar(label="sft", value=0.4, low=0.3, high=0.5),)),), xlabel="share"),
]


@pytest.mark.parametrize("figure", FIGURES, ids=["gap", "nothing finite", "histogram", "intervals"])
def test_light_and_dark_pictures_repeat_byte_for_byte(figure):
    light, dark = draw(figure, LIGHT), draw(figure, DARK)
    assert draw(figure, LIGHT) == light
    assert min(Image.open(io.BytesIO(light)).convert("RGB").getpixel((2, 2))) > 250
    assert max(Image.open(io.BytesIO(dark)).convert("RGB").getpixel((2, 2))) < 60


def test_moving_average_by_hand():
    assert moving_average([4.0, 4.0, 2.0], 0.5) == pytest.approx([4.0, 4.0, 20 / 7])
    assert moving_average([4.0, math.nan, 2.0], 0.5)[2] == pytest.approx((0.5 * 2 + 0.25 * 4) / 0.75)
    assert math.isnan(moving_average([4.0, math.nan], 0.5)[1])


def test_short_curves_are_not_smoothed():
    rows = [{"step": step, "loss": 1.0} for step in range(60)]
    assert [step_series(rows[:num], "loss", "l", "train").smooth for num in (5, 20, 60)] == [None, 0.6, 0.9]


@pytest.mark.parametrize("smooth", [None, 0.9])
def test_values_beyond_fp32_are_gaps(smooth):
    huge = [(-1) ** step * 1e308 for step in range(20)]
    series = Series("loss", list(range(22)), [*huge, 1.0, 2.0], "train", smooth=smooth)
    assert draw(Lines(panels=(Panel(ylabel="loss", series=(series,)),))).startswith(b"\x89PNG")


def test_characters_without_a_glyph_are_said_once_and_not_for_every_picture(monkeypatch):
    monkeypatch.setattr(fonts.font_manager, "get_font_names", lambda: ["DejaVu Sans"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draw(FIGURES[-1])
    said = fonts.lacking([*FIGURES, FIGURES[-1]])
    assert "boxes in place of 任 务:" in said and "fonts-noto-cjk" in said
    assert fonts.lacking(FIGURES[:-1]) is None
    many = Lines(panels=(Panel(ylabel="".join(map(chr, range(0x4E00, 0x4E20))), series=()),))
    assert "and 20 more:" in fonts.lacking([many])


def test_the_common_fonts_with_chinese_are_used_where_they_are(monkeypatch):
    names = ["SimHei", "WenQuanYi Micro Hei", "Noto Sans SC", "Hiragino Sans GB", "Droid Sans Fallback", "Comic Sans"]
    monkeypatch.setattr(fonts.font_manager, "get_font_names", lambda: names)
    assert fonts.families()[0] == "DejaVu Sans" and set(fonts.families()[1:]) == set(names) - {"Comic Sans"}
