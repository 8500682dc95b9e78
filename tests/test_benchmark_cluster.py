"""The arithmetic of clusters, against numbers worked out by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.cluster import (
    QWEN,
    Cluster,
    Generation,
    Training,
    best_split,
    forward_flops,
    offline_lines,
    online_lines,
    published_lines,
    sync_seconds,
    utilisation,
)
from benchmarks.shapes import SHAPES, Shape

SMALL = Shape(hidden=4, layers=1, heads=2, kv_heads=1, head_dim=2, intermediate=8, vocabulary=10)
"""Layer: q 4x4, k and v 4x2 each, o 4x4, feed-forward 3 x 4x8: 144 weights that multiply every token."""
ROUND = Cluster(gpus=4, peak=100.0, utilisation=0.5, memory_bandwidth=1000.0, memory_utilisation=0.5, inside=10.0)


def test_a_forward_pass() -> None:
    """3 tokens, 2 trained: 2*3*144 + 2*2*10*4 + 4*4*(1+2+3)."""
    assert forward_flops(SMALL, 3, 2) == 864 + 160 + 96


def test_a_step_computes_and_communicates() -> None:
    step = Training(shape=SMALL, sequences=8, length=3, trained=2, micro_batch_tokens=6)
    weights = SMALL.parameters
    compute = 3 * 8 * 1120 / (4 * 100 * 0.5)
    replicated, sharded = step.seconds(ROUND, "replicated"), step.seconds(ROUND, "sharded")
    assert replicated.shown - compute == pytest.approx(2 * 0.75 * 4 * weights / 10)
    # 24 tokens on 4 GPUs are one micro-batch of 6: gathered twice in 2 bytes, scattered once in 4
    assert sharded.shown - compute == pytest.approx(0.75 * 8 * weights / 10)
    assert sharded.hidden == pytest.approx(max(compute, 0.75 * 8 * weights / 10))


def test_an_adapter_saves_a_pass_and_its_gradients() -> None:
    full = Training(shape=SMALL, sequences=8, length=3, trained=2)
    adapter = Training(shape=SMALL, sequences=8, length=3, trained=2, rank=1)
    assert (full.flops, adapter.flops) == (3 * full.forward, 2 * full.forward)
    assert adapter.trainable == SMALL.lora_parameters(1)


def test_decoding_reads_weights_and_keys_for_every_token() -> None:
    """4 engines, 2 sequences each: 5 tokens that read 2 P + 2 * 2 * 2 * 2 * (1 + 2.5) bytes at 500 a second."""
    answers = Generation(shape=SMALL, sequences=8, prompt=1, group=2, answer=5)
    wide = Cluster(gpus=4, peak=1e12, utilisation=1.0, memory_bandwidth=1000.0, memory_utilisation=0.5)
    reading = (2 * SMALL.parameters + 2 * 2 * 2 * 1 * 1 * 2 * 3.5) / 500
    assert answers.seconds(wide) == pytest.approx(5 * reading, rel=1e-6)


def test_a_link_is_as_fast_as_the_slowest_it_crosses() -> None:
    assert sync_seconds(SMALL, Cluster(gpus=8)) * 9 == pytest.approx(sync_seconds(SMALL, Cluster(gpus=16)))


def test_the_best_split_is_not_beaten_by_its_neighbours() -> None:
    answers = Generation(shape=QWEN["7b"], sequences=8192, prompt=512, group=16, answer=2048)
    training = Training(shape=QWEN["7b"], sequences=8192, length=2080, trained=2048)
    seconds, engines = best_split(answers, training, 64)
    assert 1 <= engines < 64
    for other in (engines - 1, engines + 1):
        if 1 <= other < 64:
            beside = training.seconds(Cluster(gpus=64 - other), "sharded").shown
            assert seconds <= max(answers.seconds(Cluster(gpus=other)), beside)


def test_a_published_utilisation_is_met() -> None:
    """prime-rl 0.8: Qwen3-0.6B, 8,192 tokens a row, 26.0k tokens/s on an H100 are 16.8 %."""
    assert utilisation(SHAPES["0.6b"], 26_000, 8192, 989e12) == pytest.approx(0.168, abs=0.001)


@pytest.mark.parametrize("page", ["docs/scaling.md", "docs/zh/scaling.md"])
def test_the_tables_of_the_documents_are_these(page: str) -> None:
    text = (Path(__file__).parents[1] / page).read_text(encoding="utf-8")
    for lines in (offline_lines(), online_lines(), published_lines()):
        rows = list(lines)[2:]
        assert "\n".join(rows) in text
