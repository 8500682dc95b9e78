"""The benchmark of online RL: both sides take the same steps, and what differs is not compared; figures by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import grpo
from benchmarks.__main__ import main, parser
from benchmarks.grpo import check_same_work, learning_of, sides_of
from benchmarks.grpo_figures import describe, summarise
from benchmarks.grpo_job import (
    REWARD,
    Job,
    Learned,
    Learning,
    Outcome,
    Side,
    Step,
    read_job,
    read_outcome,
    write_job,
    write_outcome,
)
from benchmarks.grpo_prepare import prepare
from benchmarks.grpo_reward import share_of_letters
from benchmarks.grpo_side import measure
from benchmarks.shapes import SHAPES
from benchmarks.table import BEGIN, END, save, write_readme
from whet.errors import RunError


def learning(folder: Path) -> Learning:
    options = parser().parse_args(
        ["grpo", "--model", "tiny", "--prompts", "2", "--samples", "3", "--new-tokens", "4", "--steps", "2",
         "--warmup", "0"]
    )  # fmt: skip
    return learning_of(options, folder)


def step(seconds: float, generate: float = 0.5, score: float = 0.25) -> Step:
    return Step(
        seconds=seconds, generate_seconds=generate, score_seconds=score, reward=0.5, kl=0.0,
        prompt_ids=[[1, 2], [3]], lengths=[4] * 6,
    )  # fmt: skip


def outcome(seconds: list[float], peak: int = 2_000_000_000) -> Outcome:
    learned = Learned(steps=[step(second) for second in seconds], kl_weight=0.04)
    return Outcome(learned=learned, peak_bytes=peak, imported_bytes=400_000_000, threads=2)


def test_jobs_and_outcomes_survive_their_files(tmp_path: Path) -> None:
    job = Job(side="trl-tuned", learning=learning(tmp_path), folder="x")
    write_job(tmp_path / "job.json", job)
    assert read_job(tmp_path / "job.json") == job
    write_outcome(tmp_path / "out.json", outcome([1.0, 2.0]))
    assert read_outcome(tmp_path / "out.json") == outcome([1.0, 2.0])


def test_the_reward_is_the_share_of_letters() -> None:
    assert share_of_letters("asked", "ab 1") == 0.5
    assert share_of_letters("asked", "") == 0.0


def test_the_checkpoint_answers_in_text_whatever_it_draws(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    made = learning(tmp_path)
    prepare(made, "tiny", 20)
    tokenizer = AutoTokenizer.from_pretrained(made.checkpoint)
    size = SHAPES["tiny"].vocabulary
    assert len(tokenizer) == size
    words = [tokenizer.decode([token]) for token in range(size // 2, size)]
    assert len(set(words)) == len(words) and all(map(str.strip, words))
    prompt = Path(made.data).read_text(encoding="utf-8").splitlines()[0]
    assert tokenizer.decode(tokenizer.encode(prompt)) == prompt


def test_both_sides_take_the_same_steps(tmp_path: Path) -> None:
    pytest.importorskip("trl", minversion="1.16.0")
    made = learning(tmp_path)
    prepare(made, "tiny", 20)
    sides: list[Side] = ["whet", "trl-tuned", "trl-default"]
    outcomes = {side: measure(Job(side=side, learning=made, folder=str(tmp_path / side))) for side in sides}
    check_same_work(outcomes, made)
    for side, measured in outcomes.items():
        for taken in measured.learned.steps:
            assert len(taken.prompt_ids) == 2 and all(len(ids) > 20 for ids in taken.prompt_ids)
            assert 0.3 < taken.reward < 1.0, side
            assert taken.seconds > taken.generate_seconds > 0 and taken.score_seconds >= 0 and taken.train_seconds > 0
        assert measured.learned.steps[0].kl == pytest.approx(0.0, abs=1e-6)
        assert measured.peak_bytes >= measured.imported_bytes > 0
    assert outcomes["whet"].learned.reward_process_bytes > 1_000_000
    first, second = outcomes["whet"].learned.steps
    assert first.prompt_ids != second.prompt_ids


def moved(change: Callable[[Step], Step]) -> Outcome:
    """An outcome whose last step is another."""
    made = outcome([1.0, 1.0])
    steps = [made.learned.steps[0], change(made.learned.steps[1])]
    return replace(made, learned=replace(made.learned, steps=steps))


@pytest.mark.parametrize(
    ("other", "complaint"),
    [
        (outcome([1.0]), "steps: trl-tuned did not do the work"),
        (replace(outcome([1.0, 1.0]), learned=replace(outcome([1.0, 1.0]).learned, kl_weight=0.0)), "kl_weight: trl"),
        (moved(lambda step: replace(step, lengths=[4, 4, 4, 4, 4, 3])), "answers: trl-tuned did not do the work"),
        (moved(lambda step: replace(step, prompt_ids=[[1, 2], [4]])), "prompts: whet and trl-tuned did not"),
    ],
)
def test_sides_that_did_other_work_are_not_compared(other: Outcome, complaint: str, tmp_path: Path) -> None:
    made, ours = learning(tmp_path), outcome([1.0, 1.0])
    check_same_work({"whet": ours, "trl-tuned": ours}, made)
    with pytest.raises(RunError, match=complaint):
        check_same_work({"whet": ours, "trl-tuned": other}, made)


def test_figures_by_hand() -> None:
    fast, slow = [outcome([9, 1, 2]), outcome([9, 1, 3])], [outcome([9, 6, 6], 4_000_000_000), outcome([9, 8, 8])]
    first, second = summarise({"whet": fast, "trl-tuned": slow}, warmup=1, step_tokens=14)
    assert (first.step_seconds, second.step_seconds) == (1.5, 7.0)
    assert (first.generate_seconds, first.score_seconds, first.train_seconds) == (0.5, 0.25, 0.75)
    assert (first.tokens_per_second, second.tokens_per_second) == (8.0, 2.0)
    assert first.time_ratio is None and second.time_ratio is not None and second.memory_ratio is not None
    assert (second.time_ratio.low, second.time_ratio.median, second.time_ratio.high) == (4.0, 4.0, 4.0)
    assert (second.memory_ratio.low, second.memory_ratio.high) == (0.5, 1.0)
    told = describe([first, second])
    assert "4.00x (4.00-4.00)" in told and "whet: mean reward by step 0.5000 0.5000 0.5000" in told


def test_sides_are_known_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert sides_of(parser().parse_args(["grpo"])) == ("whet", "trl-tuned", "trl-default")
    assert sides_of(parser().parse_args(["grpo", "--sides", "trl-tuned,whet"])) == ("trl-tuned", "whet")
    assert main(["grpo", "--sides", "trl"]) == 2
    assert "no such side" in capsys.readouterr().err


def test_a_kept_comparison_becomes_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def answered(command: list[str], _: Path) -> None:
        slower = 4.0 if "trl" in command[-1] else 1.0
        write_outcome(Path(command[-1]), outcome([slower, slower]))

    monkeypatch.setattr(grpo, "call", answered)
    monkeypatch.setattr(grpo, "prepare", lambda *told: None)
    monkeypatch.setattr(grpo, "save", lambda name, entry: save(name, entry, tmp_path / "results"))
    (tmp_path / "results").mkdir()
    readme = tmp_path / "README.md"
    readme.write_text(f"{BEGIN}\n{END}\n", encoding="utf-8")
    told = ["grpo", "--model", "tiny", "--prompts", "2", "--samples", "3", "--new-tokens", "4", "--steps", "1"]
    asked = [*told, "--warmup", "1", "--rounds", "1", "--sides", "whet,trl-tuned", "--save", "machine"]
    assert main([*asked, "--work", str(tmp_path)]) == 0
    write_readme(readme, tmp_path / "results")
    text = readme.read_text(encoding="utf-8")
    assert "| grpo | tiny | 2 | 3 | 4 | 2 | whet | 1 | 0.5 | 0.25 | 0.25 | 2.00 |  |  | 20" in text
    assert "| trl-tuned | 4 | 0.5 | 0.25 | 3.25 | 2.00 | 4.00 (4.00 to 4.00) | 1.00 (1.00 to 1.00) |" in text


def test_the_reward_is_a_file_that_whet_can_load() -> None:
    assert Path(REWARD).is_file()
