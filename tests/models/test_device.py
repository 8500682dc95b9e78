"""What is asked of a device besides a place for tensors."""

from __future__ import annotations

import os
import types
from collections.abc import Mapping
from pathlib import Path

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
        is_bf16_supported=lambda including_emulation: not including_emulation, mem_get_info=lambda _: (1, 80),
        max_memory_allocated=lambda _: 7,
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


def test_bf16_that_is_emulated_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Turing, of which torch says yes where it is not asked for more; packages of other kinds take no keyword."""
    turing = types.SimpleNamespace(is_bf16_supported=lambda including_emulation=True: including_emulation)
    monkeypatch.setattr(torch, "get_device_module", lambda _: turing)
    assert not device.computes_bf16(CUDA) and not device.computes_bf16(torch.device("xpu"))
    monkeypatch.setattr(torch, "get_device_module", lambda _: types.SimpleNamespace(is_bf16_supported=lambda: True))
    assert device.computes_bf16(torch.device("privateuseone"))


def test_nothing_is_asked_about_memory_of_the_host(speaks: types.SimpleNamespace) -> None:
    for host in (CPU, MPS):
        assert not device.has_own_memory(host)
        assert not device.computes_bf16(host)
        assert min(device_memory(host), peak_memory_bytes(host)) > 1 << 20


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        ("0::/job/step", {"job/memory.max": "5000", "job/step/memory.max": "max"}, 5000),
        ("0::/job/step", {"job/memory.max": "5000", "job/step/memory.max": "4000"}, 4000),
        ("0::/", {"memory.max": "3000"}, 3000),
        ("3:cpuset:/job\n2:cpu,memory:/job", {"memory/job/memory.limit_in_bytes": "2000"}, 2000),
        ("2:memory:/docker/1f\n0::/docker/1f", {"memory/memory.limit_in_bytes": "1000"}, 1000),
        ("2:memory:/", {"memory/memory.limit_in_bytes": "9223372036854771712"}, 4096 * 1024),
        ("0::/job", {}, 4096 * 1024),
        (None, {}, 4096 * 1024),
    ],
)
def test_a_containers_limit_counts(
    groups: str | None, files: Mapping[str, str], expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both versions of control groups; in a container their tree may begin at its own."""
    for name, text in files.items():
        (tmp_path / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "tree" / name).write_text(f"{text}\n")
    if groups is not None:
        (tmp_path / "own").write_text(f"{groups}\n")
    monkeypatch.setattr("whet.models.memory.OWN_GROUPS", tmp_path / "own")
    monkeypatch.setattr("whet.models.memory.GROUPS", tmp_path / "tree")
    monkeypatch.setattr(os, "sysconf", {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 1024}.get)
    assert device_memory(CPU) == expected


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
