"""What both pretraining scripts share: optimisers, the learning rate over the steps, the loop, a checkpoint in bf16."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

Batch = TypeVar("Batch")


def run_steps(
    model: PreTrainedModel, feed: Iterable[Batch], loss_of: Callable[[Batch], Tensor], *, steps: int,
    learning_rate: float, share: Callable[[int], float], bf16: bool, every: int, said: Callable[[int], dict[str, int]],
    log: Path, save_every: int,
) -> float:  # fmt: skip
    """Train by `loss_of` a batch, at `share` of the learning rate, and log the mean loss with what is `said` of the
    step. Returns the seconds it took."""
    optimizers = make_optimizers(model, learning_rate)
    begun, losses = time.monotonic(), list[float]()
    with log.open("a", encoding="utf-8") as sink:
        for step, batch in zip(range(1, steps + 1), feed, strict=False):
            for optimizer in optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = share(step) * group["initial_lr"]
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                loss = loss_of(batch)
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
            losses.append(loss.item())
            if step % every == 0 or step == steps:
                mean, seconds = round(sum(losses) / len(losses), 4), round(time.monotonic() - begun, 1)
                line = json.dumps({**said(step), "loss": mean, "seconds": seconds})
                sink.write(line + "\n")
                sink.flush()
                print(line, flush=True)
                losses.clear()
            if save_every and step % save_every == 0:
                save(model, log.parent)
    return time.monotonic() - begun


def make_optimizers(model: PreTrainedModel, learning_rate: float) -> list[torch.optim.Optimizer]:
    """Muon (orthogonalised momentum) for the weight matrices, where it needs about half of AdamW's tokens; AdamW for
    the embeddings and norms. `match_rms_adamw` scales Muon's step to AdamW's, so one learning rate serves both."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    made = [
        torch.optim.Muon(matrices, lr=learning_rate, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.0),
    ]
    for optimizer in made:
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
    return made


def schedule(step: int, steps: int) -> float:
    """Warm up over 100 steps, hold, and go down to 2 % of the peak over the last third (2405.18392)."""
    return min(1.0, step / 100) * min(1.0, 0.02 + 0.98 * (steps - step) / (steps / 3))


def save(model: PreTrainedModel, out: Path) -> None:
    """bf16 halves the file; what is trained on top begins from the rounded weights, in the precision of its plan."""
    copy = type(model)(model.config).to(torch.bfloat16)
    copy.load_state_dict(model.state_dict())
    copy.generation_config = model.generation_config
    copy.save_pretrained(out)
