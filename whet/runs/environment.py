"""environment.json: what a run was made with, so that it can be made again."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from whet.runs.ledger import now

PACKAGES = ("whet", "torch", "transformers", "peft", "accelerate", "tokenizers", "datasets", "numpy")


def describe_environment(command: Sequence[str]) -> dict[str, Any]:
    """Versions, machine, command and the commit of the code, as far as they can be known without loading torch."""
    return {
        "created": now(),
        "command": list(command),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": processor(),
        "cpus": os.cpu_count(),
        "commit": commit(),
        "packages": {name: package_version(name) for name in PACKAGES},
    }


def package_version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def processor() -> str:
    """The processor's name with family and model: in a virtual machine the name is often only the brand.

    Linux keeps them in /proc, and platform.processor() is empty there.
    """
    info = Path("/proc/cpuinfo")
    told = info.read_text(encoding="utf-8", errors="replace") if info.exists() else ""
    first = dict(line.split(":", 1) for line in told.split("\n\n")[0].splitlines() if ":" in line)
    facts = {name.strip(): value.strip() for name, value in first.items()}
    if "model name" not in facts:
        return platform.processor()
    kind = [f"{part} {facts[key]}" for part, key in (("family", "cpu family"), ("model", "model")) if key in facts]
    return f"{facts['model name']} ({', '.join(kind)})" if kind else facts["model name"]


def commit() -> str | None:
    """Commit of the checkout whet runs from; None where it is an installed package."""
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=5,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None


def num_cores() -> int:
    """Cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
