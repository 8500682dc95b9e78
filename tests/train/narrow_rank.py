"""One rank that trains a bf16 layer on gradients of its own, started by torchrun: its weights after three steps."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from whet.config.train import Train
from whet.ranks.group import join_ranks, leave_ranks
from whet.train.narrow import NarrowWeights
from whet.train.optim import build_optimizer
from whet.train.parallel import Parallel


def start(mode: str) -> tuple[torch.nn.Linear, NarrowWeights]:
    torch.manual_seed(0)
    layer = torch.nn.Linear(20, 10, bias=False)
    optimizer = build_optimizer(layer, Train(weights=mode, learning_rate=1e-3))
    assert isinstance(optimizer, NarrowWeights)
    return layer, optimizer


def gradient(step: int, rank: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(10 * step + rank)
    return torch.randn(10, 20, generator=generator).bfloat16()


def main(mode: str, folder: Path) -> None:
    layer, optimizer = start(mode)
    parallel = Parallel(torch.device("cpu"), torch.bfloat16, join_ranks())
    norms = []
    for step in range(3):
        layer.weight.backward(gradient(step, parallel.rank))
        norms.append(parallel.step(optimizer, list(layer.parameters()), 0.5))
    tensors = {"weight": layer.weight.detach(), "norms": torch.tensor(norms, dtype=torch.float64)}
    save_file(tensors, folder / f"{parallel.rank}.safetensors")
    leave_ranks()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
