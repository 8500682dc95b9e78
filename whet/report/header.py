"""What stands at the head of the page: which run, how it went, with what it was made."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from whet.runs.reader import RunView
from whet.runs.sinks import clock


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One stage on the time line."""

    name: str
    kind: str
    status: str
    time: str
    share: float
    """Of the run's seconds, in percent."""
    error: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """The run at a glance."""

    name: str
    status: str
    steps: tuple[Step, ...]
    facts: tuple[tuple[str, str], ...]
    environment: tuple[tuple[str, str], ...]


def header(run: RunView) -> Header:
    total = sum(stage.seconds or 0.0 for stage in run.stages)
    steps = tuple(
        Step(
            name=stage.name,
            kind=stage.kind,
            status=stage.status,
            time=clock(stage.seconds) if stage.seconds is not None else "",
            share=100 * (stage.seconds or 0.0) / total if total else 0.0,
            error=stage.error,
        )
        for stage in run.stages
    )
    return Header(
        name=run.name,
        status=run.status,
        steps=steps,
        facts=tuple((name, text) for name, text in _facts(run, total) if text),
        environment=tuple(_environment(run.environment)),
    )


def _facts(run: RunView, total: float) -> Iterator[tuple[str, str]]:
    environment = run.environment
    packages = environment.get("packages") or {}
    model = run.plan.get("model") or {}
    yield "Model", str(model.get("path", ""))
    yield "Trained", _trained(model)
    yield "Started", str(environment.get("created", "")).replace("T", " ").split("+")[0]
    yield "Time", clock(total) if total else ""
    yield "Seed", ", ".join(map(str, sorted(set(_seeds(run.plan)))))
    yield "Machine", _machine(environment)
    yield "Versions", ", ".join(f"{name} {packages[name]}" for name in ("whet", "torch") if packages.get(name))
    yield "Code", str(environment.get("commit") or "")[:12]
    yield "Command", shlex.join(environment.get("command") or ())


def _trained(model: Mapping[str, Any]) -> str:
    if "lora" not in model:
        return ""
    lora = model["lora"]
    return f"LoRA, rank {lora['rank']}" if lora else "all weights"


def _machine(environment: Mapping[str, Any]) -> str:
    pieces = [environment.get("device") or environment.get("processor"), environment.get("cpus")]
    return ", ".join([str(pieces[0])] if pieces[0] else []) + (f" ({pieces[1]} cores)" if pieces[1] else "")


def _seeds(value: Any) -> Iterator[int]:
    """Every `seed` of the plan, however deep."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            if name == "seed" and isinstance(inner, int):
                yield inner
            else:
                yield from _seeds(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _seeds(inner)


def _environment(environment: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name, value in environment.items():
        if isinstance(value, Mapping):
            yield name, ", ".join(f"{key} {text}" for key, text in value.items() if text)
        elif isinstance(value, list):
            yield name, shlex.join(map(str, value))
        elif value is not None:
            yield name, str(value)
