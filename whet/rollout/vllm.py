"""A vLLM server as an engine: asked by ids, or messages where there are pictures, and up to date while a model trains.

    engine = VllmEngine(config, Checkpoint(path=..., adapter=..., end_ids=..., folder=...))
    engine = VllmEngine(config, checkpoint, follows=Followed(model=policy, tokenizer=tokenizer))
    engine.sync(version=40)

How the weights get there: an adapter is written to a folder and loaded into the running server under a name of its own
(`/v1/load_lora_adapter`); whole weights are written as a checkpoint which the server reads again in place
(`reload_weights` by `/collective_rpc`, between `/pause` and `/resume`), or which a server started anew serves. Whatever
the way, the server is then asked for the log-probs of a probe text, and the run stops where they are not the trainer's
(`whet.rollout.probe`).
"""

from __future__ import annotations

import importlib.util
import json
import secrets
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from http.client import HTTPException
from pathlib import Path
from typing import Any, Literal

import psutil
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from whet.config.engine import Vllm
from whet.config.model import Vision
from whet.errors import ConfigError, RunError
from whet.models.load import save_trained
from whet.rollout.bearer import bearer
from whet.rollout.probe import TEXT, Seen, check_sync, trainer_logprobs
from whet.rollout.process import DIRECT, ServerProcess
from whet.rollout.server import Manner, ServerEngine
from whet.rollout.wire import chat_body, complaint, completions_body, measuring_bodies
from whet.schema.rollouts import Completion, Request

BASE, POLICY = "whet", "whet-policy"
"""Names at the server: the checkpoint, and the adapter on it."""
RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""Largest adapter ranks that vLLM can be started with."""
CPU_SHARE = 0.5
"""Of the free memory of a machine without a GPU, what a server may take."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """What the server serves."""

    path: str
    adapter: str | None
    end_ids: tuple[int, ...]
    folder: Path
    """Where its log goes, and weights on their way."""
    vision: Vision | None = None
    """The plan's limits of pictures, which the server must keep to as well."""
    trust_remote_code: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Followed:
    """The model in training that the server must be like."""

    model: PreTrainedModel | PeftModel
    tokenizer: PreTrainedTokenizerBase


class VllmEngine:
    """An `Engine` over a server that whet starts and ends, or that runs already."""

    batched = False

    def __init__(self, config: Vllm, checkpoint: Checkpoint, *, follows: Followed | None = None) -> None:
        """Comes back when the server answers. Raises ConfigError or RunError where it cannot."""
        self._config, self._checkpoint, self._follows = config, checkpoint, follows
        self._way = _way(config, follows)
        self._process: ServerProcess | None = None
        self._token = secrets.token_urlsafe(24) if config.url is None else ""
        if config.url is None:
            self._process = _start(config, checkpoint, follows, self._token)
        own = {"Authorization": f"Bearer {self._token}"}
        self.headers = own if self._token else bearer(config.token_env, "rollout.engine.token_env")
        self.root = self._process.url if self._process is not None else str(config.url).removesuffix("/v1")
        self._seen: Seen | None = None
        self._folder, self._num_synced = checkpoint.folder / "sync", 0
        self._engine = ServerEngine(
            (f"{self.root}/v1",),
            Manner(
                written=self._written, headers=self.headers, local=True, problem=self._problem, same_prompt=True,
                measures=self._measures if _rank(checkpoint, follows) is None else None,
            ),
            concurrency=config.concurrency, timeout=config.timeout, retries=config.retries,
        )  # fmt: skip
        try:
            served = self._call("GET", "/v1/models")["data"][0]
            self._name, self._max_length = str(served["id"]), int(served.get("max_model_len") or 1 << 30)
            self._check_model(str(served.get("root")))
            if checkpoint.adapter is not None and follows is None:
                self._load_adapter(Path(checkpoint.adapter))
        except BaseException:
            self.close()
            raise

    def generate(self, requests: Iterable[Request]) -> Iterator[Completion]:
        """Yield completions as they come. Raises RunError where a server that whet started has ended: a failure of its
        own is no property of the requests that wait for it."""
        for completion in self._engine.generate(requests):
            if completion.finish_reason == "error" and self._process is not None and self._process.ended:
                raise RunError(
                    "the server has ended", file=str(self._checkpoint.folder / "vllm.log"), found=completion.error,
                    fix="its log says why; the same command goes on from here",
                )  # fmt: skip
            yield completion

    def sync(self, version: int) -> None:
        """Give the server the weights of the model in training. Raises RunError where they do not arrive."""
        self._engine.sync(version)
        if self._follows is None:
            return
        # A path of its own each time: the server keeps what it computed with an adapter under the adapter's path. The
        # last one stays as long as it is used, since a server may read an adapter again.
        place, earlier = self._folder / f"{self._num_synced:06d}", self._folder / f"{self._num_synced - 1:06d}"
        self._num_synced += 1
        shutil.rmtree(place, ignore_errors=True)
        save_trained(self._follows.model, self._follows.tokenizer, place)
        match self._way:
            case "adapter":
                self._load_adapter(place)
            case "weights":
                self._reload_weights(place)
            case "restart":
                self._restart(place)
        before, self._seen = self._seen, self._probe(self._follows)
        check_sync(self._seen, before, self._config.sync_tolerance)
        shutil.rmtree(earlier, ignore_errors=True)

    def close(self) -> None:
        """End the server where whet started it."""
        self._engine.close()
        if self._process is not None:
            self._process.close()
        self._process = None
        shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def counts(self) -> Mapping[str, float]:
        return self._engine.counts

    @property
    def probed(self) -> tuple[float, ...]:
        """The server's log-probs of the probe at the last sync."""
        assert self._seen is not None, "nothing was synced yet"
        return self._seen.server

    @property
    def sync_difference(self) -> float | None:
        """Mean difference of the probe's log-probs at the last sync, in nats a token."""
        return self._seen.difference if self._seen is not None else None

    def _written(self, request: Request) -> tuple[str, Mapping[str, Any]]:
        """Ids cannot carry pictures: those go in messages, which the server renders with the checkpoint's template."""
        room = self._max_length - len(request.prompt_ids)
        told = {"return_token_ids": True} | ({"logprobs": True, "top_logprobs": 0} if request.logprobs else {})
        body = chat_body(request) | told if request.pictures else completions_body(request)
        return "/chat/completions" if request.pictures else "/completions", body | {
            "model": self._name,
            "max_tokens": min(request.sampling.max_new_tokens, room),
            "top_k": request.sampling.top_k,
            "min_p": request.sampling.min_p,
            "stop_token_ids": list(self._checkpoint.end_ids),
        }

    def _measures(self, request: Request) -> list[tuple[str, Mapping[str, Any]]]:
        return [("/completions", body | {"model": self._name}) for body in measuring_bodies(request)]

    def _problem(self, request: Request) -> str | None:
        num = len(request.prompt_ids) + max(map(len, request.continuations), default=0)
        if request.pictures and request.continuations:
            return "given continuations are asked for by ids, which hold no pictures: take engine=native"
        if num == 0:
            return "the prompt has no tokens"
        if num >= self._max_length:
            return f"the prompt has {num} tokens and the server takes {self._max_length}"
        return None

    def _check_model(self, root: str) -> None:
        """Raises ConfigError where a server that runs already has another checkpoint of this machine."""
        place = Path(root)
        if place.is_dir() and place.resolve() != Path(self._checkpoint.path).resolve():
            raise ConfigError(
                "the server has another model", field="rollout.engine.url", found=root,
                fix=f"start it with {self._checkpoint.path}",
            )  # fmt: skip

    def _load_adapter(self, place: Path) -> None:
        asked = {"lora_name": POLICY, "lora_path": str(place.resolve()), "load_inplace": True}
        self._call("POST", "/v1/load_lora_adapter", asked)
        self._name = POLICY

    def _reload_weights(self, place: Path) -> None:
        self._call("POST", "/pause?mode=wait", {})
        asked = {"method": "reload_weights", "kwargs": {"weights_path": str(place.resolve())}}
        self._call("POST", "/collective_rpc", asked)
        self._call("POST", "/reset_prefix_cache", {})
        self._call("POST", "/resume", {})

    def _restart(self, place: Path) -> None:
        """On the same port, so that nobody else has to know."""
        assert self._process is not None, "a server that runs already is not ours to restart"
        self._process.close()
        served = replace(self._checkpoint, path=str(place), adapter=None)
        self._process = _start(self._config, served, self._follows, self._token, port=self._process.port)

    def _probe(self, follows: Followed) -> Seen:
        ids = follows.tokenizer(TEXT).input_ids
        asked = {"model": self._name, "prompt": ids, "max_tokens": 1, "temperature": 0, "prompt_logprobs": 0}
        known = self._call("POST", "/v1/completions", asked)["choices"][0]["prompt_logprobs"][1:]
        server = tuple(float(known[place][str(token)]["logprob"]) for place, token in enumerate(ids[1:]))
        return Seen(trainer=trainer_logprobs(follows.model, ids), server=server)

    def _call(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """One request about the server itself. Raises RunError with what it says."""
        where = self.root + path
        fix = "see its log" if self._process is not None else "is it a vLLM server, started as whet would start it?"
        headers = {"Content-Type": "application/json"} | self.headers
        data = None if body is None else json.dumps(body).encode()
        asked = urllib.request.Request(where, data, headers, method=method)
        try:
            with DIRECT.open(asked, timeout=self._config.timeout) as reply:
                said: bytes = reply.read()
        except urllib.error.HTTPError as error:
            found = f"status {error.code} {complaint(error.read())}"
            raise RunError("the server refuses", field=where, found=found, fix=fix) from None
        except (OSError, HTTPException) as error:
            raise RunError("the server does not answer", field=where, found=str(error), fix=fix) from None
        try:
            return json.loads(said)
        except ValueError:
            return said.decode("utf-8", "replace")


def _way(config: Vllm, follows: Followed | None) -> Literal["adapter", "weights", "restart"] | None:
    """Raises ConfigError for a way that what trains does not allow."""
    if follows is None:
        return None
    adapted = isinstance(follows.model, PeftModel)
    if config.sync != "auto" and (config.sync == "adapter") != adapted:
        raise ConfigError(
            "cannot follow what trains", field="rollout.engine.sync", found=config.sync,
            fix=f"{'an adapter trains' if adapted else 'all weights train'}: take auto",
        )  # fmt: skip
    if config.sync == "auto":
        return "adapter" if adapted else "weights"
    return config.sync


def _start(
    config: Vllm, checkpoint: Checkpoint, follows: Followed | None, token: str, *, port: int | None = None
) -> ServerProcess:
    if config.python is None and importlib.util.find_spec("vllm") is None:
        raise ConfigError(
            "vLLM is not installed beside whet", field="rollout.engine.python",
            fix="name the interpreter of the environment that has it, or a server's url",
        )  # fmt: skip
    environment = {
        "VLLM_API_KEY": token, "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1", "DO_NOT_TRACK": "1", "VLLM_NO_USAGE_STATS": "1",
        "VLLM_SERVER_DEV_MODE": "1" if follows is not None else "0", "PYTHONPATH": "",
    }  # fmt: skip
    on_cpu = _is_cpu_build(config.python or sys.executable)
    process = ServerProcess(
        lambda port: command(config, checkpoint, _rank(checkpoint, follows), port, on_cpu=on_cpu),
        environment, checkpoint.folder / "vllm.log", port=port,
    )  # fmt: skip
    process.wait("/health", config.start_timeout)
    return process


def command(
    config: Vllm, checkpoint: Checkpoint, rank: int | None, port: int, *, on_cpu: bool = False
) -> Sequence[str]:
    """The words that start the server. Its own defaults of sampling stay out: a plan says how it samples.

    `on_cpu` is vLLM's CPU build (0.32). It ends where it splits the prompt of a request with a seed, as all of whet's
    are: it has to set the random numbers back, and a generator on a CPU cannot be. And it would take 92 % of the
    machine's memory, or end where that much is not free: it gets half of what is, the trainer beside it the rest.
    """
    words = [config.python or sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", checkpoint.path]
    words += ["--host", "127.0.0.1", "--port", str(port), "--served-model-name", BASE, "--dtype", config.dtype]
    words += ["--generation-config", "vllm", "--logprobs-mode", "processed_logprobs"]
    if config.max_length is not None:
        words += ["--max-model-len", str(config.max_length)]
    if checkpoint.vision is not None and (
        limits := checkpoint.vision.model_dump(include={"min_pixels", "max_pixels"}, exclude_none=True)
    ):
        words += ["--mm-processor-kwargs", json.dumps(limits)]
    if checkpoint.trust_remote_code:
        words += ["--trust-remote-code"]
    if rank is not None:
        room = next((most for most in RANKS if most >= rank), rank)
        words += ["--enable-lora", "--max-lora-rank", str(room)]
    if on_cpu:
        memory = psutil.virtual_memory()
        share = f"{CPU_SHARE * memory.available / memory.total:.2f}"
        words += ["--no-enable-chunked-prefill", "--gpu-memory-utilization", share]
    return [*words, *config.options]


def _is_cpu_build(python: str) -> bool:
    """Whether the interpreter's vLLM computes on the CPU, as vLLM itself tells it: by its version."""
    ask = "from importlib.metadata import version; print(version('vllm'))"
    try:
        asked = subprocess.run([python, "-c", ask], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return False  # starting the server will say what is wrong
    return "cpu" in asked.stdout


def _rank(checkpoint: Checkpoint, follows: Followed | None) -> int | None:
    """The adapter's rank; None where there is no adapter."""
    if follows is not None and isinstance(follows.model, PeftModel):
        config = follows.model.peft_config["default"]
        return max([int(config.r), *map(int, config.rank_pattern.values())])
    if follows is None and checkpoint.adapter is not None:
        stored = json.loads((Path(checkpoint.adapter) / "adapter_config.json").read_text(encoding="utf-8"))
        return max([int(stored["r"]), *map(int, (stored.get("rank_pattern") or {}).values())])
    return None
