"""Tables: one comparison on the terminal, and all kept results in README.md."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import estimate
from benchmarks.figures import SideFigures, Spread

RESULTS = Path(__file__).with_name("results")
README = Path(__file__).with_name("README.md")
BEGIN, END = "<!-- results -->", "<!-- end of results -->"

TRAINED = (
    "| task | model | records a step | tokens a step | precision | side | s/step | tokens/s | peak GB | "
    "times as fast | share of memory | MFU | date |",
    "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
)
GENERATED = (
    "| task | model | prompts | answers each | tokens each | precision | threads | side | tokens/s | load s | "
    "peak GB | times as fast | share of memory | date |",
    "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|",
)
LEARNED = (
    "| task | model | prompts a step | answers each | tokens each | threads | side | s/step | generate s | score s | "
    "train s | peak GB | times as fast | share of memory | date |",
    "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|",
)
SERVED = (
    "| task | model | prompts | answers each | tokens each | open requests | side | tokens/s | of vllm bench serve's | "
    "date |",
    "|---|---|---|---|---|---|---|---|---|---|",
)
RANKED = (
    "| task | model | records a step | precision | trains | ranks | s/step | times as fast as one | date |",
    "|---|---|---|---|---|---|---|---|---|",
)
ESTIMATED = (
    "| plan | parameters | trained | tokens of the largest micro-batch | estimated MB | measured MB | off | date |",
    "|---|---|---|---|---|---|---|---|",
)
"""Heads of the tables in README.md."""
OTHERS = ("grpo", "generate", "serve", "ranks", "estimate")
"""Results that are no comparison of training."""


def describe(figures: Sequence[SideFigures]) -> str:
    """A comparison as aligned text."""
    header = ["side", "s/step", "tokens/s", "peak GB", "imports GB", "outside s", "time", "memory", "MFU"]
    rows = [
        [
            side.side,
            f"{side.step_seconds:.3f}",
            f"{side.tokens_per_second:.0f}",
            f"{side.peak_gb:.2f}",
            f"{side.imported_gb:.2f}",
            f"{side.outside_seconds:.1f}",
            _ratio(side.time_ratio, "x"),
            _ratio(side.memory_ratio, ""),
            "" if side.utilisation is None else f"{100 * side.utilisation:.1f} %",
        ]
        for side in figures
    ]
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in [header, *rows]]
    return "\n".join(line.rstrip() for line in lines)


def conclude(figures: Sequence[SideFigures]) -> str:
    """The comparison with the fastest of the other sides, in a sentence."""
    first, *others = figures
    if not others:
        return ""
    fastest = min(others, key=lambda side: side.step_seconds)
    assert fastest.time_ratio is not None and fastest.memory_ratio is not None
    time, memory = fastest.time_ratio.median, fastest.memory_ratio.median
    return f"{first.side}: {time:.2f} times as fast as {fastest.side}, the fastest other, in {memory:.2f} of its memory"


def _ratio(spread: Spread | None, unit: str) -> str:
    return f"{spread.median:.2f}{unit} ({spread.low:.2f}-{spread.high:.2f})" if spread else ""


def save(name: str, entry: Mapping[str, Any], folder: Path = RESULTS) -> Path:
    """Append a result to `results/NAME.json`."""
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}.json"
    entries = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    path.write_text(json.dumps([*entries, entry], indent=1) + "\n", encoding="utf-8")
    return path


def render_results(folder: Path = RESULTS) -> str:
    """All kept results as Markdown: for every machine tables of training, online RL, generation, serving,
    ranks and estimates."""
    entries = [
        entry for path in sorted(folder.glob("*.json")) for entry in json.loads(path.read_text(encoding="utf-8"))
    ]
    blocks = []
    for machine in dict.fromkeys(map(machine_of, entries)):
        blocks.append(machine)
        here = [entry for entry in entries if machine_of(entry) == machine]
        trained = [line for entry in here if entry["task"] not in OTHERS for line in lines_of(entry)]
        learned = [line for entry in here if entry["task"] == "grpo" for line in grpo_lines_of(entry)]
        generated = [line for entry in here if entry["task"] == "generate" for line in generate_lines_of(entry)]
        served = [line for entry in here if entry["task"] == "serve" for line in serve_lines_of(entry)]
        ranked = [line for entry in here if entry["task"] == "ranks" for line in rank_lines_of(entry)]
        estimated = [line for entry in here if entry["task"] == "estimate" for line in estimate.lines_of(entry)]
        blocks += ["\n".join([*TRAINED, *trained])] if trained else []
        blocks += ["\n".join([*LEARNED, *learned])] if learned else []
        blocks += ["\n".join([*GENERATED, *generated])] if generated else []
        blocks += ["\n".join([*SERVED, *served])] if served else []
        blocks += ["\n".join([*RANKED, *ranked])] if ranked else []
        blocks += ["\n".join([*ESTIMATED, *estimated])] if estimated else []
    return "\n\n".join(blocks) if blocks else "Nothing is kept yet."


def machine_of(entry: Mapping[str, Any]) -> str:
    """The line that names a machine and its versions."""
    machine = entry["machine"]
    cores = f"{machine['cores']} core{'s' if machine['cores'] != 1 else ''}"
    device = entry["device_name"] or f"{machine['processor']}, {cores} ({', '.join(machine['flags'])})"
    versions = ", ".join(f"{name} {version}" for name, version in machine["packages"].items() if name != "whet")
    return f"**{device}**, {machine['memory_gb']:.0f} GB; Python {machine['python']}, {versions}."


def lines_of(entry: Mapping[str, Any]) -> Iterator[str]:
    """Rows of one comparison; its first side has no ratio."""
    for side in entry["sides"]:
        cells = [
            entry["task"], entry["model"], entry["batch_size"], f"{entry['tokens_per_step']:.0f}",
            entry["precision"], side["side"],
            f"{side['step_seconds']:.3g}", f"{side['tokens_per_second']:.0f}", f"{side['peak_gb']:.2f}",
            _kept(side["time_ratio"]), _kept(side["memory_ratio"]),
            "" if side["utilisation"] is None else f"{100 * side['utilisation']:.0f} %", entry["date"],
        ]  # fmt: skip
        yield "| " + " | ".join(map(str, cells)) + " |"


def grpo_lines_of(entry: Mapping[str, Any]) -> Iterator[str]:
    """Rows of one comparison of online RL."""
    for side in entry["sides"]:
        cells = [
            entry["task"], entry["model"], entry["prompts"], entry["samples"], entry["new_tokens"], side["threads"],
            side["side"], f"{side['step_seconds']:.3g}", f"{side['generate_seconds']:.3g}",
            f"{side['score_seconds']:.2g}", f"{side['train_seconds']:.3g}", f"{side['peak_gb']:.2f}",
            _kept(side["time_ratio"]), _kept(side["memory_ratio"]), entry["date"],
        ]  # fmt: skip
        yield "| " + " | ".join(map(str, cells)) + " |"


def generate_lines_of(entry: Mapping[str, Any]) -> Iterator[str]:
    """Rows of one comparison of engines."""
    for side in entry["sides"]:
        cells = [
            entry["task"], entry["model"], entry["prompts"], entry["samples"], entry["new_tokens"],
            entry["precision"], side["threads"], f"{side['side']} {side['version']}".strip(),
            f"{side['tokens_per_second']:.0f}", f"{side['load_seconds']:.1f}", f"{side['peak_gb']:.2f}",
            _kept(side["time_ratio"]), _kept(side["memory_ratio"]), entry["date"],
        ]  # fmt: skip
        yield "| " + " | ".join(map(str, cells)) + " |"


def serve_lines_of(entry: Mapping[str, Any]) -> Iterator[str]:
    """Rows of one comparison of clients of a server."""
    for side in entry["sides"]:
        cells = [
            entry["task"], entry["model"], entry["prompts"], entry["samples"], entry["new_tokens"],
            entry["concurrency"], side["side"], f"{side['tokens_per_second']:.0f}", _kept(side["ratio"]),
            entry["date"],
        ]  # fmt: skip
        yield "| " + " | ".join(map(str, cells)) + " |"


def rank_lines_of(entry: Mapping[str, Any]) -> Iterator[str]:
    """Rows of one comparison of numbers of ranks."""
    for way in entry["sides"]:
        cells = [
            entry["task"], entry["model"], entry["batch_size"], entry["precision"], way["trains"], way["ranks"],
            f"{way['step_seconds']:.3g}", _kept(way["speedup"]), entry["date"],
        ]  # fmt: skip
        yield "| " + " | ".join(map(str, cells)) + " |"


def _kept(ratio: Mapping[str, float] | None) -> str:
    return f"{ratio['median']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})" if ratio else ""


def write_readme(readme: Path = README, folder: Path = RESULTS) -> None:
    """Put the results between the marks of README.md."""
    text = readme.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN, 1)
    after = rest.split(END, 1)[1]
    readme.write_text(f"{before}{BEGIN}\n{render_results(folder)}\n{END}{after}", encoding="utf-8")
