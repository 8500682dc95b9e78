"""Charts and page of online RL: each is there where its numbers are, and nowhere else."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.report.online_run import build_online_run, completion, grpo_rows, ppo_rows, round_row, stage, step_row
from tests.report.playground import NASTY
from whet.report.charts import training_charts
from whet.report.figures import Chart, Lines
from whet.report.page import write_report
from whet.runs.layout import StagePaths
from whet.runs.reader import StageView, read_run


def view(rows, kind="grpo", **config):
    return StageView(
        paths=StagePaths(Path("none")), name=kind, kind=kind, status="done", rows=tuple(rows), config=config
    )


def charts(*args, **config) -> dict[str, Chart]:
    return {chart.name: chart for chart in training_charts(view(*args, **config))}


def labels(chart: Chart) -> list[list[str]]:
    assert isinstance(chart.figure, Lines)
    return [[series.label for series in panel.series] for panel in chart.figure.panels]


@pytest.fixture(scope="module")
def online_page(tmp_path_factory):
    return write_report(build_online_run(tmp_path_factory.mktemp("online") / "run"))


def test_grpo_has_reward_and_truth_on_one_chart():
    found = charts(grpo_rows())
    assert list(found) == ["reward", "reward_parts", "signal", "lengths", "kl", "entropy", "seconds", "loss", "watch",
                           "optimiser"]  # fmt: skip
    assert found["reward"].title == "Reward and truth"
    assert labels(found["reward"]) == [["training", "held out"], ["watch/maths/accuracy"]]
    assert labels(found["reward_parts"]) == [["training", "held out"], ["training"]]
    assert labels(found["watch"]) == [["watch/text/perplexity"]]
    assert not any(chart.alarms for chart in found.values())


def test_ppo_has_values_and_clipping_and_compares_no_samples():
    found = charts(ppo_rows(), "ppo", rollout={"group_size": 1})
    assert list(found) == ["reward", "lengths", "kl", "entropy", "clipping", "values", "seconds", "loss", "optimiser"]
    assert found["reward"].title == "Reward"
    assert labels(found["kl"]) == [["objective/kl"]]
    assert labels(found["clipping"]) == [["low", "high"], ["ratio"], ["approxkl"]]
    assert labels(found["values"]) == [["loss"], ["explained"], ["mean"]]


def test_a_stage_on_fixed_data_has_none_of_them():
    rows = [step_row(step) | {"kl": 0.1, "reward": 0.5} for step in range(1, 5)]
    assert list(charts(rows, "reward_weighted")) == ["loss", "optimiser", "throughput"]


def test_many_parts_are_several_charts():
    parts = {f"rewards/part {n}/mean": 0.5 for n in range(6)}
    found = charts([step_row(1) | round_row(1, **parts)])
    assert [len(labels(found[name])) for name in ("reward_parts", "reward_parts_2")] == [4, 2]
    assert found["reward_parts_2"].title == "Parts of the reward (2 of 2)"


def test_equal_rewards_alarm_only_those_who_compare():
    rows = [step_row(step) | round_row(step, frac_reward_zero_std=1.0) for step in range(1, 9)]
    assert "taught nothing" in charts(rows, objective={"type": "grpo"})["signal"].alarms[0]
    assert charts(rows, objective={"type": "reinforce_plus_plus"})["signal"].alarms == ()
    assert charts(rows, "ppo", objective={"type": "ppo"})["signal"].alarms == ()


def test_a_run_in_which_every_reward_failed_says_so():
    rows = [step_row(1) | round_row(1, frac_reward_failed=1.0, reward=None, reward_std=None)]
    found = charts(rows)
    assert "reward" not in found
    assert "at most 100.0%, step 1" in found["signal"].alarms[0]


def test_the_rest_of_a_rounds_steps_is_training():
    """Two steps of 2 s a round, 0.7 s of the first generated and 0.1 s scored: 4 - 0.8 = 3.2 s."""
    (panel,) = charts(ppo_rows(4), "ppo")["seconds"].figure.panels
    assert [list(series.y) for series in panel.series] == [[0.7, 0.7], [0.1, 0.1], pytest.approx([3.2, 3.2])]
    assert "generate 18%, score 2%, train 80%" in charts(ppo_rows(4), "ppo")["seconds"].about


def test_many_rounds_read_the_steps_no_more_often(monkeypatch):
    asked, steps = [], StageView.steps.fget
    monkeypatch.setattr(StageView, "steps", property(lambda stage: asked.append(stage) or steps(stage)))
    charts(ppo_rows(4), "ppo")
    few = len(asked)
    charts(ppo_rows(40), "ppo")
    assert len(asked) == 2 * few


def test_a_round_drawn_beside_training_cost_its_steps_no_generation():
    chart = charts(ppo_rows(4), "ppo", rollout={"staleness": 1})["seconds"]
    assert list(chart.figure.panels[0].series[2].y) == [4.0, 4.0]
    assert "overlap" in chart.about


def test_a_round_read_from_disk_cost_its_steps_no_generation():
    rows = [step_row(1) | round_row(1) | {"seconds/generate": 5.0}]
    (panel,) = charts(rows)["seconds"].figure.panels
    assert [list(series.y) for series in panel.series] == [[5.0], [0.1], [2.0]]


def test_the_limit_is_drawn_where_lengths_come_near_it():
    assert charts(grpo_rows(), rollout={"max_new_tokens": 100})["lengths"].figure.panels[0].levels == (
        (100, "limit: 100"),
    )
    assert charts(grpo_rows(), rollout={"max_new_tokens": 1000})["lengths"].figure.panels[0].levels == ()


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, True)])
def test_the_page_in_a_browser(online_page, browser, width, dark):
    browser.open(online_page, width, dark=dark)
    browser.ask("document.querySelectorAll('details').forEach(one => one.open = true)")
    assert browser.complaints() == []
    assert browser.ask("[...document.images].filter(image => !image.naturalWidth).length") == 0
    assert browser.ask("document.documentElement.scrollWidth") <= width
    assert browser.ask("document.scripts.length") == 0
    assert browser.ask("document.querySelectorAll('table.completions').length") == 3 * 4 + 3 * 2


def test_what_a_policy_wrote_is_only_text(tmp_path):
    said = [completion(0, 0, sample, completion=NASTY, prompt=NASTY, error=NASTY) for sample in range(2)]
    said[0]["parts"] = {"<b>$x$": 1.0}
    stage(tmp_path, 1, "grpo", grpo_rows(), said)
    html = write_report(tmp_path).read_text()
    assert "<script>" not in html
    assert "&lt;script&gt;console.error" in html
    assert "&lt;b&gt;$x$" in html


def test_names_of_parts_are_no_formulas(tmp_path):
    rows = [row | {"rewards/a$^{_$/mean": 0.1} if "loss" in row else row for row in grpo_rows()]
    stage(tmp_path, 1, "grpo", rows, [])
    assert "<h3>Completions</h3>" not in write_report(tmp_path).read_text()


def test_completions_stand_behind_the_charts(online_page):
    html = online_page.read_text()
    grpo = html.split('<section id="stage-grpo">')[1].split("</section>")[0]
    assert grpo.index("Reward and truth") < grpo.index("<h3>Completions</h3>") < grpo.index("Step 1 · round 0")
    assert "Step 21 · round 10" in grpo
    assert "Step 39 · round 19" in grpo
    assert "3 of 20 rounds" in grpo


def test_the_kind_of_a_stage_comes_from_the_run(tmp_path):
    run = read_run(build_online_run(tmp_path / "run"))
    assert [stage.kind for stage in run.stages] == ["grpo", "ppo"]
