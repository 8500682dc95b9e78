"""Peak memory of full fine-tuning steps, for each way of holding weights and AdamW's averages.

    python -m benchmarks.memory --model 103m                            all ways, each in a process of its own
    python -m benchmarks.memory --model 7b --device cuda --micro-batches 4

Random tokens, bf16 arithmetic, three steps of whet's own learner, backward pass, clipping and optimiser; no checkpoint
is written. 8 bits are measured where bitsandbytes is installed, pages on CUDA only.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.machine import describe_machine, peak_resident_bytes
from benchmarks.shapes import SHAPES, build_model

if TYPE_CHECKING:
    from whet.data.batch import TokenBatch

WEIGHTS = ("fp32", "bf16_master", "bf16_stochastic")
STEPS = 3
ROW_TOKENS = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One way, and the step it is measured on."""

    checkpoint: str
    weights: str
    optimizer: str
    device: str
    tokens: int
    """Tokens of a micro-batch, in rows of `ROW_TOKENS`."""
    micro_batches: int
    recompute: bool
    """Gradient checkpointing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Peak:
    peak_bytes: int
    """Most resident memory of the process, loading included; on CUDA the most that torch had allocated."""
    imported_bytes: int
    """Of that, what the libraries took before there was a model."""
    step_seconds: float
    """The last step's."""
    loss: float
    """The last step's."""
    parameters: int

    @property
    def bytes_per_weight(self) -> float:
        """Memory beside the libraries, activations included, for each weight."""
        return (self.peak_bytes - self.imported_bytes) / self.parameters


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    if options.setting is not None:
        print(json.dumps(asdict(measure(Setting(**json.loads(options.setting))))))
        return 0
    machine = describe_machine()
    print(f"{options.model}, {machine['processor']}, {machine['packages']}")
    print(f"{'weights':17}{'optimizer':18}{'peak GB':>9}{'no imports':>12}{'B/weight':>10}{'s/step':>9}{'loss':>9}")
    with tempfile.TemporaryDirectory(prefix="whet-memory-") as folder:
        build(options.model, Path(folder), options.device)
        for weights in WEIGHTS:
            for optimizer in optimizers(options.device):
                setting = Setting(
                    checkpoint=folder, weights=weights, optimizer=optimizer, device=options.device,
                    tokens=options.tokens, micro_batches=options.micro_batches, recompute=options.recompute,
                )  # fmt: skip
                print(line(setting, in_a_process_of_its_own(setting)), flush=True)
    return 0


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(
        prog="python -m benchmarks.memory", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = found.add_argument
    add("--model", choices=list(SHAPES), default="103m", help="size of the random model")
    add("--device", choices=["cpu", "cuda"], default="cpu")
    add("--tokens", type=int, default=1024, help="tokens of a micro-batch")
    add("--micro-batches", type=int, default=1, help="micro-batches of a step")
    add("--recompute", action="store_true", help="gradient checkpointing")
    add("--setting", help=argparse.SUPPRESS)
    return found


def build(model: str, folder: Path, device: str) -> None:
    """Write the checkpoint that every process loads."""
    from whet.models.tiny import train_tokenizer

    build_model(SHAPES[model], train_tokenizer(["a few words"], vocab_size=300), folder, device=device)


def optimizers(device: str) -> list[str]:
    """What can be measured here."""
    if importlib.util.find_spec("bitsandbytes") is None:
        return ["adamw"]
    return ["adamw", "adamw_8bit", *(["paged_adamw", "paged_adamw_8bit"] if device == "cuda" else [])]


def in_a_process_of_its_own(setting: Setting) -> Peak:
    """Raises CalledProcessError where the process fails; what it wrote to stderr has been shown."""
    command = [sys.executable, "-m", "benchmarks.memory", "--setting", json.dumps(asdict(setting))]
    finished = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return Peak(**json.loads(finished.stdout.splitlines()[-1]))


def measure(setting: Setting) -> Peak:
    """Load, train `STEPS` steps, and read the memory of this process."""
    import torch

    from whet.config.model import Model
    from whet.config.train import Train
    from whet.models.load import load_model
    from whet.models.scoring import TokenScorer
    from whet.objectives.supervised import nll
    from whet.schema.artifacts import ModelRef
    from whet.train.learners import TokenLearner
    from whet.train.optim import build_optimizer
    from whet.train.parallel import Parallel

    on_cuda, imported = setting.device == "cuda", peak_resident_bytes()
    config = Model(path=setting.checkpoint, lora=None, device="cuda" if on_cuda else "cpu")
    model = load_model(ModelRef(path=config.path), config, dtype=torch.bfloat16, trainable=True)
    train = Train.model_validate({"weights": setting.weights, "optimizer": setting.optimizer, "precision": "bf16"})
    scorer, learner = TokenScorer(model, keep_tokens=0 if setting.recompute else None), TokenLearner(nll)
    parallel = Parallel(torch.device(setting.device), torch.bfloat16)
    optimizer = build_optimizer(scorer, train)
    parameters, batches = list(model.parameters()), random_batches(setting, model.config.vocab_size)
    units = sum(learner.units(batch) for batch in batches)
    for _ in range(STEPS):
        began, loss = time.perf_counter(), 0.0
        for batch in batches:
            with parallel.forward():
                total = learner.loss(scorer, batch).total / units
            parallel.backward(total)
            loss += float(total.detach())
        parallel.step(optimizer, parameters, train.max_grad_norm)
    return Peak(
        peak_bytes=torch.cuda.max_memory_allocated() if on_cuda else peak_resident_bytes(),
        imported_bytes=0 if on_cuda else imported,
        step_seconds=time.perf_counter() - began,
        loss=loss,
        parameters=sum(p.numel() for p in parameters),
    )


def random_batches(setting: Setting, vocabulary: int) -> list[TokenBatch]:
    """Rows of random tokens, all but the first of each trained, the same for every setting."""
    import torch

    from whet.data.batch import collate_tokens
    from whet.data.rendered import Rendered

    generator, device = torch.Generator().manual_seed(0), torch.device(setting.device)
    batches = []
    for _ in range(setting.micro_batches):
        lengths = [min(ROW_TOKENS, setting.tokens - start) for start in range(0, setting.tokens, ROW_TOKENS)]
        rows = [torch.randint(vocabulary, (length,), generator=generator).tolist() for length in lengths]
        batches.append(collate_tokens([Rendered(ids=ids, weights=[1.0] * len(ids)) for ids in rows], device=device))
    return batches


def line(setting: Setting, peak: Peak) -> str:
    """One row of the table; a GB is 10^9 bytes."""
    over = peak.peak_bytes - peak.imported_bytes
    return (
        f"{setting.weights:17}{setting.optimizer:18}{peak.peak_bytes / 1e9:9.2f}{over / 1e9:12.2f}"
        f"{peak.bytes_per_weight:10.1f}{peak.step_seconds:9.2f}{peak.loss:9.4f}"
    )


if __name__ == "__main__":
    sys.exit(main())
