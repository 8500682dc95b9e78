"""Memory by part, worked out by hand for a model of 2000 weights, of which the tied embedding has 640."""

from __future__ import annotations

import pytest

from tests.estimate.made import SHAPE, setting
from whet.estimate.memory import Memory, memory_of
from whet.estimate.setting import Beside, Decoding, Setting


def parts(memory: Memory, moment: str) -> dict[str, float]:
    (found,) = [one for one in memory.moments if one.name == moment]
    return {part.name: part.bytes for part in found.parts}


def training(made: Setting) -> dict[str, float]:
    return parts(memory_of(made), "training")


def test_sixteen_bytes_a_weight() -> None:
    found = training(setting())
    assert (found["weights"], found["gradients"], found["optimiser state"]) == (8000, 8000, 16_000)
    # The tied matrix gets a whole gradient from the head and one from the embedding, beside what is added up.
    assert found["gradients on their way"] == 2 * 4 * 640


def test_bf16_weights_with_a_master() -> None:
    """2 (weight) + 2 (gradient of one micro-batch) + 8 (averages) + 2 (the master's other half)."""
    found = training(setting(weights="bf16_master", arithmetic="bf16", several=False))
    assert (found["weights"], found["gradients"], found["optimiser state"]) == (4000, 4000, 20_000)
    assert training(setting(weights="bf16_master", arithmetic="bf16"))["gradients"] == 8000


def test_an_adapter_costs_its_own_weights() -> None:
    """Rank 2 on every layer: 2 (16 x 8 + 24 x 4 + 24 x 2) = 544 weights; frozen ones cost 4 bytes."""
    found = training(setting(trains="adapter", rank=2))
    assert SHAPE.adapter(2) == 544
    assert found["frozen weights"] == 8000
    assert found["trained weights (fp32)"] == found["gradients"] == 4 * 544
    assert found["optimiser state"] == 8 * 544
    assert "gradients on their way" not in found


def test_four_bits_leave_embeddings_and_norms_alone() -> None:
    """1280 weights of linear layers at half a byte, 720 others at 2; one layer of 8 x 16 is whole for its product."""
    found = training(setting(trains="adapter", rank=2, arithmetic="bf16", four_bits=0.5))
    assert found["frozen weights"] == 0.5 * 1280 + 2 * 720
    assert found["a weight in full for its product"] == 2 * 8 * 16
    assert parts(memory_of(setting(trains="adapter", rank=2, four_bits=0.5)), "loading")["weights"] == 640 + 4 * 720


def test_activations_on_the_host_are_not_the_devices() -> None:
    here, away = (training(setting(on_cpu=False, offload_activations=away)) for away in (False, True))
    assert 0 < away["activations"] < here["activations"]


def test_eight_bits_leave_the_embedding_alone() -> None:
    found = training(setting(optimizer="adamw_8bit"))
    assert found["optimiser state"] == pytest.approx(8 * 640 + (2 + 8 / 256) * 1360)


@pytest.mark.parametrize(
    ("sharding", "weights", "gradients", "state"),
    [("none", 1, 1, 1), ("zero2", 1, 4, 4), ("zero3", 4, 4, 4), ("fsdp", 4, 4, 4)],
)
def test_what_ranks_divide(sharding: str, weights: int, gradients: int, state: int) -> None:
    one, found = training(setting()), training(setting(ranks=4, sharding=sharding))
    assert found["weights"] == one["weights"] / weights
    assert found["gradients"] == one["gradients"] / gradients
    assert found["optimiser state"] == one["optimiser state"] / state
    assert found["activations"] == one["activations"]
    assert ("layers gathered from all ranks" in found) == (weights > 1)
    assert ("gradients between ranks" in found) == (sharding == "none")


def test_models_beside_and_the_engine() -> None:
    """A reference of 2000 weights in fp32; of an adapter's model the engine copies the adapted layers alone."""
    reference = Beside(part="reference model", shape=SHAPE, on_cpu=True)
    decoding = Decoding(rows=4, prompts=2, prompt_tokens=33, answer_tokens=32)
    found = training(setting(beside=(reference,), decoding=decoding))
    assert (found["reference model"], found["engine's copy of the weights"]) == (8000, 8000)
    adapted = memory_of(setting(trains="adapter", rank=2, decoding=decoding))
    assert parts(adapted, "training")["engine's copy of the weights"] == 4 * 1280
    # In bf16 every product and the head lie in another order as well; in fp32 large ones, and here none is.
    narrow = setting(trains="adapter", rank=2, arithmetic="bf16", decoding=decoding)
    assert parts(memory_of(narrow), "training")["engine's copy of the weights"] == 2 * (1280 + SHAPE.head)
    whole = training(setting(arithmetic="bf16", decoding=decoding))["engine's copy of the weights"]
    assert whole == 2 * (2000 + SHAPE.head), "a tied matrix is the embedding and, in another order, the head"
    # Lengths have room in steps of 32: 2 prompts of 64 and 4 answers of 32, keys and values of 8 numbers in 2 layers.
    held = parts(adapted, "generation")["keys and values"]
    assert held == pytest.approx(1.5 * (2 * 2 * 8 * 4) * (2 * 64 + 4 * 32))


def test_a_checkpoint_is_mapped_while_it_is_converted() -> None:
    found = parts(memory_of(setting()), "loading")
    assert (found["weights"], found["checkpoint, mapped"]) == (8000, 4000)


def test_on_a_gpu_the_host_is_not_counted() -> None:
    memory = memory_of(setting(on_cpu=False, arithmetic="bf16"))
    assert [moment.name for moment in memory.moments] == ["training"]
    assert "interpreter and libraries" not in parts(memory, "training")


def test_the_peak_is_the_largest_moment() -> None:
    memory = memory_of(setting(file_bytes=10**9))
    assert memory.peak.name == "loading"
    assert memory.peak.bytes == sum(part.bytes for part in memory.peak.parts)
