"""Pictures in what stages read and write: batches, rows kept for the report, and files that are input again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from tests.data.drawn import draw, png_header
from tests.experience.groups import group
from whet.config.data import Data
from whet.config.model import Model
from whet.config.reject import Accept
from whet.config.stage import DpoStage, KtoStage, OfflineStage, RewardStage, SftStage
from whet.data.ledger import Ledger
from whet.data.sources import read_records
from whet.errors import DataError
from whet.experience.accept import sort_group
from whet.experience.pairs import Pair, candidates
from whet.experience.reject_files import reject_files
from whet.experience.rows import dpo_row, grpo_rows, prompt_row
from whet.experience.sampled import Answer, GroupFile, Sampled, read_groups
from whet.report.shown_rows import read_shown_rows
from whet.rewards.transcript import about, transcript
from whet.runs.layout import StagePaths
from whet.runs.reader import StageView
from whet.schema.artifacts import ModelRef
from whet.schema.records import Message, Part, Preference, Prompt, RecordKind, Scored
from whet.stages.context import Context
from whet.stages.prompts import fits
from whet.stages.rendering import renderer_of
from whet.stages.rows import Rows, read_rows
from whet.stages.work import Ground, work_of
from whet.train.parallel import Parallel


def write(path: Path, *rows: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def context_of(stage: OfflineStage, checkpoint: Path, folder: Path) -> Context:
    return Context(
        model=Model(path=str(checkpoint)), start=ModelRef(path=str(checkpoint)), models={}, paths=StagePaths(folder),
        folders={}, stage=stage,
    )  # fmt: skip


def rows_of(stage: OfflineStage, checkpoint: Path, folder: Path) -> tuple[Rows, Context]:
    context = context_of(stage, checkpoint, folder)
    return read_rows(stage, context, AutoTokenizer.from_pretrained(checkpoint)), context


PAIR = {"problem": "Which fits?", "chosen": "One.", "rejected": "Two."}
CASES: list[tuple[type[OfflineStage], dict[str, Any]]] = [
    (SftStage, {"problem": "Which fits?", "completion": "One."}),
    (RewardStage, PAIR),
    (KtoStage, {"prompt": "Which fits?", "completion": "One.", "label": True}),
    (DpoStage, PAIR),
]


@pytest.mark.parametrize(("kind", "row"), CASES)
def test_batches_bring_pictures_and_text_rows_mix_with_them(
    kind: type[OfflineStage], row: dict[str, Any], tmp_path: Path, tiny_vlm_checkpoint: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    draw(tmp_path / "a.png", 90, 70), draw(tmp_path / "b.png", 28, 28)
    path = write(tmp_path / "rows.jsonl", {**row, "images": ["a.png", "b.png"]}, row, {**row, "images": ["b.png"]})
    stage = kind(name="x", data=Data(files=(path,)))
    rows, context = rows_of(stage, tiny_vlm_checkpoint, tmp_path / "x")
    monkeypatch.setattr("whet.stages.work._references", lambda *_, **__: NoReference())
    ground = Ground(
        context=context, rows=rows, scorer=torch.nn.Identity(), parallel=Parallel(torch.device("cpu"), torch.float32)
    )
    batch = work_of(stage, ground).collate([0, 1, 2])
    packed = batch.rated.packed if isinstance(stage, KtoStage) else batch.packed
    assert [Path(picture.source).name for picture in packed.media.pictures] == ["a.png", "b.png", "b.png"]
    assert len(packed.media.places) == 6 + 4 + 4
    assert rows.reader is not None
    assert (packed.input_ids[packed.media.places] == rows.reader.place_id).all()
    only_text = work_of(stage, ground).collate([1])
    assert (only_text.rated if isinstance(stage, KtoStage) else only_text).packed.media is None
    view = StageView(paths=context.paths, name="x", kind=stage.kind, status="done")
    (first, second) = read_shown_rows(view)
    assert [piece.text for piece in first.pieces if piece.thumbnail] == [
        "[image 2×3 = 6 tokens a.png]", "[image 2×2 = 4 tokens b.png]"
    ]  # fmt: skip
    assert any(piece.trained and "One." in piece.text for piece in second.pieces)


class NoReference:
    def of(self, column: int = 0) -> None:
        return None


def test_a_text_checkpoint_under_the_same_plan(tmp_path: Path, tiny_checkpoint: Path) -> None:
    stage = SftStage(name="x", data=Data(files=(write(tmp_path / "rows.jsonl", CASES[0][1]),)))
    rows, context = rows_of(stage, tiny_checkpoint, tmp_path / "x")
    assert rows.reader is None and not context.paths.pictures.exists()


def test_prompts_with_bad_pictures_are_counted(tmp_path: Path, tiny_vlm_checkpoint: Path) -> None:
    (tmp_path / "bomb.png").write_bytes(png_header(20_000, 20_000))
    draw(tmp_path / "a.png")
    path = write(tmp_path / "p.jsonl", *({"problem": "Which?", "images": [name]} for name in ("a.png", "bomb.png")))
    data = Data(files=(path,), on_bad_row="drop")
    records, ledger = read_records(data, ("prompt",))
    renderer = renderer_of(ModelRef(path=str(tiny_vlm_checkpoint)), Model(path=str(tiny_vlm_checkpoint)))
    assert [fits(record, data, renderer, ledger) for record in records if isinstance(record, Prompt)] == [True, False]
    assert list(ledger.dropped) == ["the picture has more than 100,000,000 pixels"]
    with pytest.raises(DataError, match=r"p\.jsonl:2: images: the picture has more than"):
        fits(records[1], Data(files=(path,)), renderer, Ledger())  # type: ignore[arg-type]


def prompt_of(tmp_path: Path) -> Prompt:
    draw(tmp_path / "data" / "a.png")
    path = write(tmp_path / "data" / "p.jsonl", {"problem": "<image>Which?", "solution": "One", "images": ["a.png"]})
    (prompt,), _ = read_records(Data(files=(path,)), ("prompt",))
    assert isinstance(prompt, Prompt)
    return prompt


def test_what_reject_writes_is_input_again(tmp_path: Path) -> None:
    prompt = prompt_of(tmp_path)
    answers = [
        Answer(text=text, num_tokens=1, finish_reason="stop", score=score)
        for text, score in (("One", 1.0), ("Two", 0.0))
    ]
    with GroupFile(tmp_path / "groups.jsonl") as file:
        file.add([Sampled(key="k", prompt=prompt, answers=tuple(answers))])
    (found,) = read_groups(tmp_path / "groups.jsonl")
    assert found.prompt.messages == prompt.messages
    out = tmp_path / "run" / "stage"
    out.mkdir(parents=True)
    with reject_files(out, Accept()) as files:
        files.add(found, sort_group(found, Accept()))
    kinds: dict[str, RecordKind] = {
        "accepted": "conversation", "rejected": "rating", "preference": "preference", "solved": "prompt"
    }  # fmt: skip
    for name, kind in kinds.items():
        (record,), _ = read_records(Data(files=(str(out / f"{name}.jsonl"),)), (kind,))
        turns = record.messages if hasattr(record, "messages") else record.prompt
        assert turns[0] == prompt.messages[0], name
        assert Path(turns[0].content[0].value).is_file()


def test_what_prepare_writes_is_input_again(tmp_path: Path) -> None:
    prompt = prompt_of(tmp_path)
    (again,), _ = read_records(Data(files=(write(tmp_path / "rows.jsonl", prompt_row(prompt)),)), ("prompt",))
    assert isinstance(again, Prompt) and again.messages == prompt.messages and again.reference == "One"
    scored = group(("One", 5.0), ("Two", 1.0), prompt=prompt)
    best, worst = candidates(scored)
    pair = dpo_row(scored, Pair(chosen=best, rejected=worst))
    (preference,), _ = read_records(Data(files=(write(tmp_path / "pairs.jsonl", pair),)), ("preference",))
    assert isinstance(preference, Preference) and preference.prompt == prompt.messages
    grouped = grpo_rows(scored)
    answers, _ = read_records(Data(files=(write(tmp_path / "scored.jsonl", *grouped),)), ("scored",))
    assert [answer.prompt for answer in answers if isinstance(answer, Scored)] == [prompt.messages] * 2


def test_judges_see_the_pictures_of_a_prompt(tmp_path: Path) -> None:
    prompt = prompt_of(tmp_path)
    assert transcript(prompt.messages) == "[image]Which?"
    path = str(tmp_path / "data" / "a.png")
    assert about(prompt, "Is it right?").content == (Part("image", path), Part("text", "Is it right?"))
    text = Prompt(messages=(Message("user", "Which?"),))
    assert about(text, "Is it right?") == Message("user", "Is it right?")
