"""Pictures on the report's page: small, inside it, and where they stand in rows, answers and completions."""

from __future__ import annotations

from pathlib import Path

from tests.data.drawn import draw
from whet.report.answers import side_by_side
from whet.report.pictures import thumbnails
from whet.report.rejection import _group
from whet.runs.reader import SampleRow


def test_thumbnails_of_what_can_be_read(tmp_path: Path) -> None:
    paths = [str(draw(tmp_path / f"{number}.png", 300, 200, seed=number)) for number in range(20)]
    (tmp_path / "x.png").write_text("no picture")
    assert len(thumbnails([paths[0], str(tmp_path / "x.png"), str(tmp_path / "nowhere.png"), paths[1]])) == 2
    assert len(thumbnails(paths)) == 16
    assert all(url.startswith("data:image/jpeg;base64,") and len(url) < 10_000 for url in thumbnails(paths))


def test_groups_and_answers_show_their_pictures(tmp_path: Path) -> None:
    path = str(draw(tmp_path / "a.png"))
    content = [{"type": "image", "image": path}, {"type": "text", "text": "Which?"}]
    row = {"messages": [{"role": "user", "content": content}], "answers": [], "reference": None}
    group = _group(row)
    assert group.prompt == "[image]Which?" and len(group.pictures) == 1
    sample = SampleRow(
        model="base", task="t", key="k", prompt="[image]Which?", completion="This.", reference=None, score=1.0,
        images=(path,),
    )  # fmt: skip
    (task,) = side_by_side([sample], ["base"])
    assert task.comparisons[0].pictures == group.pictures
    old = {"model": "m", "task": "t", "key": "k", "prompt": "p", "completion": "c"}
    assert SampleRow(**old, reference=None, score=None).images == ()  # a line of an earlier version
