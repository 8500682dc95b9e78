"""Tokens a second through whet's vllm engine, against vLLM's own client on the same server.

    python -m benchmarks serve --python /opt/vllm/bin/python [--prompts 64] [--samples 4] [--concurrency 32]

One server, started by whet. Both clients send the same prompts as often, with the same number of open requests, and ask
for the same number of tokens, in turn; whet writes every answer to disk as a stage does. `vllm bench serve` streams
tokens, as its users do; whet needs whole answers.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from whet.config.engine import Vllm
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


def add_options(serve: argparse.ArgumentParser) -> None:
    serve.add_argument("--python", required=True, help="interpreter of the environment that has vLLM")
    serve.add_argument("--model", default=str(BASE), help="checkpoint directory")
    serve.add_argument("--prompts", type=int, default=64)
    serve.add_argument("--samples", type=int, default=4, help="answers to each prompt")
    serve.add_argument("--tokens", type=int, default=64, help="tokens of each answer, exactly")
    serve.add_argument("--concurrency", type=int, default=32)
    serve.add_argument("--repeats", type=int, default=3)
    serve.add_argument("--work", default=None, help="keep the files in this folder")


def serve(options: argparse.Namespace, work: Path) -> None:
    """Print a line a measurement, and the ratio of the medians."""
    asked = requests(options)
    config = Vllm(python=options.python, concurrency=options.concurrency)
    engine = VllmEngine(config, Checkpoint(path=options.model, adapter=None, end_ids=(), folder=work))
    try:
        measured: dict[str, list[float]] = {"whet": [], "vllm bench serve": []}
        ours(engine, asked[: options.concurrency], work)  # warm
        for _ in range(options.repeats):
            measured["vllm bench serve"].append(theirs(engine, asked, options, work))
            measured["whet"].append(ours(engine, asked, work))
            for name, values in measured.items():
                print(f"{name:<18} {values[-1]:8.1f} tokens/s", flush=True)
    finally:
        engine.close()
    whet, bench = (statistics.median(measured[name]) for name in ("whet", "vllm bench serve"))
    print(f"medians of {options.repeats}: {whet:.1f} / {bench:.1f} tokens/s = {whet / bench:.3f}")


def requests(options: argparse.Namespace) -> list[Request]:
    renderer = Renderer(load_tokenizer(options.model))
    how = Sampling(max_new_tokens=options.tokens, min_new_tokens=options.tokens, temperature=1.0)
    rows = playground.prompts("train", options.prompts, 0)
    return [
        renderer.ask((Message("user", row["prompt"]),)).request(f"{place}#{sample}", how, 0)
        for place, row in enumerate(rows)
        for sample in range(options.samples)
    ]


def ours(engine: VllmEngine, asked: Sequence[Request], work: Path) -> float:
    with tempfile.TemporaryDirectory(dir=work) as folder:
        begun = time.perf_counter()
        stream = RolloutStore(Path(folder) / "rollouts.jsonl").stream(engine, asked, chunk=1)
        tokens = sum(completion.num_tokens for completion in stream)
        return tokens / (time.perf_counter() - begun)


def theirs(engine: VllmEngine, asked: Sequence[Request], options: argparse.Namespace, work: Path) -> float:
    """Raises RunError where the client fails."""
    tokenizer = load_tokenizer(options.model)
    rows = [{"prompt": tokenizer.decode(list(request.prompt_ids))} for request in asked]
    (work / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    words = [
        options.python, "-m", "vllm.entrypoints.cli.main", "bench", "serve", "--backend", "openai",
        "--base-url", engine.root, "--endpoint", "/v1/completions", "--model", options.model,
        "--served-model-name", SERVED, "--dataset-name", "custom", "--dataset-path", str(work / "prompts.jsonl"),
        "--custom-output-len", str(options.tokens), "--skip-chat-template", "--disable-shuffle", "--ignore-eos",
        "--num-prompts", str(len(asked)), "--max-concurrency", str(options.concurrency), "--temperature", "1.0",
        "--disable-tqdm", "--save-result", "--result-dir", str(work), "--result-filename", "bench.json",
    ]  # fmt: skip
    key = engine.headers["Authorization"].removeprefix("Bearer ")
    done = subprocess.run(
        words, env={**os.environ, "OPENAI_API_KEY": key, "HF_HUB_OFFLINE": "1"}, capture_output=True, text=True
    )
    if done.returncode:
        raise RunError("vllm bench serve failed", found=(done.stderr or done.stdout).strip().splitlines()[-1])
    result = json.loads((work / "bench.json").read_text(encoding="utf-8"))
    return float(result["output_throughput"])
