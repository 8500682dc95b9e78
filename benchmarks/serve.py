"""Tokens a second through whet's vllm engine and through the stage `reject`, beside vLLM's own client.

    python -m benchmarks serve --python /opt/vllm/bin/python [--model 103m] [--prompts 64] [--samples 4]

One server, started by whet. All clients send it the same prompts as often, with the same number of open requests, and
ask for the same number of tokens, in turn:

    bench    `vllm bench serve`, which streams tokens, as its users do
    engine   whet's engine, and a store that has every answer on disk as it comes
    reject   the stage as a plan runs it: reading, asking, judging, sorting into files. All its seconds count but those
             of attaching to the server
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from io import StringIO
from pathlib import Path
from statistics import median
from typing import Any, Literal

from benchmarks.figures import Spread, shown, spread
from benchmarks.generate import checkpoint_of
from benchmarks.machine import describe_machine
from benchmarks.shapes import SHAPES
from benchmarks.table import save
from whet.config.engine import Vllm
from whet.config.load import load_plan
from whet.data.render import Renderer
from whet.demo import playground
from whet.demo.plan import BASE
from whet.errors import RunError
from whet.experience.store import RolloutStore
from whet.models.load import load_tokenizer
from whet.rollout.vllm import BASE as SERVED
from whet.rollout.vllm import Checkpoint, VllmEngine
from whet.schema.records import Message
from whet.schema.rollouts import Request, Sampling
from whet.stages.pipeline import run_plan

Side = Literal["bench", "engine", "reject"]
PLAYGROUND = "playground"
"""The name of the checkpoint that ships, beside the random ones."""
TOKEN = "WHET_BENCHMARK_TOKEN"
"""Environment variable in which the stage finds the server's token."""


@dataclass(frozen=True, kw_only=True)
class SideFigures:
    """One side, over all rounds."""

    side: Side
    tokens_per_second: float
    """Median over rounds."""
    ratio: Spread | None
    """This side's tokens a second over those of vLLM's client, round by round: more than 1 where this one is faster."""
    rounds: list[float]
    """Tokens a second of every round."""


def add_options(serve: argparse.ArgumentParser) -> None:
    add = serve.add_argument
    add("--python", required=True, help="interpreter of the environment that has vLLM")
    add("--model", choices=[PLAYGROUND, *(name for name in SHAPES if name != "vl")], default=PLAYGROUND)
    add("--prompts", type=int, default=256)
    add("--samples", type=int, default=4, help="answers to each prompt")
    add("--tokens", type=int, default=64, help="tokens of each answer, exactly")
    add("--concurrency", type=int, default=32, help="requests that are open at the same time")
    add("--rounds", type=int, default=3)
    add("--save", metavar="NAME", help="append the result to benchmarks/results/NAME.json")
    add("--work", metavar="DIR", help="keep the files in this folder; a checkpoint that is there is used again")


def serve(options: argparse.Namespace, work: Path) -> None:
    """Print a line a measurement and the ratios; keep the result where `--save` names a file."""
    model = BASE if options.model == PLAYGROUND else checkpoint_of(options.model, work, "cpu")
    prompts = playground.prompts("train", options.prompts, 0)
    (work / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in prompts), encoding="utf-8")
    asked = requests(str(model), [row["prompt"] for row in prompts], options)
    config = Vllm(python=options.python, concurrency=options.concurrency)
    engine = VllmEngine(config, Checkpoint(path=str(model), adapter=None, end_ids=(), folder=work))
    sides: dict[Side, Callable[[Path], float]] = {
        "bench": lambda folder: by_bench(engine, str(model), asked, options, folder),
        "engine": lambda folder: by_engine(engine, asked, folder),
        "reject": lambda folder: by_reject(engine, model, work / "prompts.jsonl", options, folder),
    }
    speeds: dict[Side, list[float]] = {side: [] for side in sides}
    try:
        measured(sides["reject"], work)  # imports, and whatever the server does once
        for number in range(1, options.rounds + 1):
            for side, measure in sides.items():
                speeds[side].append(measured(measure, work))
                print(f"round {number} {side:<7}{speeds[side][-1]:8.1f} tokens/s", flush=True)
    finally:
        engine.close()
    figures = summarise(speeds)
    print("\n" + describe(figures))
    if options.save:
        print(f"kept in {save(options.save, entry(options, figures))}")


def measured(measure: Callable[[Path], float], work: Path) -> float:
    """With a folder of its own."""
    with tempfile.TemporaryDirectory(dir=work) as folder:
        return measure(Path(folder))


def requests(model: str, prompts: Sequence[str], options: argparse.Namespace) -> list[Request]:
    renderer = Renderer(load_tokenizer(model))
    how = Sampling(max_new_tokens=options.tokens, min_new_tokens=options.tokens, temperature=1.0)
    return [
        renderer.ask((Message("user", prompt),)).request(f"{place}#{sample}", how, 0)
        for place, prompt in enumerate(prompts)
        for sample in range(options.samples)
    ]


def by_engine(engine: VllmEngine, asked: Sequence[Request], folder: Path) -> float:
    begun = time.perf_counter()
    stream = RolloutStore(folder / "rollouts.jsonl").stream(engine, asked, chunk=1)
    tokens = sum(completion.num_tokens for completion in stream)
    return tokens / (time.perf_counter() - begun)


def by_reject(engine: VllmEngine, model: Path, prompts: Path, options: argparse.Namespace, folder: Path) -> float:
    """Raises RunError where the stage fails or some answer is shorter than asked for."""
    attached = {
        "type": "vllm", "url": f"{engine.root}/v1", "token_env": TOKEN, "concurrency": options.concurrency,
    }  # fmt: skip
    rollout = {
        "group_size": options.samples, "max_new_tokens": options.tokens, "min_new_tokens": options.tokens,
        "temperature": 1.0, "top_p": 1.0, "engine": attached,
    }  # fmt: skip
    plan = {
        "run": str(folder), "model": {"path": str(model), "device": "cpu"},
        "stages": [{
            "kind": "reject", "data": {"files": [str(prompts)]}, "rollout": rollout,
            "reward": {"type": "custom", "path": "whet.demo.playground:check"},
        }],
    }  # fmt: skip
    os.environ[TOKEN] = _token(engine)
    with redirect_stdout(StringIO()):
        (stage,) = run_plan(load_plan(plan))["stages"]
    groups = (folder / "stages" / "01-reject" / "groups.jsonl").read_text(encoding="utf-8").splitlines()
    lengths = [answer["num_tokens"] for group in groups for answer in json.loads(group)["answers"]]
    if lengths != [options.tokens] * (options.prompts * options.samples):
        raise RunError("the stage has other answers than asked for", found=f"lengths {lengths[:8]}")
    return sum(lengths) / float(stage["seconds"] - stage["metrics"]["seconds_load"])


def by_bench(
    engine: VllmEngine, model: str, asked: Sequence[Request], options: argparse.Namespace, folder: Path
) -> float:
    """Raises RunError where the client fails."""
    tokenizer = load_tokenizer(model)
    rows = [{"prompt": tokenizer.decode(list(request.prompt_ids))} for request in asked]
    (folder / "bench.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    words = [
        options.python, "-m", "vllm.entrypoints.cli.main", "bench", "serve", "--backend", "openai",
        "--base-url", engine.root, "--endpoint", "/v1/completions", "--model", model,
        "--served-model-name", SERVED, "--dataset-name", "custom", "--dataset-path", str(folder / "bench.jsonl"),
        "--custom-output-len", str(options.tokens), "--skip-chat-template", "--disable-shuffle", "--ignore-eos",
        "--num-prompts", str(len(asked)), "--max-concurrency", str(options.concurrency), "--temperature", "1.0",
        "--disable-tqdm", "--save-result", "--result-dir", str(folder), "--result-filename", "bench.json",
    ]  # fmt: skip
    environment = {**os.environ, "OPENAI_API_KEY": _token(engine), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RunError("vllm bench serve failed", found=(done.stderr or done.stdout).strip().splitlines()[-1])
    result = json.loads((folder / "bench.json").read_text(encoding="utf-8"))
    if result["total_output_tokens"] != len(asked) * options.tokens:
        raise RunError("vllm bench serve got other answers than asked for", found=f"{result['total_output_tokens']}")
    return float(result["output_throughput"])


def _token(engine: VllmEngine) -> str:
    return engine.headers["Authorization"].removeprefix("Bearer ")


def summarise(speeds: Mapping[Side, Sequence[float]]) -> list[SideFigures]:
    """One entry a side; the others are compared with the first."""
    first = next(iter(speeds.values()))
    return [
        SideFigures(
            side=side, tokens_per_second=median(rounds), rounds=list(rounds),
            ratio=None if rounds is first else spread([a / b for a, b in zip(rounds, first, strict=True)]),
        )
        for side, rounds in speeds.items()
    ]  # fmt: skip


def describe(figures: Sequence[SideFigures]) -> str:
    """Aligned text."""
    lines = [f"{'side':8}{'tokens/s':>10}  of vllm bench serve's"]
    for side in figures:
        lines.append(f"{side.side:8}{side.tokens_per_second:10.1f}  {shown(side.ratio, 3)}".rstrip())
    return "\n".join(lines)


def entry(options: argparse.Namespace, figures: Sequence[SideFigures]) -> dict[str, Any]:
    """What is kept of a comparison."""
    return {
        "date": datetime.now(UTC).date().isoformat(), "task": "serve", "model": options.model,
        "prompts": options.prompts, "samples": options.samples, "new_tokens": options.tokens,
        "concurrency": options.concurrency, "device": "cpu", "device_name": None, "rounds": options.rounds,
        "machine": describe_machine(), "sides": [asdict(side) for side in figures],
    }  # fmt: skip
