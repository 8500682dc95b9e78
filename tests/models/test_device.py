"""What is asked of a device besides a place for tensors."""

from __future__ import annotations

import types

import pytest
import torch

from whet.models import device
from whet.models.memory import device_memory
from whet.train.checkpoint import load_random, random_tensors
from whet.train.parallel import peak_memory_bytes

CPU, MPS, CUDA = (torch.device(name) for name in ("cpu", "mps", "cuda"))


@pytest.fixture
def speaks(monkeypatch: pytest.MonkeyPatch) -> types.SimpleNamespace:
    """The module of a device that torch finds here, under the name of one that this torch can speak of."""
    module = types.SimpleNamespace(
        is_bf16_supported=lambda: True, mem_get_info=lambda _: (1, 80), max_memory_allocated=lambda _: 7,
        get_rng_state=lambda: torch.ByteTensor([3]),
    )  # fmt: skip
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: CUDA)
    monkeypatch.setattr(torch, "get_device_module", lambda _: module)
    return module


def test_the_device_answers_for_itself(speaks: types.SimpleNamespace) -> None:
    assert device.accelerator() == CUDA
    assert device.computes_bf16(CUDA)
    assert (device_memory(CUDA), peak_memory_bytes(CUDA)) == (80, 7)


def test_nothing_is_asked_about_memory_of_the_host(speaks: types.SimpleNamespace) -> None:
    for host in (CPU, MPS):
        assert not device.has_own_memory(host)
        assert not device.computes_bf16(host)
        assert min(device_memory(host), peak_memory_bytes(host)) > 1 << 20


def test_its_generator_is_in_a_checkpoint_and_a_machine_without_it_goes_on(
    speaks: types.SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[torch.Tensor] = []
    speaks.set_rng_state = taken.append
    states = random_tensors()
    assert states.keys() == {"cpu", "cuda"}
    load_random(states)
    assert taken == [states["cuda"]]
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    load_random(states)
    assert len(taken) == 1


def test_weights_that_are_one_stay_one() -> None:
    """Going to the meta device, as to some accelerators, torch makes every module a parameter of its own."""
    model = torch.nn.Sequential(torch.nn.Embedding(5, 3), torch.nn.Linear(3, 5, bias=False))
    model[1].weight = model[0].weight
    device.move(model, torch.device("meta"))
    assert model[0].weight.is_meta
    assert model[1].weight is model[0].weight
