"""A narrow type that the CPU has no instructions for is warned of, once; fp32 and auto are not."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import pytest
import torch

from whet.models import narrow_products
from whet.models.load import compute_dtype
from whet.models.narrow_products import has_narrow_products, warn_of_slow_products

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def unsaid() -> Iterator[None]:
    warn_of_slow_products.cache_clear()
    yield
    warn_of_slow_products.cache_clear()


def processor(patch: pytest.MonkeyPatch, machine: str, *has: str) -> None:
    patch.setattr(narrow_products.platform, "machine", lambda: machine)
    for names in narrow_products.OWN.values():
        for name in names:
            patch.setattr(torch.cpu, name, lambda name=name: name in has, raising=False)


def test_which_processors_have_products_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    processor(monkeypatch, "x86_64")
    assert not has_narrow_products("bf16") and not has_narrow_products("fp16")
    processor(monkeypatch, "x86_64", "_is_avx512_bf16_supported")
    assert has_narrow_products("bf16") and not has_narrow_products("fp16")
    processor(monkeypatch, "x86_64", "_is_amx_tile_supported")
    assert has_narrow_products("bf16")
    processor(monkeypatch, "aarch64")
    assert has_narrow_products("bf16") == bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def test_it_is_said_once_and_only_where_it_is_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    processor(monkeypatch, "x86_64")
    with pytest.warns(UserWarning, match=r"^bf16 on a CPU without instructions for it: .* precision at auto") as said:
        assert compute_dtype("bf16", CPU) is torch.bfloat16
        assert compute_dtype("bf16", CPU) is torch.bfloat16
    assert len(said) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert compute_dtype("auto", CPU) is torch.float32 and compute_dtype("fp32", CPU) is torch.float32
        assert compute_dtype("bf16", torch.device("mps")) is torch.bfloat16
    warn_of_slow_products.cache_clear()
    processor(monkeypatch, "x86_64", "_is_amx_tile_supported")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert compute_dtype("bf16", CPU) is torch.bfloat16
