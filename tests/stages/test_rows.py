"""What a stage trains on: rows of its kind of record, accounted for, and found again the second time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer

from whet.config.data import Data
from whet.config.model import Model
from whet.config.objective import BradleyTerry, Margin
from whet.config.stage import (
    DpoStage,
    KtoStage,
    OfflineStage,
    RewardStage,
    RewardWeightedStage,
    SftStage,
    SoftPreferenceStage,
)
from whet.data.rendered import Rendered, RenderedGroup
from whet.errors import DataError
from whet.runs.layout import StagePaths
from whet.schema.artifacts import ModelRef
from whet.stages.context import Context
from whet.stages.rows import Rows, read_rows

PAIR = {"prompt": "2 + 3?", "chosen": "5", "rejected": "6"}
RANKED = {"prompt": "2 + 3?", "responses": ["six", "5", "five"], "rankings": [3, 1, 2]}
SHARES = {"prompt": "2 + 3?", "responses": ["5", "6"], "weights": [0.75, 0.25]}
CASES: list[tuple[type[OfflineStage], dict[str, Any], int, tuple[float, ...]]] = [
    (DpoStage, PAIR, 2, ()),
    (DpoStage, RANKED, 2, ()),
    (RewardStage, PAIR | {"chosen_score": 9, "rejected_score": 2}, 2, ()),
    (RewardStage, PAIR | {"chosen_score": 9, "rejected_score": 2, "margin": 0.5}, 2, (0.5, 0.0)),
    (DpoStage, PAIR | {"margin": -1}, 2, ()),
    (RewardStage, RANKED, 3, (3.0, 1.0, 2.0)),
    (KtoStage, {"prompt": "2 + 3?", "completion": "6", "label": False}, 1, (0.0,)),
    (KtoStage, {"prompt": "2 + 3?", "completion": "5", "label": True}, 1, (1.0,)),
    (RewardWeightedStage, {"prompt": "2 + 3?", "response": "5", "reward": 4.5}, 1, (4.5,)),
    (SoftPreferenceStage, SHARES, 2, (0.75, 0.25)),
]


def rows_of(stage: OfflineStage, checkpoint: Path, folder: Path) -> Rows:
    start = ModelRef(path=str(checkpoint))
    context = Context(
        model=Model(path=str(checkpoint)), start=start, models={}, paths=StagePaths(folder), folders={}, stage=stage
    )
    return read_rows(stage, context, AutoTokenizer.from_pretrained(checkpoint))


def write(path: Path, *rows: dict[str, Any]) -> tuple[str]:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return (str(path),)


@pytest.mark.parametrize(("kind", "row", "num", "values"), CASES)
def test_every_stage_gets_the_records_it_trains_on(
    kind: type[OfflineStage], row: dict[str, Any], num: int, values: tuple[float, ...],
    tmp_path: Path, tiny_checkpoint: Path,
) -> None:  # fmt: skip
    rows = rows_of(kind(name="x", data=Data(files=write(tmp_path / "a.jsonl", row))), tiny_checkpoint, tmp_path / "x")
    group = rows.rows[0]
    assert isinstance(group, RenderedGroup)
    assert (len(group.response_ids), group.values) == (num, values)
    assert rows.lengths[0] == len(group.prompt_ids) + sum(map(len, group.response_ids))


@pytest.mark.parametrize(("margin", "leads"), [("none", [(), ()]), ("column", [(), ()]), ("scores", [(7.0, 0.0)])])
def test_a_plan_says_where_margins_come_from(
    margin: Margin, leads: list[tuple[float, ...]], tmp_path: Path, tiny_checkpoint: Path
) -> None:
    """The same file three times: rows of one margin are not taken for those of another from the token cache."""
    scored = [PAIR | {"chosen_score": 9, "rejected_score": 2}, PAIR | {"chosen_score": 2, "rejected_score": 9}]
    data = Data(files=write(tmp_path / "a.jsonl", *scored), on_bad_row="drop")
    stage = RewardStage(name="x", data=data, objective=BradleyTerry(margin=margin))
    rows = rows_of(stage, tiny_checkpoint, tmp_path / "x").rows
    assert [row.values for row in rows] == leads
    account = json.loads((tmp_path / "x" / "data.json").read_text())
    assert account["read"] == 2 and account["kept"] == len(leads)
    if margin == "scores":
        (dropped,) = account["dropped"].values()
        assert f"{data.files[0]}:2: chosen_score: calls the rejected" in dropped["example"]
        with pytest.raises(DataError, match=r"a\.jsonl:2: chosen_score: calls .* \(found 2 against 9\)"):
            rows_of(stage.model_copy(update={"data": data.model_copy(update={"on_bad_row": "error"})}),
                    tiny_checkpoint, tmp_path / "y")  # fmt: skip


def test_rows_of_the_token_cache_are_announced(
    tmp_path: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = Data(files=write(tmp_path / "a.jsonl", *[PAIR] * 1200, {"prompt": "a", "chosen": ""}), on_bad_row="drop")
    stage = DpoStage(name="dpo", data=data)
    first = rows_of(stage, tiny_checkpoint, tmp_path / "one")
    second = rows_of(stage, tiny_checkpoint, tmp_path / "two")
    account = "dpo: 1201 read, 1200 kept, 1 dropped (1 rejected is missing); 1200 rows to train on, 0 held out"
    assert capsys.readouterr().out.splitlines() == [account, f"{account}; 1,200 rows from the token cache"]
    assert (tmp_path / "one" / "data.json").read_bytes() == (tmp_path / "two" / "data.json").read_bytes()
    assert (first.digest, first.formats) == (second.digest, second.formats)
    assert np.array_equal(first.lengths, second.lengths)


def test_conversations_and_what_is_held_out(tmp_path: Path, tiny_checkpoint: Path) -> None:
    rows = [{"prompt": f"{n} + 1?", "completion": str(n + 1)} for n in range(10)]
    data = Data(files=write(tmp_path / "a.jsonl", *rows), eval_fraction=0.2)
    found = rows_of(SftStage(name="sft", data=data), tiny_checkpoint, tmp_path / "sft")
    assert (found.num_train, found.num_held_out) == (8, 2)
    assert all(isinstance(row, Rendered) for row in found.rows)


def test_nothing_left_to_train_on(tmp_path: Path, tiny_checkpoint: Path) -> None:
    data = Data(files=write(tmp_path / "a.jsonl", PAIR), max_length=8)
    with pytest.raises(DataError, match="no rows left to train on"):
        rows_of(DpoStage(name="dpo", data=data), tiny_checkpoint, tmp_path / "dpo")
    assert json.loads((tmp_path / "dpo" / "data.json").read_text())["kept"] == 0
