"""What a holding is given of an optimiser's state on disk."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from whet.train import checkpoint


def test_what_is_read_twice_is_not_shared(tmp_path: Path) -> None:
    """ZeRO has a count of steps for each group of weights, read from one number: a shared one would count double."""
    from safetensors import safe_open

    save_file({"0.step": torch.tensor(10.0), "0.exp_avg": torch.arange(6.0).view(3, 2)}, tmp_path / "state")
    with safe_open(tmp_path / "state", "pt") as file:
        one, two = (checkpoint._rows(file, "0.step", None) for _ in range(2))
        one += 1
        part = checkpoint._rows(file, "0.exp_avg", slice(1, 3))
        part += 1
        whole = checkpoint._rows(file, "0.exp_avg", None)
    assert (float(one), float(two)) == (11.0, 10.0)
    assert whole.tolist() == [[0, 1], [2, 3], [4, 5]]
