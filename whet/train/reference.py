"""Reference log-probs of static pairs, computed once with the starting model and kept under a hash of what made them.

The reference is the policy as it stands before the first step. For fixed data its log-probs never change, so one
pass before training replaces a second model, or a second forward pass in every epoch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from whet.data.batch import PairBatch
from whet.data.render import RenderedPair
from whet.runs.files import writing
from whet.runs.sinks import Progress
from whet.train.learners import response_logprobs
from whet.train.parallel import Parallel


def reference_key(rows: Sequence[RenderedPair], model: str, dtype: torch.dtype) -> str:
    """Hash of the token ids, the starting model's content hash and the arithmetic."""
    digest = hashlib.sha256(json.dumps([model, str(dtype)]).encode())
    for row in rows:
        digest.update(json.dumps([row.prompt_ids, row.chosen_ids, row.rejected_ids]).encode())
    return digest.hexdigest()


def load_reference(path: Path, key: str) -> Tensor | None:
    """The cached [num_pairs, 2] log-probs, or None where the file is absent or was made from something else."""
    if not path.exists():
        return None
    with safe_open(path, framework="pt") as file:
        return file.get_tensor("logprobs") if (file.metadata() or {}).get("key") == key else None


def compute_reference(
    model: torch.nn.Module,
    num_pairs: int,
    collate: Callable[[Sequence[int]], PairBatch],
    *,
    batch_size: int,
    parallel: Parallel,
    title: str = "reference",
) -> Tensor:
    """Score every pair once, in fixed batches of neighbours. Returns [num_pairs, 2] float32 on the CPU."""
    model.eval()
    logprobs = torch.empty(num_pairs, 2)
    with Progress(title, num_pairs) as progress, torch.inference_mode():
        for start in range(0, num_pairs, batch_size):
            indices = list(range(start, min(start + batch_size, num_pairs)))
            with parallel.forward():
                both = response_logprobs(model, collate(indices)).cpu()
            logprobs[indices, 0], logprobs[indices, 1] = both[: len(indices)], both[len(indices) :]
            progress.update(len(indices))
    model.train()
    return logprobs


def save_reference(path: Path, key: str, logprobs: Tensor) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    with writing(path):
        save_file({"logprobs": logprobs}, temporary, metadata={"key": key})
        temporary.replace(path)
