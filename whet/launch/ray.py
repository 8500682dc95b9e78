"""A plan as a job on a Ray cluster: a group of Ray Train workers, each a rank that does what it does under torchrun.

    whet run plan.yaml launch.type=ray launch.processes=8 launch.address=auto

The process that was started (the driver) shows what the ranks say and waits. A worker that is lost ends the group, and
Ray starts it again, up to `launch.max_failures` times: every stage goes on from its last checkpoint and its stored
answers, exactly as the same command given again would. A mistake of the user's ends the run at once.

The run directory is on storage that the driver and all nodes share, under the same path.
"""

from __future__ import annotations

import logging
import os
import secrets
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from whet.config.launch import Ray
from whet.config.plan import Plan
from whet.errors import ConfigError, RunError, UserError
from whet.launch.board import Board, Refusal, Said, Telling
from whet.ranks.group import LONGEST_WAIT, Ended, leave_ranks
from whet.ranks.watchdog import FAILED
from whet.rollout.cluster import connect, described, lost_errors, room
from whet.runs.files import writing

LISTEN_SECONDS = 0.2
"""Between two looks at the board."""
SETTLE_SECONDS = 60.0
"""That Ray Train is given to end by itself."""
SEEN_WITHIN = 30.0
"""Seconds after which shared storage shows a new file on every node."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What a rank is told."""

    plan: Plan
    fresh: bool
    until: str | None
    directory: str
    """Where the driver works: paths of the plan start there."""
    mark: str
    """A file in the run directory that every node must see."""
    board: Any


def run_on_ray(plan: Plan, launch: Ray, *, fresh: bool = False, until: str | None = None) -> None:
    """Run a plan's stages on the cluster; comes back when the last is done, with everything in the run directory.

    Raises the UserError of whichever rank raised one, or Ended where that rank has told it; ConfigError where the
    cluster has no room for the ranks, and RunError where more of them were lost than `launch.max_failures` bears.
    """
    ray = connect(launch.address, "launch.address")
    try:
        with _mark(Path(plan.run)) as mark:
            board = ray.remote(num_cpus=0)(Board).remote()
            job = Job(plan=plan, fresh=fresh, until=until, directory=os.getcwd(), mark=mark, board=board)
            per_rank = _per_rank(ray, launch, plan.model.device)
            fit = _Fit(ray, launch, per_rank, job)
            try:
                _wait_for(ray, board, fit)
            finally:
                fit.settle()
    finally:
        ray.shutdown()


class _Fit:
    """Ray Train at work in a thread of its own."""

    def __init__(self, ray: ModuleType, launch: Ray, per_rank: dict[str, float], job: Job) -> None:
        self._ray, self._launch, self._per_rank, self._job = ray, launch, per_rank, job
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="ray-train", daemon=True)
        self._thread.start()

    @property
    def ended(self) -> bool:
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            with tempfile.TemporaryDirectory(prefix="whet-ray-") as folder:
                _trainer(self._ray, self._launch, self._per_rank, self._job, folder).fit()
        except Exception as error:  # it is for the driver's thread to say
            self._error = error

    def settle(self) -> None:
        """Let it come to its end: ranks that find a refusal on the board end at once. Ray ends the whole process, with
        an exit code of its own, where a thread still asks it for something after the shutdown."""
        self._thread.join(SETTLE_SECONDS)

    def check(self) -> None:
        """Raises what went wrong, in the user's words where it is the user's to mend."""
        if self._error is None:
            return
        launch, failures = self._launch, getattr(self._error, "worker_failures", {})
        lost = {rank: error for rank, error in failures.items() if _is_loss(self._ray, error)}
        if lost:
            rank = min(lost)
            raise RunError(
                "more ranks were lost than are borne", field="launch.max_failures",
                found=f"{launch.max_failures}; rank {rank}: {_words(lost[rank])}",
                fix="the same command goes on from the last checkpoint",
            ) from self._error  # fmt: skip
        if not failures and "Startup" in type(getattr(self._error, "controller_failure", None)).__name__:
            raise ConfigError(
                "the cluster has no room for the ranks", field="launch.processes",
                found=room(self._ray),
                fix=f"{_wanted(launch, self._per_rank)} are asked for: lower processes, or add nodes",
            ) from self._error  # fmt: skip
        raise self._error


def _wait_for(ray: ModuleType, board: Any, fit: _Fit) -> None:
    """Show what ranks say until all have ended, or one has found what ends the run."""
    while True:
        ended = fit.ended
        refusal: Refusal | None = ray.get(board.refusal.remote())  # before its line is heard, which was said earlier
        for said in ray.get(board.hear.remote()):
            stream = sys.stdout if said.channel == "stdout" else sys.stderr
            stream.write(said.text)
            stream.flush()
        if refusal is not None:
            raise Ended(FAILED) if refusal.told else refusal.error
        if ended:
            fit.check()
            return
        time.sleep(LISTEN_SECONDS)


def _trainer(ray: ModuleType, launch: Ray, per_rank: dict[str, float], job: Job, folder: str) -> Any:
    """The job in Ray Train's words. Nothing of it is kept: checkpoints are the stages' own."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig, UserCallback
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.train.v2.api.config import LoggingConfig

    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(launch.start_timeout)
    if launch.watchdog is not None:
        os.environ["RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S"] = str(launch.watchdog)
    wanted, found = _wanted(launch, per_rank), ray.cluster_resources()
    if any(found.get(name, 0) < launch.processes * num for name, num in per_rank.items()):
        print(f"ray: waits for {wanted}, and the cluster has {described(found)}", file=sys.stderr)

    class Losses(UserCallback):  # type: ignore[misc]
        """Says which rank is lost; works in Ray Train's controller."""

        num = 0

        def after_exception(self, run_context: Any, worker_exceptions: Mapping[int, Exception]) -> None:
            if ray.get(job.board.refusal.remote()) is not None:
                return
            self.num += 1
            text = _told(ray, worker_exceptions)
            going_on = self.num <= launch.max_failures
            text += f"; all start again, {self.num} of {launch.max_failures} times" if going_on else ""
            ray.get(job.board.say.remote(Said("stderr", f"ray: {text}\n")))

    return TorchTrainer(
        work,
        train_loop_config={"job": job},
        torch_config=TorchConfig(
            backend="cpu:gloo,cuda:nccl" if per_rank.get("GPU") else "gloo", timeout_s=int(LONGEST_WAIT.total_seconds())
        ),
        scaling_config=ScalingConfig(
            num_workers=launch.processes, use_gpu=bool(per_rank.get("GPU")), resources_per_worker=per_rank,
            placement_strategy={"pack": "PACK", "spread": "SPREAD"}[launch.placement],
        ),
        run_config=RunConfig(
            name="whet", storage_path=folder, callbacks=[Losses()], logging_config=LoggingConfig(log_level="ERROR"),
            failure_config=FailureConfig(max_failures=launch.max_failures, controller_failure_limit=0),
        ),
    )  # fmt: skip


def work(config: Mapping[str, Any]) -> None:
    """What a rank does. Raises what the plan's stages raise; a mistake of the user's stands on the board before."""
    import ray
    from ray.train import get_context

    job: Job = config["job"]
    board = job.board
    if ray.get(board.refusal.remote()) is not None:
        return
    logging.getLogger("ray.train").setLevel(logging.CRITICAL)  # what it would say is said here
    sys.stdout = Telling("stdout", lambda said: ray.get(board.say.remote(said)))
    sys.stderr = Telling("stderr", lambda said: ray.get(board.say.remote(said)))
    try:
        _at_home(job)
        from whet.stages.pipeline import run_plan

        attempt = ray.get(board.begin.remote()) if get_context().get_world_rank() == 0 else 0
        run_plan(job.plan, fresh=job.fresh and attempt == 1, until=job.until)
        leave_ranks()
    except UserError as error:
        ray.get(board.refuse.remote(Refusal(error, told=False)))
        raise
    except Ended as ended:
        if isinstance(ended.__cause__, UserError):
            ray.get(board.refuse.remote(Refusal(ended.__cause__, told=True)))
        raise


def _at_home(job: Job) -> None:
    """Work where the driver does. Raises RunError where this node does not see the same files."""
    deadline = time.monotonic() + SEEN_WITHIN
    while not Path(job.mark).is_file():
        if time.monotonic() > deadline:
            raise RunError(
                "this node of the cluster does not see the run directory", file=job.plan.run, found=os.uname().nodename,
                fix="choose a `run` on storage that all nodes share under the same path",
            )  # fmt: skip
        time.sleep(0.5)
    try:
        os.chdir(job.directory)
    except OSError as error:
        raise RunError(
            "this node of the cluster does not see where whet was started", file=job.directory,
            found=os.uname().nodename, fix="start whet in a directory on storage that all nodes share",
        ) from error  # fmt: skip


@contextmanager
def _mark(run: Path) -> Iterator[str]:
    """A file in the run directory, for as long as the job runs."""
    path = (run / f".job-{secrets.token_hex(4)}").absolute()
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    try:
        yield str(path)
    finally:
        path.unlink(missing_ok=True)


def _per_rank(ray: ModuleType, launch: Ray, device: str) -> dict[str, float]:
    """What a rank reserves; a GPU where the cluster has any, unless the plan says otherwise. Raises ConfigError where
    the plan asks for a device that a rank would not see."""
    gpus = launch.gpus_per_process
    if gpus is None:
        there = ray.cluster_resources().get("GPU", 0) > 0
        gpus = 1.0 if there and (device == "auto" or device.startswith("cuda")) else 0.0
    if gpus == 0 and device.startswith("cuda"):
        raise ConfigError(
            "a rank without a GPU sees none", field="launch.gpus_per_process", found=f"0 with model.device={device}",
            fix="set launch.gpus_per_process=1, or model.device=cpu",
        )  # fmt: skip
    return {"CPU": launch.cpus_per_process} | ({"GPU": gpus} if gpus else {})


def _wanted(launch: Ray, per_rank: dict[str, float]) -> str:
    return f"{launch.processes} times {described(per_rank)}"


def _is_loss(ray: ModuleType, error: Exception) -> bool:
    """Whether a rank's process is gone, rather than its work wrong."""
    inner = getattr(error, "health_check_failure", error)  # Ray Train wraps what it finds when it asks a worker
    return isinstance(inner, lost_errors(ray))


def _told(ray: ModuleType, failures: Mapping[int, Exception]) -> str:
    """Which rank failed first, and how: those whose process is gone before those that then missed it."""
    lost = {rank: error for rank, error in failures.items() if _is_loss(ray, error)}
    if lost:
        rank = min(lost)
        return f"rank {rank} is lost ({_words(lost[rank])})"
    own = {rank: error for rank, error in failures.items() if not isinstance(error, Ended)} or failures
    rank = min(own)
    return f"rank {rank} failed ({_words(own[rank])})"


def _words(error: Exception) -> str:
    """The end of what an error says, on one line."""
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:200]
