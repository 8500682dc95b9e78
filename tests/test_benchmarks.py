"""The benchmark measures what it says: shapes, tokens, FLOPs and ratios by hand; each side trains on the tiny model."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

import whet.data.batch
from benchmarks import whet_side
from benchmarks.__main__ import main
from benchmarks.figures import Work, summarise, work_of
from benchmarks.flops import peak_flops, row_flops, row_tokens, shared_tokens
from benchmarks.job import Job, Outcome, Side, Trained, Training, read_job, read_outcome, write_job, write_outcome
from benchmarks.prepare import as_ids, prepare, visited
from benchmarks.rounds import check_same_work
from benchmarks.shapes import SHAPES, Shape, batch_size, build_model
from benchmarks.table import BEGIN, END, conclude, describe, save, write_readme
from benchmarks.texts import Lengths, write_texts
from whet.data.pack import pack_groups
from whet.data.rendered import Rendered, RenderedGroup
from whet.errors import DataError, RunError
from whet.models.tiny import train_tokenizer

SMALL = Shape(hidden=4, layers=2, heads=2, kv_heads=1, head_dim=2, intermediate=8, vocabulary=16)
PAIR = {"prompt": [1, 2, 3], "chosen": [4, 5], "rejected": [6]}
CONVERSATION = {"ids": [1, 2, 3, 4], "labels": [-100, -100, 3, 4]}


def training(folder: Path, **changes: object) -> Training:
    made = Training(
        task="dpo", model=str(folder / "model"), data=(str(folder / "texts.jsonl"),), rows=str(folder / "rows.json"),
        device="cpu", precision="bf16", batch_size=2, steps=3, max_length=128, learning_rate=1e-5,
        pictures=False,
    )  # fmt: skip
    return replace(made, **changes)  # type: ignore[arg-type]


def outcome(seconds: list[float], first_step: dict[str, float] | None = None, peak: int = 4_000_000_000) -> Outcome:
    losses = [0.7] * len(seconds)
    trained = Trained(step_seconds=seconds, losses=losses, first_step=first_step or {}, total_seconds=10.0)
    return Outcome(trained=trained, peak_bytes=peak, imported_bytes=500_000_000, threads=1)


def test_the_small_model_has_103m_parameters_and_the_other_is_qwen3_06b() -> None:
    assert round(SHAPES["103m"].parameters / 1e6) == 103
    assert SHAPES["0.6b"].parameters == 596_049_920


def test_parameters_and_adapter_are_counted_as_transformers_and_peft_do(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    shape = SHAPES["tiny"]
    build_model(shape, train_tokenizer(["a few words"], vocab_size=300), tmp_path, device="cpu")
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert model.dtype.itemsize == 2
    assert sum(p.numel() for p in model.parameters()) == shape.parameters
    adapted = get_peft_model(model, LoraConfig(r=3, target_modules="all-linear", task_type="CAUSAL_LM"))
    assert adapted.get_nb_trainable_parameters()[0] == shape.lora_parameters(3)


def test_a_step_of_dpo_has_as_many_pairs_as_the_facts_it_is_compared_with() -> None:
    assert [batch_size(task, "103m") for task in ("sft", "dpo", "reward")] == [4, 4, 4]
    assert [batch_size(task, "0.6b") for task in ("sft", "dpo", "reward")] == [4, 2, 4]


def test_a_pairs_prompt_counts_twice_as_tokens_and_once_as_work() -> None:
    assert row_tokens("dpo", PAIR) == 9
    assert shared_tokens("dpo", PAIR) == 6
    assert row_tokens("sft", CONVERSATION) == shared_tokens("sft", CONVERSATION) == 4


def test_flops_by_hand() -> None:
    # A layer of SMALL: q 4*4, k and v 4*2 each, o 4*4, feed-forward 3*4*8; an adapter of rank 1 on the seven of them.
    weights = 2 * (16 + 8 + 8 + 16 + 96)
    adapter = 2 * (8 + 6 + 6 + 8 + 12 + 12 + 12)
    assert (SMALL.layers * SMALL.layer_products, SMALL.lora_parameters(1)) == (weights, adapter)
    # 4 tokens, 2 of them trained; query i sees i keys, 1 + 2 + 3 + 4 = 10, in 2 layers of width 4.
    frozen, attention, lora = 2 * (4 * weights + 2 * 16 * 4), 4 * 4 * 2 * 10, 2 * 4 * adapter
    assert row_flops("sft", CONVERSATION, SMALL, 1) == 2 * frozen + 3 * attention + 3 * lora
    # 6 tokens, 3 trained; the prompt sees 6 keys, the answers 4 + 5 and 4. The reference goes forward only.
    frozen, attention, lora = 2 * (6 * weights + 3 * 16 * 4), 4 * 4 * 2 * 19, 2 * 6 * adapter
    assert row_flops("dpo", PAIR, SMALL, 1) == 3 * frozen + 4 * attention + 3 * lora
    assert row_flops("reward", PAIR, SMALL, 1) == 2 * 2 * 6 * weights + 3 * (attention + lora)


def test_the_peak_of_a_device_goes_by_its_name() -> None:
    assert peak_flops("NVIDIA H200") == 989e12
    assert peak_flops("something else") is None


def test_made_up_texts_are_the_same_each_time_and_as_long_as_asked(tmp_path: Path) -> None:
    lengths = Lengths(prompt=40, response=10)
    for name in ("a.jsonl", "b.jsonl"):
        write_texts(tmp_path / name, "dpo", 50, lengths)
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()
    rows = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 50
    assert all(30 <= len(row["prompt"].split()) <= 50 for row in rows)
    assert all(7 <= len(row[part].split()) <= 13 for row in rows for part in ("chosen", "rejected"))


def test_jobs_and_outcomes_survive_their_files(tmp_path: Path) -> None:
    job = Job(side="trl-tuned", training=training(tmp_path), folder="x")
    write_job(tmp_path / "job.json", job)
    assert read_job(tmp_path / "job.json") == job
    result = outcome([1.0, 2.0], {"loss": 0.69})
    write_outcome(tmp_path / "out.json", result)
    assert read_outcome(tmp_path / "out.json") == result


def test_the_peer_gets_the_rows_in_the_order_of_the_steps_and_none_twice(tmp_path: Path) -> None:
    rows = [Rendered(ids=(7, n), weights=(0.0, 1.0)) for n in range(9)]
    given = visited(rows, training(tmp_path, task="sft"))
    assert len({tuple(as_ids("sft", row)["ids"]) for row in given}) == 6
    first = as_ids("sft", given[0])
    assert first["labels"][0] == -100 and first["labels"][1] == first["ids"][1]
    assert given == visited(rows, training(tmp_path, task="sft", steps=4))[:6]
    with pytest.raises(DataError, match="10 rows are needed for 5 steps"):
        visited(rows, training(tmp_path, task="sft", steps=5))


def test_figures_by_hand(tmp_path: Path) -> None:
    Path(training(tmp_path).rows).write_text(json.dumps([PAIR] * 6), encoding="utf-8")
    work = work_of(training(tmp_path), 1, SMALL)
    assert (work.warmup, work.tokens, len(work.flops)) == (1, [18, 18], 2)
    work = Work(warmup=1, tokens=[100, 140], flops=[30.0, 30.0])
    fast = [outcome([9, 1, 2]), outcome([9, 1, 3])]
    slow = [outcome([9, 4, 5], peak=8_000_000_000), outcome([9, 6, 6], peak=8_000_000_000)]
    first, second = summarise({"whet": fast, "trl-tuned": slow}, work, peak=100.0)
    assert (first.step_seconds, second.step_seconds) == (1.5, 5.5)
    assert first.tokens_per_second == 480 / 7
    assert first.utilisation == pytest.approx(120 / 7 / 100)
    assert first.time_ratio is None and second.time_ratio is not None and second.memory_ratio is not None
    assert (second.time_ratio.low, second.time_ratio.median, second.time_ratio.high) == (3.0, 3.0, 3.0)
    assert second.memory_ratio.median == 0.5
    assert conclude([first, second]) == (
        "whet: 3.00 times as fast as trl-tuned, the fastest other, in 0.50 of its memory"
    )
    assert "3.00x (3.00-3.00)" in describe([first, second])


def test_sides_that_did_other_work_are_not_compared(tmp_path: Path) -> None:
    made = training(tmp_path)
    Path(made.rows).write_text(json.dumps([PAIR] * 6), encoding="utf-8")
    logged = {"tokens": 18.0, "loss": 0.6931, "logps/chosen": -20.0, "logps/rejected": -10.0}
    ours = outcome([1.0], logged)
    check_same_work({"whet": outcome([1.0], logged | {"tokens": 12.0}), "trl-tuned": ours}, made)
    with pytest.raises(RunError, match="did not train on the prepared rows"):
        check_same_work({"whet": outcome([1.0], logged | {"tokens": 13.0}), "trl-tuned": ours}, made)
    with pytest.raises(RunError, match="logps/chosen: whet and trl-tuned did not do the same work"):
        check_same_work({"whet": outcome([1.0], logged | {"logps/chosen": -20.3}), "trl-tuned": ours}, made)


def test_kept_results_become_a_table(tmp_path: Path) -> None:
    entry = {
        "date": "2026-01-31", "task": "dpo", "model": "103m", "batch_size": 4, "tokens_per_step": 1800.4,
        "precision": "bf16", "device_name": None,
        "machine": {"processor": "P", "cores": 2, "flags": ["avx2"], "memory_gb": 25.2, "python": "3.11.4",
                    "packages": {"whet": "1", "torch": "2.13.0"}},
        "sides": [
            {"side": "whet", "step_seconds": 6.0, "tokens_per_second": 300.0, "peak_gb": 2.5, "time_ratio": None,
             "memory_ratio": None, "utilisation": None},
            {"side": "trl-tuned", "step_seconds": 36.04, "tokens_per_second": 50.0, "peak_gb": 6.6, "utilisation": None,
             "time_ratio": {"median": 6.0, "low": 5.9, "high": 6.2},
             "memory_ratio": {"median": 0.38, "low": 0.38, "high": 0.39}},
        ],
    }  # fmt: skip
    save("machine", entry, tmp_path)
    save("machine", entry, tmp_path)
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n", encoding="utf-8")
    for _ in range(2):
        write_readme(readme, tmp_path)
    text = readme.read_text(encoding="utf-8")
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    assert "**P, 2 cores (avx2)**, 25 GB; Python 3.11.4, torch 2.13.0." in text
    row = "| dpo | 103m | 4 | 1800 | bf16 | trl-tuned | 36 | 50 | 6.60 | 6.00 (5.90 to 6.20) | 0.38 (0.38 to 0.39) |  |"
    assert text.count(f"{row} 2026-01-31 |") == 2


def test_a_mistake_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["dpo", "--sides", "trl-tunde", "--work", str(tmp_path)]) == 2
    assert "did you mean trl-tuned?" in capsys.readouterr().err
    assert main(["dpo", "--prompt-tokens", "600", "--work", str(tmp_path)]) == 2
    assert "--max-length: made-up rows would be cut" in capsys.readouterr().err
    assert main(["sft", "--peer", "own"]) == 2
    assert "a conversation shares no prompt" in capsys.readouterr().err
    assert main(["dpo", "--data", "x.jsonl", "--long-prompts"]) == 2
    assert "lengths are those of the files" in capsys.readouterr().err


def test_without_sharing_every_response_has_a_prompt_of_its_own_and_the_same_targets() -> None:
    groups = [
        RenderedGroup(prompt_ids=(1, 2, 3), response_ids=((4, 5), (6,))),
        RenderedGroup(prompt_ids=(7,), response_ids=((8,), (9, 10))),
    ]
    shared, apart = pack_groups(groups), whet_side.pack_apart(groups)
    assert (shared.num_tokens, apart.num_tokens) == (10, 14)
    assert apart.num_rows == shared.num_rows == 4
    assert apart.targets.tolist() == shared.targets.tolist() == [4, 5, 6, 8, 9, 10]
    assert apart.target_rows.tolist() == shared.target_rows.tolist()
    assert apart.input_ids[apart.sources].tolist() == shared.input_ids[shared.sources].tolist()
    assert apart.position_ids[apart.sources].tolist() == shared.position_ids[shared.sources].tolist()
    assert apart.input_ids[apart.ends].tolist() == [5, 6, 8, 10]


def sharpen(checkpoint: str) -> None:
    """Larger weights: what one token sees then changes the loss, and a row that sees another one's shows."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype="float32")
    for parameter in model.parameters():
        if parameter.ndim == 2:
            parameter.data.mul_(8.0)
    model.save_pretrained(checkpoint)


def first_rows(made: Training) -> list[dict[str, list[int]]]:
    rows: list[dict[str, list[int]]] = json.loads(Path(made.rows).read_text(encoding="utf-8"))
    return rows[: made.batch_size]


def prepared(folder: Path, task: str) -> Training:
    made = training(folder, task=task, precision="fp32")
    write_texts(Path(made.data[0]), made.task, 8, Lengths(prompt=12, response=8))
    prepare(made, "tiny")
    sharpen(made.model)
    return made


@pytest.mark.parametrize("task", ["sft", "dpo", "reward"])
def test_whet_visits_the_prepared_rows_with_and_without_sharing(
    task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = prepared(tmp_path, task)
    shared = whet_side.train(Job(side="whet", training=made, folder=str(tmp_path / "shared")))
    assert len(shared.step_seconds) == len(shared.losses) == 3
    assert shared.first_step["tokens"] == sum(shared_tokens(made.task, row) for row in first_rows(made))
    monkeypatch.setattr(whet.data.batch, "pack_groups", whet_side.pack_apart)
    apart = whet_side.train(Job(side="whet", training=made, folder=str(tmp_path / "apart")))
    assert apart.first_step["tokens"] == sum(row_tokens(made.task, row) for row in first_rows(made))
    assert apart.losses == pytest.approx(shared.losses, rel=1e-4)


@pytest.mark.parametrize("task", ["sft", "dpo", "reward"])
def test_trl_does_the_same_work_however_it_is_set_up(task: str, tmp_path: Path) -> None:
    pytest.importorskip("trl", minversion="1.16.0")
    from benchmarks import trl_side

    made = prepared(tmp_path, task)
    tuned = trl_side.train(Job(side="trl-tuned", training=made, folder=str(tmp_path / "tuned")))
    assert tuned.first_step["tokens"] == sum(row_tokens(made.task, row) for row in first_rows(made))
    sides: list[Side] = ["trl-one-by-one", "trl-default"]
    if task == "sft":
        sides.append("trl-padding-free")
    for side in sides:
        other = trl_side.train(Job(side=side, training=made, folder=str(tmp_path / side)))
        assert other.losses == pytest.approx(tuned.losses, rel=1e-4)
        assert other.first_step["tokens"] == tuned.first_step["tokens"]
    ours = whet_side.train(Job(side="whet", training=made, folder=str(tmp_path / "whet")))
    for name in {"loss", "logps/chosen", "logps/rejected"} & set(tuned.first_step):
        assert ours.first_step[name] == pytest.approx(tuned.first_step[name], rel=0.5 if task == "reward" else 1e-4)


def test_both_sides_see_the_same_pairs_of_pictures(tmp_path: Path) -> None:
    pytest.importorskip("trl", minversion="1.16.0")
    from benchmarks import trl_side
    from benchmarks.pictures import write_pairs

    made = training(tmp_path, pictures=True, data=(str(tmp_path / "pairs.jsonl"),), max_length=256)
    write_pairs(tmp_path / "pairs.jsonl", 8)
    prepare(made, "tiny")
    ours = whet_side.train(Job(side="whet", training=made, folder=str(tmp_path / "whet")))
    theirs = trl_side.train(Job(side="trl-tuned", training=made, folder=str(tmp_path / "trl")))
    rows = json.loads((tmp_path / "rows.json").read_text())[:2]
    assert theirs.first_step["tokens"] == sum(row_tokens("dpo", row) for row in rows)
    assert ours.first_step["tokens"] == sum(shared_tokens("dpo", row) for row in rows)
    for name in ("loss", "logps/chosen", "logps/rejected"):
        assert ours.first_step[name] == pytest.approx(theirs.first_step[name], rel=1e-2)
