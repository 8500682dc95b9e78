"""`whet score`: one line a row in the file's order, the same numbers however rows are batched, mistakes in one line."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.data.drawn import draw
from whet.cli import main
from whet.config.data import Data
from whet.config.model import Model
from whet.config.reward import RewardHead
from whet.data.ledger import Ledger
from whet.data.render import Renderer
from whet.errors import DataError
from whet.models.load import load_tokenizer
from whet.models.reward import load_reward_model, save_reward_model
from whet.models.scoring import RowScorer
from whet.schema.artifacts import ModelRef
from whet.schema.records import NOWHERE
from whet.stages import score as scoring
from whet.stages.score import Summary
from whet.stages.score_rows import ScoreRow, batches, read_rows, windows

ROWS: dict[str, dict[str, Any]] = {
    "preference": {"prompt": "How much is 12 plus 30?", "chosen": "42", "rejected": "It is 1230, I think."},
    "rating": {"prompt": "How much is 12 plus 30?", "completion": "42", "label": True},
    "ranking": {"prompt": "Name a fruit.", "responses": ["pear", "stone", "apple"], "rankings": [1, 3, 2]},
    "scored": {"prompt": "Name a fruit.", "responses": ["pear", "stone"], "rewards": [1.0, -1.0]},
    "conversation": {
        "messages": [
            {"role": "user", "content": "Name a fruit."}, {"role": "assistant", "content": "pear"},
            {"role": "user", "content": "Another."}, {"role": "assistant", "content": "apple"},
        ]
    },
}  # fmt: skip
NUM = {"preference": 2, "rating": 1, "ranking": 3, "scored": 2, "conversation": 1}


@pytest.fixture(scope="module")
def reward_model(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reward model whose scores are far from equal."""
    folder = tmp_path_factory.mktemp("reward") / "model"
    ref, config = ModelRef(path=str(tiny_checkpoint)), Model(path=str(tiny_checkpoint), lora=None, device="cpu")
    model = load_reward_model(ref, config, RewardHead(), dtype=torch.float32, trainable=True, seed=1)
    with torch.no_grad():
        model.score.weight.mul_(20.0)
    save_reward_model(model, load_tokenizer(str(tiny_checkpoint)), folder)
    return folder


Score = Callable[..., tuple[int, list[dict[str, Any]], str]]


@pytest.fixture
def score(in_tmp: Path, reward_model: Path, capfd: pytest.CaptureFixture[str]) -> Score:
    """Runs the command on a file: exit code, lines on standard output, what stands on standard error."""

    def run(*args: str, model: Path | str = reward_model) -> tuple[int, list[dict[str, Any]], str]:
        capfd.readouterr()
        with pytest.raises(SystemExit) as caught:
            main(["score", *args, *(["--model", str(model)] if model else [])])
        out, err = capfd.readouterr()
        assert isinstance(caught.value.code, int)
        return caught.value.code, [json.loads(line) for line in out.splitlines()], err

    return run


def write(name: str, rows: list[Any]) -> str:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return name


def test_every_kind_of_row_with_answers(score: Score) -> None:
    for kind, row in ROWS.items():
        code, lines, err = score(write("rows.jsonl", [row]))
        assert code == 0, err
        (line,) = lines
        assert (line["file"], line["line"], len(line["scores"])) == ("rows.jsonl", 1, NUM[kind])
        assert len(set(line["scores"])) == NUM[kind]
        assert f"1 rows, {NUM[kind]} responses scored" in err
        assert ("pairs in the file's order" in err) == (kind in ("preference", "ranking", "scored"))


def test_the_last_answer_of_a_conversation_is_scored(score: Score) -> None:
    turns = ROWS["conversation"]["messages"]
    rating = {"messages": turns, "label": True}
    further = {"messages": [*turns, {"role": "user", "content": "Thanks!"}]}
    first = {"prompt": turns[:1], "chosen": [turns[1]], "rejected": "stone"}
    (conversation,), (rated,), (thanked,), (pair,) = (
        score(write("rows.jsonl", [row]))[1] for row in (ROWS["conversation"], rating, further, first)
    )
    assert conversation["scores"] == rated["scores"] == thanked["scores"]
    assert conversation["scores"][0] != pair["scores"][0]


def pairs(num: int) -> list[dict[str, str]]:
    draw = random.Random(0)

    def words() -> str:
        return " ".join(draw.choice(["apple", "pear", "plum", "Paris"]) for _ in range(draw.randint(1, 40)))

    return [{"prompt": words(), "chosen": words(), "rejected": words()} for _ in range(num)]


def test_batches_and_windows_change_nothing(score: Score, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write("pairs.jsonl", pairs(50))
    code, expected, err = score(file)
    assert code == 0 and [line["line"] for line in expected] == list(range(1, 51))
    monkeypatch.setattr(scoring, "WINDOW_BATCHES", 2)
    for tokens in ("1", "120", "1000"):
        _, lines, _ = score(file, "--batch-tokens", tokens)
        assert [line["line"] for line in lines] == list(range(1, 51))
        for line, other in zip(lines, expected, strict=True):
            assert line["scores"] == pytest.approx(other["scores"], abs=1e-5)
    chosen = [line["scores"] for line in expected]
    right = sum(better > worse for better, worse in chosen) / 50
    assert f"accuracy: {right:.3f} [" in err and "of 50 pairs in the file's order" in err


def test_the_summary_by_hand() -> None:
    summary = Summary()
    summary.add(row(order=(1.0, 0.0)), (3.0, 1.0))
    summary.add(row(order=(-2.0, -1.0, -1.0)), (1.0, 1.0, 4.0))
    summary.add(row(), (6.0,))
    summary.add(row(reason="is too long"), None)
    # 3 1 1 1 4 6: mean 16/6; squared distances sum to 64 - 256/6. Pairs: right; a tie, right.
    assert summary.mean == pytest.approx(16 / 6) and summary.std == pytest.approx(((64 - 256 / 6) / 6) ** 0.5)
    assert (summary.pairs, summary.right, summary.ordered_rows) == (3, 2.5, 2)
    assert (summary.rows, summary.responses, summary.low, summary.high) == (4, 6, 1.0, 6.0)
    assert any("not scored: 1 rows; 1 is too long" in line for line in summary.lines(1.0))


def row(**fields: Any) -> ScoreRow:
    return ScoreRow(origin=NOWHERE, **fields)


def test_out_is_written_whole_and_never_over_another(score: Score) -> None:
    file = write("pairs.jsonl", pairs(3))
    code, lines, _ = score(file, "--out", "made/scores.jsonl")
    assert code == 0 and not lines
    assert len(Path("made/scores.jsonl").read_text().splitlines()) == 3
    assert [path.name for path in Path("made").iterdir()] == ["scores.jsonl"]
    code, _, err = score(file, "--out", "made/scores.jsonl")
    assert code == 2 and "made/scores.jsonl: exists already" in err


def test_with_content_it_is_a_file_of_scored_rows(score: Score) -> None:
    rows = [ROWS["preference"], ROWS["preference"] | {"chosen": "forty-two"}]
    _, lines, _ = score(write("pairs.jsonl", rows), "--with-content")
    assert lines[1]["prompt"] == "How much is 12 plus 30?"
    assert lines[1]["responses"] == ["forty-two", "It is 1230, I think."]
    _, again, _ = score(write("scored.jsonl", lines))
    assert [line["scores"] for line in again] == [pytest.approx(line["scores"], abs=1e-5) for line in lines]


def test_long_rows_are_cut_dropped_or_refused(score: Score) -> None:
    long = {"prompt": "Write.", "chosen": "apple " * 60, "rejected": "pear"}
    file = write("pairs.jsonl", [ROWS["preference"], long])
    code, lines, err = score(file, "max_length=80")
    assert code == 0 and "truncated" not in lines[0] and lines[1]["truncated"] is True
    assert "cut at data.max_length: 1 rows" in err
    code, lines, err = score(file, "max_length=80", "on_overlong=drop")
    assert code == 0 and lines[1] == {
        "file": "pairs.jsonl", "line": 2, "scores": None, "problem": "longer than max_length",
    }  # fmt: skip
    assert "not scored: 1 rows; 1 longer than max_length" in err
    code, _, err = score(file, "max_length=80", "on_overlong=error")
    assert code == 2 and "error: pairs.jsonl:2: " in err and "data.max_length is 80" in err


def test_rows_without_answers_are_named(score: Score) -> None:
    file = write("rows.jsonl", [ROWS["conversation"], {"messages": [{"role": "user", "content": "Name a fruit."}]}])
    code, _, err = score(file)
    assert code == 2 and "error: rows.jsonl:2: has no response to score" in err
    code, lines, err = score(file, "on_bad_row=drop")
    assert code == 0 and lines[1]["scores"] is None and lines[1]["problem"].startswith("rows.jsonl:2: has no response")
    assert "not scored: 1 rows; 1 has no response to score" in err
    Path("prompts.txt").write_text("Name a fruit.\n")
    code, _, err = score("prompts.txt")
    assert code == 2 and "error: prompts.txt:1: has no response to score" in err
    Path("broken.jsonl").write_text(json.dumps(ROWS["preference"]) + "\n{\n")
    code, _, err = score("broken.jsonl")
    assert code == 2 and "broken.jsonl:2" in err and not Path("scores.jsonl").exists()


def test_mistakes_are_one_line(score: Score, tiny_checkpoint: Path) -> None:
    file = write("pairs.jsonl", pairs(1))
    for args, model, message in [
        ((file,), tiny_checkpoint, "error: model.path: a language model, not a reward model"),
        ((file,), "", "error: --model: which reward model?"),
        (("nope.jsonl",), None, "error: nope.jsonl: no such file"),
        ((file, "num_samples=3"), None, "error: data.num_samples: has no meaning here"),
        ((file, "formt=alpaca"), None, "error: override: data.formt: unknown key; did you mean data.format?"),
        ((file, "--precision", "fp8"), None, "error: --precision: must be one of auto, bf16, fp16, fp32"),
        ((file, "--device", "tpu"), None, "error: --device: must be one of auto, cpu, cuda, mps, npu, xpu"),
    ]:
        code, lines, err = score(*args) if model is None else score(*args, model=model)
        assert code == 2 and not lines
        assert [line for line in err.splitlines() if line.startswith("error: ")] == [
            line for line in err.splitlines() if line.startswith(message)
        ], err
        assert message in err


def test_a_device_that_is_not_there_is_one_line(score: Score, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    code, lines, err = score(write("pairs.jsonl", pairs(1)), "--device", "cuda")
    assert code == 2 and not lines and "Traceback" not in err
    assert "error: --device: torch finds no such device on this machine (found 'cuda'); use auto or cpu" in err


def test_the_folder_of_an_unfinished_stage_is_refused(score: Score) -> None:
    Path("01-reward").mkdir()
    status = {"name": "reward", "kind": "reward", "status": "failed", "config": {}, "inputs": {}, "started": "now",
              "evaluation": []}  # fmt: skip
    Path("01-reward/status.json").write_text(json.dumps(status))
    code, _, err = score(write("pairs.jsonl", pairs(1)), model="01-reward")
    assert code == 2 and "error: model: this stage has made no model (found '01-reward')" in err


def test_whoever_reads_the_first_lines_may_leave(reward_model: Path, in_tmp: Path, repository: Path) -> None:
    file = write("pairs.jsonl", pairs(300))
    command = [sys.executable, "-m", "whet", "score", file, "--model", str(reward_model), "--batch-tokens", "64"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(repository)},
    )  # fmt: skip
    assert process.stdout is not None and process.stderr is not None
    assert json.loads(process.stdout.readline())["line"] == 1
    process.stdout.close()
    err = process.stderr.read()
    assert process.wait() == 0 and "Traceback" not in err and "BrokenPipe" not in err


def test_a_long_file_is_never_held(tiny_checkpoint: Path, in_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are read as they are asked for: a window is out before the rows behind it are read."""
    file = write("pairs.jsonl", pairs(3000))
    asked = 0

    class Counting(Renderer):
        def draft(self, record: Any) -> Any:
            nonlocal asked
            asked += 1
            return super().draft(record)

    renderer = Counting(load_tokenizer(str(tiny_checkpoint)))
    rows: Iterator[ScoreRow] = read_rows(file, Data(), renderer, Ledger())
    (first,) = islice(windows(rows, 100), 1)
    assert sum(row.num_tokens for row in first) >= 100 and len(first) < 20
    assert asked <= 256
    assert sum(map(len, windows(rows, 100))) + len(first) == asked == 3000


def test_batches_hold_rows_of_similar_length() -> None:
    draw = random.Random(1)
    lengths = [draw.randint(1, 50) for _ in range(200)]
    parts = batches(lengths, 100)
    assert sorted(place for part in parts for place in part) == list(range(200))
    assert all(sum(lengths[place] for place in part) <= 100 for part in parts)
    wasted = sum(max(lengths[p] for p in part) * len(part) - sum(lengths[p] for p in part) for part in parts)
    assert wasted < 0.05 * sum(lengths)
    assert batches([300, 5], 100) == [[0], [1]] and batches([], 100) == []


def test_a_score_that_is_no_number_is_refused(
    score: Score, reward_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> torch.Tensor:
        return torch.full((2,), float("nan"))

    monkeypatch.setattr(RowScorer, "forward", broken)
    code, _, err = score(write("pairs.jsonl", pairs(1)), "--out", "scores.jsonl")
    assert code == 2 and "pairs.jsonl:1: gives nan as a score" in err
    assert not Path("scores.jsonl").exists() and Path("scores.jsonl.part").exists()


@pytest.mark.parametrize("name", ["dpo_en_demo.json", "kto_en_demo.json", "alpaca_en_demo.json"])
def test_real_files(score: Score, real_data: Path, name: str) -> None:
    rows = json.loads((real_data / name).read_text())[:12]
    Path(name).write_text(json.dumps(rows))
    code, lines, err = score(name, "max_length=2048")
    assert code == 0, err
    assert len(lines) == 12 and sum(line["scores"] is not None for line in lines) >= 6


def test_reading_complains_when_asked(in_tmp: Path, tiny_checkpoint: Path) -> None:
    file = write("pairs.jsonl", [{"prompt": "a", "chosen": "b"}])
    with pytest.raises(DataError, match=r"pairs\.jsonl:1"):
        list(read_rows(file, Data(), Renderer(load_tokenizer(str(tiny_checkpoint))), Ledger()))


def test_pictures_are_seen(tiny_vlm_checkpoint: Path, tmp_path: Path, score: Score) -> None:
    """Other pictures give other scores, rows of text stand among them, and too many pictures are thinned."""
    ref, config = ModelRef(path=str(tiny_vlm_checkpoint)), Model(path=str(tiny_vlm_checkpoint), lora=None, device="cpu")
    model = load_reward_model(ref, config, RewardHead(), dtype=torch.float32, trainable=True, seed=1)
    with torch.no_grad():
        model.score.weight.mul_(20.0)
    save_reward_model(model, load_tokenizer(str(tiny_vlm_checkpoint)), tmp_path / "reward")
    draw(tmp_path / "a.png", 90, 70), draw(tmp_path / "b.png", 90, 70, seed=90)
    pair = {"prompt": "Which?", "chosen": "This.", "rejected": "That."}
    rows = [pair, *(pair | {"images": images} for images in (["a.png"], ["b.png"], ["a.png"], ["a.png", "b.png"]))]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    code, lines, err = score(str(path), "max_images=1", model=tmp_path / "reward")
    text, first, other, again, thinned = (line["scores"] for line in lines)
    assert code == 0 and first == pytest.approx(again, abs=1e-5) and first == pytest.approx(thinned, abs=1e-5)
    assert first != pytest.approx(other, abs=1e-4) and first != pytest.approx(text, abs=1e-4)
    assert "fewer pictures than they have, by data.max_images: 1 rows" in err
    _, small, _ = score(str(path), "--max-pixels", "800", "--min-pixels", "784", model=tmp_path / "reward")
    assert small[0]["scores"] == pytest.approx(text, abs=1e-5) and small[1]["scores"] != pytest.approx(first, abs=1e-4)
