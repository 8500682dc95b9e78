"""Engines: who generates. A class is one kind, chosen by `type`; a bare word stands for its kind's defaults.

    rollout: {engine: vllm}
    rollout: {engine: {type: http, urls: [https://api.example.com/v1], model: some-model, token_env: API_KEY}}
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from whet.config.base import Section, named
from whet.config.values import Place, Timeout


class Native(Section):
    """Inside this process."""

    type: Literal["native"] = "native"
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """Arithmetic of a model that does not train here: `auto` is bf16 on GPUs that have it, else fp32; see
    `train.precision` for CPUs. In online RL that key decides."""
    graphs: bool = False
    """On a GPU, record the kernels of a decoding step as a CUDA graph and launch them at once, as long as the same rows
    run. Tried with a stand-in on a CPU, not yet on a GPU."""


class _Server(Section):
    concurrency: int = Field(16, ge=1)
    """Requests that wait for an answer at the same time, over all servers."""
    timeout: Timeout = 600.0
    """Seconds for one answer."""
    retries: int = Field(6, ge=0)
    """Further attempts after no answer, 408, 429, 5xx or a reply that cannot be read, each after a longer pause."""


class Http(_Server):
    """Any server that speaks OpenAI's API."""

    type: Literal["http"] = "http"
    urls: tuple[Annotated[str, Field(pattern=r"^https?://")], ...] = Field(min_length=1)
    """Base URLs, up to and with `/v1`; of several, the one with the fewest open requests is asked."""
    model: str = Field(min_length=1)
    """The model's name at the server."""
    api: Literal["chat", "completions"] = "chat"
    """`chat` sends messages; `completions` sends token ids, which vLLM and some others take, and gets ids back."""
    token_env: str | None = None
    """Environment variable with a bearer token for the Authorization header."""
    fields: dict[str, Any] = Field(default_factory=dict)
    """Further fields of every request, as the server names them, e.g. {reasoning_effort: low}."""
    price_per_million_prompt_tokens: float = Field(0.0, ge=0)
    """What a million prompt tokens cost, in your currency; counted as `cost`."""
    price_per_million_completion_tokens: float = Field(0.0, ge=0)
    """What a million generated tokens cost, in your currency; counted as `cost`."""


class Vllm(_Server):
    """A vLLM server, started and stopped by whet, or one that runs already."""

    type: Literal["vllm"] = "vllm"
    concurrency: int = Field(64, ge=1)
    """Requests that wait for an answer at the same time."""
    url: str | None = Field(None, pattern=r"^https?://")
    """Base URL, up to and with `/v1`, of a server that runs already and serves this very model; null starts one."""
    token_env: str | None = None
    """Environment variable with the bearer token of a server that runs already."""
    python: Place | None = None
    """Interpreter of the environment that holds vLLM; null takes whet's own."""
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """Type of the server's weights and arithmetic; `auto` takes the checkpoint's."""
    max_length: int | None = Field(None, ge=1)
    """Longest prompt with its answer; null takes what the model can."""
    options: tuple[str, ...] = ()
    """Further words for `vllm serve`, e.g. [--tensor-parallel-size, "2"]."""
    start_timeout: Timeout = 900.0
    """Seconds until a started server must answer."""
    sync: Literal["auto", "adapter", "weights", "restart"] = "auto"
    """How the weights follow training: `adapter` loads the LoRA adapter into the running server, `weights` the whole
    checkpoint, `restart` serves that by a server started anew; `auto` takes the adapter where one trains, else
    `weights`."""
    sync_tolerance: float = Field(0.1, gt=0)
    """After every sync the server's log-probs of probe tokens may differ from the trainer's by this much on average;
    more stops the run."""

    @model_validator(mode="after")
    def _starts_or_attaches(self) -> Vllm:
        if self.url is not None and (self.python is not None or self.options):
            raise ValueError("url names a server that runs already: python and options are for one that whet starts")
        if self.url is not None and self.sync == "restart":
            raise ValueError("url names a server that runs already: sync=restart is for one that whet starts")
        return self


class Ray(Section):
    """Actors of a Ray cluster, each with the whole model: requests are dealt to all of them."""

    type: Literal["ray"] = "ray"
    actors: int = Field(1, ge=1)
    """How many; where several ranks work on a stage, each has as many of its own."""
    serve: Annotated[Annotated[Native | Vllm, Field(discriminator="type")], BeforeValidator(named)] = Native()
    """What an actor answers with: `native`, or a vLLM server of its own."""
    cpus: float = Field(1.0, gt=0)
    """CPUs that an actor reserves."""
    gpus: float | None = Field(None, ge=0)
    """GPUs that an actor reserves; null takes one where the cluster has any and `model.device` does not say otherwise.
    With 0 an actor sees no GPU."""
    placement: Literal["pack", "spread"] = "pack"
    """`pack` puts the actors on as few nodes as possible, `spread` on as many."""
    address: str | None = None
    """Cluster to join: `auto` is the one this machine belongs to, else host:port; null starts one on this machine that
    ends with the process. Under `launch.type=ray` it is the launch's cluster, whatever stands here."""
    start_timeout: Timeout = 900.0
    """Seconds to wait for room on the cluster."""
    max_failures: int = Field(3, ge=0)
    """Losses of an actor with the same requests that are borne; one more stops the stage."""
    sync_tolerance: float = Field(0.1, gt=0)
    """After every sync an actor's log-probs of probe tokens may differ from the trainer's by this much on average; more
    stops the run."""

    @model_validator(mode="after")
    def _a_server_each(self) -> Ray:
        if isinstance(self.serve, Vllm) and self.serve.url is not None:
            raise ValueError("serve.url names one server, and every actor has its own: leave it out")
        return self


def _native_unless_said(value: object) -> object:
    """`rollout.engine.graphs=true` alone is this process's; keys of a server do not say of which."""
    section = named(value)
    native = isinstance(section, dict) and "type" not in section and section.keys() <= Native.model_fields.keys()
    return {"type": "native", **section} if isinstance(section, dict) and native else section


Engine = Annotated[
    Annotated[Native | Http | Vllm | Ray, Field(discriminator="type")],
    BeforeValidator(_native_unless_said),
]


def served_by(engine: Native | Http | Vllm | Ray) -> Native | Http | Vllm:
    """What answers in the end: an actor holds an engine of its own."""
    return engine.serve if isinstance(engine, Ray) else engine
