"""Two processes under torchrun leave the record files of one, and fail together."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import whet.rollout.build
import whet.stages.evaluate
from tests.stages.doomed import Judging
from whet.config.plan import Plan
from whet.errors import DataError
from whet.experience.reject_files import FILES
from whet.ranks.group import Ranks
from whet.runs.files import read_json
from whet.runs.layout import RunPaths
from whet.runs.ledger import Status, now
from whet.schema.artifacts import ModelRef
from whet.schema.rollouts import Completion, Request
from whet.stages.context import Context
from whet.stages.pipeline import dispatch, finish_stage, run_plan, work_on
from whet.stages.shares import claim_shares, join_lines, put_aside

REPOSITORY = Path(__file__).resolve().parents[2]
PREPARED = ("raw_responses", "dpo_training", "grpo_training", "gspo_training", "self_reward_samples")


def plan(folder: Path, checkpoint: Path, run: str) -> dict[str, Any]:
    rows = [{"prompt": f"How much is {n % 5} plus {n % 3}?"} for n in range(7)] * 2  # some prompts occur twice
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "judge.txt").write_text("Task: {instruction}\nAnswer: {response}\nEnd with Score: 0 to 5.\n")
    return {
        "run": str(folder / run),
        "model": {"path": str(checkpoint), "device": "cpu"},
        "data": {"files": [str(folder / "prompts.jsonl")]},
        "rollout": {"group_size": 3, "batch_size": 6, "max_new_tokens": 8, "temperature": 1.0, "engine": "native"},
        "stages": [
            {"kind": "reject", "reward": {"type": "regex", "pattern": ".*[aeiou].*"}, "accept": {"cut": True}},
            {"kind": "prepare", "judge": {"template": str(folder / "judge.txt"), "votes": 1, "max_new_tokens": 4}},
        ],
    }


def launch(folder: Path, plan: dict[str, Any], ranks: int = 2) -> subprocess.CompletedProcess[str]:
    file = folder / "plan.yaml"
    file.write_text(yaml.safe_dump(plan))
    return subprocess.run(
        [
            sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}", "-m",
            "tests.stages.shared", str(file),
        ],
        cwd=REPOSITORY, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=240,
    )  # fmt: skip


def test_two_ranks_leave_the_files_of_one(
    tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = launch(tmp_path, plan(tmp_path, tiny_checkpoint, "two"))
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("reject: ") == 2 and "42 answers to 14 prompts" in done.stdout, "one rank speaks"
    monkeypatch.setattr(whet.rollout.build, "NativeEngine", Judging)
    alone = plan(tmp_path, tiny_checkpoint, "one")
    run_plan(Plan.load(alone))
    folders = [tmp_path / run / "stages" for run in ("one", "two")]
    for name in ("groups.jsonl", "reject.json", "reject_samples.jsonl", "data.json", *FILES):
        one, two = ((folder / "01-reject" / name).read_bytes() for folder in folders)
        assert one == two and (one or name.endswith("solved.jsonl")), name
    for name in (*(f"{name}.jsonl" for name in PREPARED), "pairs.json", "histograms.json", "data.json"):
        one, two = ((folder / "02-prepare" / name).read_bytes() for folder in folders)
        assert one == two and one, name
    shares = [folders[1] / "01-reject" / f"rank-{rank}" / "groups.jsonl" for rank in (0, 1)]
    assert [share.read_bytes().count(b"\n") for share in shares] == [7, 7]
    one, two = (read_json(folder / "01-reject" / "status.json")["metrics"] for folder in folders)
    assert {k: v for k, v in one.items() if "seconds" not in k} == {k: v for k, v in two.items() if "seconds" not in k}


@pytest.mark.slow
def test_a_rank_that_fails_ends_all_with_its_message(tmp_path: Path, tiny_checkpoint: Path) -> None:
    """The function of the second rank's first prompt raises; the first rank would wait for ever."""
    (tmp_path / "mine.py").write_text(
        "import os\n"
        "def generate(requests):\n"
        "    if os.environ['RANK'] == '1': raise OSError('the disk of rank 1 is full')\n"
        "    return ['a' for _ in requests]\n"
    )
    broken = plan(tmp_path, tiny_checkpoint, "broken")
    broken["stages"] = [broken["stages"][0] | {"functions": {"generate": f"{tmp_path / 'mine.py'}:generate"}}]
    done = launch(tmp_path, broken)
    assert done.returncode != 0
    assert "error: rank 1: functions.generate: raised OSError: the disk of rank 1 is full" in done.stderr
    status = read_json(tmp_path / "broken" / "stages" / "01-reject" / "status.json")
    assert status["status"] == "failed" and "the disk of rank 1 is full" in status["error"]


def test_any_rank_that_fails_says_so_in_the_status(
    tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first rank may be ended by torchrun before it knows."""
    monkeypatch.setattr(Ranks, "on_main", lambda self, work, what="": None)
    parsed = Plan.load(plan(tmp_path, tiny_checkpoint, "run"))
    paths, stage = RunPaths(Path(parsed.run)), parsed.stages[0]
    own = paths.stage(1, stage.name)
    ref = ModelRef(path=str(tiny_checkpoint))
    context = Context(
        model=parsed.model, start=ref, models={"base": ref}, paths=own, folders={}, stage=stage,
        ranks=Ranks(rank=1, world=2),
    )  # fmt: skip
    (tmp_path / "prompts.jsonl").write_text('{"prompt": null}\n')
    running = Status(name=stage.name, kind=stage.kind, status="running", config={}, inputs={}, started=now())
    with pytest.raises(DataError, match=r"prompts\.jsonl:1"):
        finish_stage(paths, stage, context, running)
    status = read_json(own.status)
    assert status["status"] == "failed" and "prompts.jsonl:1" in status["error"]


@pytest.mark.parametrize("rank", [0, 1])
def test_what_cannot_be_shared_is_done_by_the_first_rank(
    rank: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = [{"type": "perplexity", "data": {"files": ["rows.jsonl"]}}]
    stages = [{"kind": "evaluate", "tasks": tasks}]
    parsed = Plan.load({"run": str(tmp_path), "model": {"path": "m"}, "stages": stages})
    ref, worlds = ModelRef(path="m"), []
    context = Context(
        model=parsed.model, start=ref, models={"base": ref, "previous": ref}, paths=RunPaths(tmp_path).stage(1, "e"),
        folders={}, stage=parsed.stages[0], ranks=Ranks(rank=rank, world=2),
    )  # fmt: skip
    monkeypatch.setattr(Ranks, "on_main", lambda self, work, what: work() if self.is_main else "what rank 0 found")
    monkeypatch.setattr(whet.stages.evaluate, "run", lambda stage, context: worlds.append(context.ranks.world))
    done = work_on(parsed.stages[0], context)
    assert (worlds, done) == (([1], None) if rank == 0 else ([], "what rank 0 found"))


@pytest.fixture
def together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranks that run one after the other in this process, the first one last."""
    monkeypatch.setattr(Ranks, "on_main", lambda self, work, what="": work() if self.is_main else None)
    monkeypatch.setattr(Ranks, "wait", lambda self: None)


def run_shares(parsed: Plan, number: int, world: int, folder: Path) -> None:
    """The stage of this number as `world` ranks would run it."""
    stage, ref = parsed.stages[number - 1], ModelRef(path=parsed.model.path)
    paths = RunPaths(folder).stage(number, stage.name)
    paths.root.mkdir(parents=True, exist_ok=True)
    claim_shares(paths.root, Ranks(rank=0, world=world))
    for rank in reversed(range(world)):
        context = Context(
            model=parsed.model, start=ref, models={"base": ref}, paths=paths, folders={}, stage=stage,
            ranks=Ranks(rank=rank, world=world),
        )  # fmt: skip
        dispatch(stage, context)


@pytest.mark.usefixtures("together")
@pytest.mark.parametrize(("number", "beside"), [(1, "groups.jsonl"), (2, "judgements.jsonl")])
def test_with_another_number_of_ranks_it_goes_on(
    number: int, beside: str, tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Begun by three, gone on with by one, ended by two: nothing that was answered is asked again."""
    asked: list[str] = []

    class Counting(Judging):
        def generate(self, requests: Iterable[Request]) -> Iterator[Completion]:
            for completion in super().generate(requests):
                asked.append(completion.key)
                yield completion

    monkeypatch.setattr(whet.rollout.build, "NativeEngine", Counting)
    parsed = Plan.load(plan(tmp_path, tiny_checkpoint, "run"))
    stage = parsed.stages[number - 1]
    run_shares(parsed, number, 1, tmp_path / "whole")
    whole = RunPaths(tmp_path / "whole").stage(number, stage.name).root
    expected, once = {path.name: path.read_bytes() for path in whole.glob("*.json*")}, len(asked)
    asked.clear()
    root = RunPaths(tmp_path / "changed").stage(number, stage.name).root
    run_shares(parsed, number, 3, tmp_path / "changed")
    for rank, lines in ((0, 6), (1, 3), (2, 0)):  # as if killed at different places
        for name in ("rollouts.jsonl", beside):
            path = root / f"rank-{rank}" / name
            num = lines if name != "groups.jsonl" else lines // 6
            path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:num]))
    for name in expected.keys() - {"rollouts.jsonl", "judgements.jsonl"}:
        (root / name).unlink()
    asked.clear()
    run_shares(parsed, number, 1, tmp_path / "changed")
    assert len(asked) == len(set(asked)) == once - 9 * (1 if number == 1 else 2), "what was stored is recalled"
    asked.clear()
    run_shares(parsed, number, 2, tmp_path / "changed")
    assert not asked
    for name in expected.keys() - {"rollouts.jsonl", "judgements.jsonl"}:
        assert (root / name).read_bytes() == expected[name], name


def test_a_kill_while_files_are_put_aside_leaves_none_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = {"rollouts.jsonl", "judgements.jsonl", "groups.jsonl"}
    for name in names:
        (tmp_path / name).write_text("{}\n")
    replace = Path.replace

    def killed(path: Path, target: Path) -> Path:
        if path.name != "rollouts.jsonl":
            raise KeyboardInterrupt
        return replace(path, target)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "replace", killed)
        claim_shares(tmp_path, Ranks(rank=0, world=2))
    claim_shares(tmp_path, Ranks(rank=0, world=2))
    assert {path.name for path in put_aside(tmp_path, *names)} == names


@pytest.mark.parametrize(("num", "world"), [(5, 2), (6, 3), (1, 3), (0, 2)])
def test_lines_are_put_together_as_they_were_dealt(num: int, world: int, tmp_path: Path) -> None:
    lines = [f"{n}\u2028\n" for n in range(num)]
    for rank in range(world):
        (tmp_path / str(rank)).write_text("".join(lines[rank::world]), encoding="utf-8")
    join_lines([tmp_path / str(rank) for rank in range(world)], tmp_path / "whole")
    assert (tmp_path / "whole").read_text(encoding="utf-8") == "".join(lines)
