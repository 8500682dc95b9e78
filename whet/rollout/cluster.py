"""A Ray cluster to work on: the one that runs already, or one of this process's own.

Ray's own noise is kept down: no dashboard, no usage statistics, nothing of its logs on the terminal. What a person must
know comes through whoever uses the cluster.
"""

from __future__ import annotations

import os
import sys
import sysconfig
from pathlib import Path
from types import ModuleType
from typing import Any

from whet.errors import ConfigError, RunError, UserError
from whet.runs.environment import num_cores

QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # what Ray will do, asked for now: else it warns of it
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
}


def connect(address: str | None, field: str) -> ModuleType:
    """Ray's module, connected. Without an address a Ray of this machine alone is started, and ends with this process;
    `auto` is the cluster that this machine belongs to. Where this process is connected already, it stays as it is.

    Raises ConfigError, naming the field, where Ray is not installed, and RunError where there is no such cluster.
    """
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    try:
        import ray
    except ImportError as error:
        raise ConfigError("Ray is not installed", field=field, found="ray", fix="pip install 'whet[ray]'") from error
    if ray.is_initialized():
        return ray  # type: ignore[no-any-return]
    known = {"log_to_driver": False, "logging_level": "ERROR", "runtime_env": {"env_vars": environment()}}
    try:
        if address is None:
            ray.init(address="local", num_cpus=num_cores(), include_dashboard=False, **known)
        else:
            ray.init(address=address, **known)
    except (ConnectionError, ValueError, RuntimeError, TimeoutError) as error:
        said = " ".join(str(error).split())[:200] or type(error).__name__
        raise RunError(
            "no Ray cluster answers", field=field, found=f"{address or 'a new one'}: {said}",
            fix="start one with `ray start --head`, or leave the address out",
        ) from error  # fmt: skip
    return ray  # type: ignore[no-any-return]


def environment() -> dict[str, str]:
    """What processes on the cluster must have in their environment to import what this one does: whet's own tree and
    the user's modules, where they are not installed."""
    installed = {Path(sysconfig.get_path(name)).resolve() for name in ("purelib", "platlib", "stdlib", "platstdlib")}
    own = [str(Path(__file__).resolve().parents[2]), *(str(Path(place or ".").resolve()) for place in sys.path)]
    places = [
        place for place in dict.fromkeys(own)
        if Path(place).is_dir() and not any(Path(place).is_relative_to(known) for known in installed)
    ]  # fmt: skip
    return QUIET | {"PYTHONPATH": os.pathsep.join(places)}


def described(resources: dict[str, float]) -> str:
    """CPUs and GPUs in words.

    >>> described({"CPU": 4.0, "GPU": 0.5})
    '4 CPU, 0.5 GPU'
    """
    return ", ".join(f"{resources.get(name, 0.0):g} {name}" for name in ("CPU", "GPU") if name in resources) or "none"


def room(ray: ModuleType) -> str:
    """What the cluster has to give, in words."""
    return f"{described(ray.available_resources())} free of {described(ray.cluster_resources())}"


def answer_of(ray: ModuleType, reference: Any) -> Any:
    """What an actor has returned. Raises the UserError that it raised, and one of `lost_errors` where it is gone."""
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise error.cause from None
        raise


def lost_errors(ray: ModuleType) -> tuple[type[Exception], ...]:
    """What Ray raises where a process or its node is gone, rather than its work wrong."""
    wrong = ray.exceptions
    return (
        wrong.RayActorError, wrong.NodeDiedError, wrong.LocalRayletDiedError, wrong.WorkerCrashedError,
        wrong.OutOfMemoryError, wrong.ObjectLostError,
    )  # fmt: skip
