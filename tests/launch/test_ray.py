"""What a launch on Ray does without a cluster; with one: `tests/integration/test_ray.py`."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from whet.config.launch import Ray
from whet.config.load import load_plan
from whet.errors import ConfigError, RunError
from whet.launch import ray as launch
from whet.launch.ray import Job
from whet.ranks.group import Ended


class Gone(Exception):
    """What Ray raises for a process that is gone."""


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(launch, "lost_errors", lambda ray: (Gone,))
    return SimpleNamespace(cluster_resources=lambda: {"CPU": 8.0, "GPU": 2.0})


def job(run: Path, directory: Path, mark: Path) -> Job:
    plan = load_plan({"run": str(run), "model": {"path": "model"}, "stages": [{"kind": "merge"}]})
    return Job(plan=plan, fresh=False, until=None, directory=str(directory), mark=str(mark), board=None)


def test_a_node_without_the_run_directory_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "SEEN_WITHIN", 0.0)
    with pytest.raises(RunError, match=r"run: this node of the cluster does not see the run directory "):
        launch._at_home(job(tmp_path / "run", tmp_path, tmp_path / "run" / ".job-1"))


def test_a_node_without_the_starting_directory_says_so(tmp_path: Path) -> None:
    with launch._mark(tmp_path / "run") as mark, pytest.raises(RunError, match=r"gone: this node .* where whet was st"):
        launch._at_home(job(tmp_path / "run", tmp_path / "gone", Path(mark)))


def test_a_rank_works_where_the_driver_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "work").mkdir()
    with launch._mark(tmp_path / "run") as mark:
        launch._at_home(job(tmp_path / "run", tmp_path / "work", Path(mark)))
        assert Path.cwd() == tmp_path / "work"
    assert list((tmp_path / "run").iterdir()) == []


def test_a_rank_reserves_a_gpu_where_there_are_any(cluster: Any) -> None:
    assert launch._per_rank(cluster, Ray(), "auto") == {"CPU": 1.0, "GPU": 1.0}
    assert launch._per_rank(cluster, Ray(cpus_per_process=2), "cpu") == {"CPU": 2.0}
    assert launch._per_rank(cluster, Ray(gpus_per_process=0), "auto") == {"CPU": 1.0}
    with pytest.raises(ConfigError, match=r"a rank without a GPU sees none \(found 0 with model.device=cuda:0\)"):
        launch._per_rank(cluster, Ray(gpus_per_process=0), "cuda:0")


def test_who_is_gone_is_named_before_those_who_missed_it(cluster: Any) -> None:
    failures = {0: RuntimeError("Traceback\n  connection closed by peer"), 1: Gone("the actor died\nby a signal")}
    assert launch._told(cluster, failures) == "rank 1 is lost (by a signal)"
    assert launch._told(cluster, {0: Ended(), 1: ValueError("no")}) == "rank 1 failed (no)"
