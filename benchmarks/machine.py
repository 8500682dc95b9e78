"""The machine and the versions a figure belongs to, and how much memory a process has held. No torch here."""

from __future__ import annotations

import os
import platform
import resource
import sys
from pathlib import Path
from typing import Any

from whet.runs.environment import commit, package_version, processor

FLAGS = ("amx_bf16", "amx_tile", "avx512_bf16", "avx512f", "avx2", "bf16", "asimd")
"""Processor features that decide how fast matrix products are."""
PACKAGES = ("whet", "torch", "transformers", "peft", "accelerate", "trl", "numpy")


def describe_machine() -> dict[str, Any]:
    """Kind of machine and versions; nothing that names one particular machine."""
    return {
        "processor": processor(),
        "flags": [flag for flag in FLAGS if flag in cpu_flags()],
        "cores": len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "system": platform.system(),
        "python": platform.python_version(),
        "packages": {name: found for name in PACKAGES if (found := package_version(name))},
        "commit": commit(),
    }


def cpu_flags() -> frozenset[str]:
    """Features of the first processor; empty where the system does not tell."""
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return frozenset()
    for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
        if line.startswith(("flags", "Features")):
            return frozenset(line.split(":", 1)[1].split())
    return frozenset()


def peak_resident_bytes() -> int:
    """Most resident memory this program has held.

    On Linux the high-water mark of its address space: `ru_maxrss` would also count what the process that started it
    held at that moment, because it survives exec().
    """
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
