"""A setting to start from: a decoder of two layers, small numbers that can be worked out by hand."""

from __future__ import annotations

from typing import Any

from whet.estimate.setting import MicroBatch, Setting
from whet.schema.shape import ModelShape, Product

PRODUCTS = (Product(inputs=8, outputs=8, count=8), Product(inputs=8, outputs=16, count=4),
            Product(inputs=16, outputs=8, count=2))  # fmt: skip
"""Of both layers: q, k, v and o; gate and up; down. 1280 weights."""
SHAPE = ModelShape(
    name="made", parameters=2000, largest=640, block=680, vision=0, layers=2, width=8, inner=16, heads=2, head_width=4,
    key_heads=2, vocabulary=80, tied=True, normed_heads=False, products=PRODUCTS, adapted=PRODUCTS,
)  # fmt: skip


def setting(**changes: Any) -> Setting:
    made: dict[str, Any] = {
        "shape": SHAPE, "on_cpu": True, "arithmetic": "fp32", "trains": "all", "rank": 0, "dropout": False,
        "weights": "fp32", "optimizer": "adamw", "score_head": 0, "scores": False, "trains_vision": False,
        "micro_batch": MicroBatch(tokens=10, targets=4, recompute=False), "several": True, "beside": (),
        "value_model": False, "decoding": None, "pass_tokens": 0, "file_bytes": 4000, "libraries": 1000,
    }  # fmt: skip
    return Setting(**(made | changes))
