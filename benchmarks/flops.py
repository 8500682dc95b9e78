"""Model FLOPs of a step: the arithmetic that its loss and the gradient of its adapter ask for.

With N the weights of all layers that multiply every token, A the adapter's parameters, d the width of attention, V H
the size of the head, a forward pass over T tokens, L of them predicting a trained token, is

    2 T (N + A) + 2 L V H + 4 d sum of (keys each query sees), over all layers          multiply and add count as two

The frozen weights pass a gradient on but get none, so layers and head cost as much backward as forward; the products
of attention have two changing factors and the adapter gets a gradient, so these cost twice as much backward. A step
of SFT or a reward model is forward and backward; DPO adds a forward pass of the reference without the adapter.

A pair's prompt is counted once, the head at trained positions only (a reward model has none), every layer for all
tokens (whet leaves out some of the last one), nothing for padding or recomputation. All sides get the same numerator:
utilisation has no credit for work that need not be done.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from benchmarks.job import Task
from benchmarks.shapes import Shape

PEAKS = {"H200": 989e12, "H100": 989e12, "H800": 989e12, "A100": 312e12, "L40S": 362e12, "4090": 165e12}
"""Dense bf16 FLOP/s by a part of the device's name, from the vendor's data sheets (SXM where there are several)."""

Row = Mapping[str, Sequence[int]]
IGNORED = -100


def peak_flops(device_name: str) -> float | None:
    """Peak of a known device, or None."""
    return next((peak for part, peak in PEAKS.items() if part in device_name), None)


def row_tokens(task: Task, row: Row) -> int:
    """Real tokens as a trainer without prefix sharing passes them: a pair's prompt once for each response."""
    if task == "sft":
        return len(row["ids"])
    return 2 * len(row["prompt"]) + len(row["chosen"]) + len(row["rejected"])


def shared_tokens(task: Task, row: Row) -> int:
    """Tokens that need to pass the model: a pair's prompt once."""
    return row_tokens(task, row) - (0 if task == "sft" else len(row["prompt"]))


def step_flops(task: Task, rows: Sequence[Row], shape: Shape, rank: int) -> float:
    """FLOPs of one optimiser step over `rows`."""
    return sum(row_flops(task, row, shape, rank) for row in rows)


def row_flops(task: Task, row: Row, shape: Shape, rank: int) -> float:
    tokens = shared_tokens(task, row)
    if task == "sft":
        trained = sum(label != IGNORED for label in row["labels"][1:])
        seen = tokens * (tokens + 1) / 2
    else:
        prompt, responses = len(row["prompt"]), (len(row["chosen"]), len(row["rejected"]))
        trained = sum(responses) if task == "dpo" else 0
        seen = prompt * (prompt + 1) / 2 + sum(c * prompt + c * (c + 1) / 2 for c in responses)
    frozen = 2 * (tokens * shape.layers * shape.layer_products + trained * shape.vocabulary * shape.hidden)
    attention = 4 * shape.attention_width * shape.layers * seen
    adapter = 2 * tokens * shape.lora_parameters(rank)
    reference = frozen + attention if task == "dpo" else 0
    return 2 * frozen + 3 * (attention + adapter) + reference
